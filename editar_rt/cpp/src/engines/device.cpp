#include "engines/device.h"

#include "dynamic_library.h"
#include "facts.h"
#include "ort/library.h"

namespace editar {

namespace {

#if defined(_WIN32)
constexpr const char* NAME = "editar_tensorrt.dll";
#elif defined(__APPLE__)
constexpr const char* NAME = "libeditar_tensorrt.dylib";
#else
constexpr const char* NAME = "libeditar_tensorrt.so";
#endif

void to_log(int32_t level, const char* message) {
    try {
        log_message(level, message);
    } catch (...) {  // nothing may pass through the plug-in
    }
}

}  // namespace

const editar_plugin& open_plugin_table(const std::string& path) {
    std::vector<std::string> candidates;
    if (!path.empty()) {
        candidates = {path};
    } else {
        const std::string folder = own_folder();
        if (!folder.empty()) candidates.push_back(folder + NAME);
        candidates.emplace_back(NAME);
    }
    const std::string advice =
        "build it where TensorRT's headers are (docs/embedding.md), and give its path: plugin_path";
    void* library = open_library(candidates, "the library that runs TensorRT's engines, libeditar_tensorrt,", advice);
    const auto function =
        reinterpret_cast<editar_plugin_table_function>(library_function(library, EDITAR_PLUGIN_FUNCTION));
    if (function == nullptr)
        throw backend_error("the library given as libeditar_tensorrt is another one (it has no function " +
                            std::string(EDITAR_PLUGIN_FUNCTION) + "); " + advice);
    const editar_plugin* table = function(EDITAR_PLUGIN_VERSION);
    if (table == nullptr || table->version != EDITAR_PLUGIN_VERSION)
        throw backend_error(
            "libeditar_tensorrt belongs to another version of libeditar than this one; build both together");
    return *table;
}

Device::Device(const editar_plugin& plugin) : plugin_(plugin) {
    check(plugin.open_device(to_log, &device_, &facts_));
}

Device::~Device() {
    plugin_.close_device(device_);
}

std::string Device::title() const {
    const bool rtx = facts_.library == std::string(facts::engines::RTX);
    return std::string(rtx ? facts::engines::RTX_TITLE : facts::engines::TENSORRT_TITLE) + " " + facts_.version;
}

void Device::check(int32_t failed) const {
    if (failed != 0) throw backend_error(said());
}

void Device::zero(void* address, size_t bytes) const {
    check(plugin_.zero(device_, address, bytes));
}

void Device::to_device(void* target, const void* source, size_t bytes) const {
    check(plugin_.to_device(device_, target, source, bytes));
}

void Device::to_host(void* target, const void* source, size_t bytes) const {
    check(plugin_.to_host(device_, target, source, bytes));
}

void Device::copy_lines(const editar_lines& target, const editar_lines& source, size_t width, size_t height,
                        size_t depth) const {
    check(plugin_.copy_lines(device_, &target, &source, width, height, depth));
}

void Device::synchronize() const {
    check(plugin_.synchronize(device_));
}

Memory::Memory(const Device& device, size_t bytes, bool on_host) : device_(device), on_host_(on_host) {
    const editar_plugin& plugin = device.plugin();
    device.check(on_host ? plugin.allocate_host(device.handle(), bytes, &address_)
                         : plugin.allocate(device.handle(), bytes, &address_));
}

Memory::~Memory() {
    const editar_plugin& plugin = device_.plugin();
    (on_host_ ? plugin.release_host : plugin.release)(device_.handle(), address_);
}

Recording::Recording(const Device& device, const std::function<void()>& work) : device_(device) {
    const editar_plugin& plugin = device.plugin();
    if (plugin.begin_recording(device.handle()) != 0) throw CaptureError(device.said());
    std::string reason;
    try {
        work();
    } catch (const Error& error) {
        reason = error.what();
    }
    // Also after a failure.
    const bool failed = plugin.end_recording(device.handle(), reason.empty() ? &recording_ : nullptr) != 0;
    if (!reason.empty()) throw CaptureError(reason);
    if (failed) throw CaptureError(device.said());
}

Recording::~Recording() {
    device_.plugin().close_recording(device_.handle(), recording_);
}

void Recording::replay() const {
    device_.check(device_.plugin().replay(device_.handle(), recording_));
}

}  // namespace editar
