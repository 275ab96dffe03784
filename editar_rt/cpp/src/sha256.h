// SHA-256.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace editar {

class Sha256 {
public:
    Sha256();
    void add(const void* data, size_t bytes);
    std::string hex();  // 64 lower-case digits; nothing can be added afterwards

private:
    void block(const uint8_t* data);
    uint32_t state_[8];
    uint64_t bytes_ = 0;
    uint8_t buffer_[64];
    size_t held_ = 0;
};

}  // namespace editar
