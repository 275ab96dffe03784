// SHA-256, by the processor's own instructions where x86 has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace editar {

class Sha256 {
public:
    explicit Sha256(bool portable = false);  // `portable`: for tests, by plain arithmetic
    void add(const void* data, size_t bytes);
    std::string hex();  // 64 lower-case digits; nothing can be added afterwards

private:
    void (*blocks_)(uint32_t* state, const uint8_t* data, size_t count);
    uint32_t state_[8];
    uint64_t bytes_ = 0;
    uint8_t buffer_[64];
    size_t held_ = 0;
};

}  // namespace editar
