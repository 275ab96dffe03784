// A plug-in's device as C++: what it hands out is given back, and what it refuses is thrown.
// As editar_rt/backends/engines/device.py.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "editar_plugin.h"
#include "error.h"

namespace editar {

// The table of a plug-in library, which stays open. `path`: "" tries beside this library, and the system's.
// Throws EDITAR_BACKEND_FAILED.
const editar_plugin& open_plugin_table(const std::string& path);

// The work cannot be recorded; it can still be queued.
class CaptureError : public Error {
public:
    explicit CaptureError(std::string message) : Error(EDITAR_BACKEND_FAILED, std::move(message)) {}
};

class Device {
public:
    // Throws EDITAR_BACKEND_FAILED where the library, CUDA or a GPU is missing, or the driver is too old.
    explicit Device(const editar_plugin& plugin);
    ~Device();
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    const editar_device_facts& facts() const { return facts_; }
    std::string title() const;  // name and version of the library for users
    const editar_plugin& plugin() const { return plugin_; }
    editar_device* handle() const { return device_; }

    void zero(void* address, size_t bytes) const;
    void to_device(void* target, const void* source, size_t bytes) const;
    void to_host(void* target, const void* source, size_t bytes) const;
    void copy_lines(const editar_lines& target, const editar_lines& source, size_t width, size_t height,
                    size_t depth) const;
    void synchronize() const;

    void check(int32_t failed) const;  // throws EDITAR_BACKEND_FAILED with the plug-in's sentence
    std::string said() const { return plugin_.error(); }

private:
    const editar_plugin& plugin_;
    editar_device* device_ = nullptr;
    editar_device_facts facts_{};
};

// Memory of a device, or of the host where the device can copy it asynchronously.
class Memory {
public:
    Memory(const Device& device, size_t bytes, bool on_host);
    ~Memory();
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    char* at(size_t offset) const { return static_cast<char*>(address_) + offset; }

private:
    const Device& device_;
    bool on_host_;
    void* address_ = nullptr;
};

// Work that is queued all at once.
class Recording {
public:
    // Record what `work` queues instead of doing it. Throws CaptureError.
    Recording(const Device& device, const std::function<void()>& work);
    ~Recording();
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;
    void replay() const;

private:
    const Device& device_;
    editar_recording* recording_ = nullptr;
};

}  // namespace editar
