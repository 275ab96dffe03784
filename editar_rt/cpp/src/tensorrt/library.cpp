#include "tensorrt/library.h"

#include <cstdlib>

#include "dynamic_library.h"
#include "error.h"

namespace editar {

namespace {

constexpr const char* VARIABLE = "EDITAR_TENSORRT";

std::vector<std::string> candidates() {
    const char* named = std::getenv(VARIABLE);
    if (named != nullptr && *named != '\0') return {named};
#if defined(_WIN32)
    const std::string name =
        IS_RTX ? "tensorrt_rtx_" + std::to_string(HEADER_MAJOR) + "_" + std::to_string(HEADER_MINOR) + ".dll"
               : "nvinfer_" + std::to_string(HEADER_MAJOR) + ".dll";
#else
    const std::string name =
        std::string(IS_RTX ? "libtensorrt_rtx.so." : "libnvinfer.so.") + std::to_string(HEADER_MAJOR);
#endif
    return {own_folder() + name, name};
}

// "1.7.1.116", from the functions that tell it; without the last number where the library has only the oldest one.
std::string version_of(void* library, int& major, int& minor) {
    using Number = int32_t (*)();
    auto number = [&](const char* name) { return reinterpret_cast<Number>(library_function(library, name)); };
    const Number whole = number("getInferLibVersion");
    if (whole == nullptr)
        throw backend_error(std::string("the library given as ") + TITLE +
                            " is another one (it has no function getInferLibVersion); set the variable " + VARIABLE);
    const int32_t own = whole();
    major = own / 10000;
    minor = own % 10000 / 100;
    std::string version = std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(own % 100);
    if (const Number build = number("getInferLibBuildVersion")) version += "." + std::to_string(build());
    return version;
}

}  // namespace

const TensorRT& TensorRT::get() {
    static TensorRT tensorrt;
    static std::mutex lock;
    const std::lock_guard<std::mutex> held(lock);
    if (tensorrt.create_ != nullptr) return tensorrt;
    const std::string advice =
        std::string("install ") + TITLE + ", or give the path of its library in the variable " + VARIABLE;
    void* library = open_library(candidates(), std::string("the library of ") + TITLE, advice);
    int major = 0, minor = 0;
    const std::string version = version_of(library, major, minor);
    // TensorRT's classes grow within a major version; those of TensorRT for RTX differ between minor ones.
    if (major != HEADER_MAJOR || (IS_RTX ? minor != HEADER_MINOR : minor < HEADER_MINOR))
        throw backend_error("libeditar_tensorrt was built for " + std::string(TITLE) + " " +
                            std::to_string(HEADER_MAJOR) + "." + std::to_string(HEADER_MINOR) +
                            ", but this machine has " + version +
                            "; build it with the headers of that version, or set the variable " + VARIABLE);
    // What the headers' inline function createInferRuntime calls; calling that would link the library.
    void* create = library_function(library, "createInferRuntime_INTERNAL");
    if (create == nullptr)
        throw backend_error(std::string("the library given as ") + TITLE + " makes no runtime; " + advice);
    tensorrt.version_ = version;
    tensorrt.create_ = reinterpret_cast<void* (*)(void*, int32_t)>(create);
    return tensorrt;
}

nvinfer1::IRuntime* TensorRT::make_runtime(nvinfer1::ILogger& logger) const {
    return static_cast<nvinfer1::IRuntime*>(create_(&logger, NV_TENSORRT_VERSION));
}

void Logger::log(Severity severity, const char* message) noexcept {
    try {
        const bool error = severity == Severity::kINTERNAL_ERROR || severity == Severity::kERROR;
        if (log_ != nullptr)
            log_(error ? 3 : severity == Severity::kWARNING ? 2 : severity == Severity::kINFO ? 1 : 0, message);
        if (!error && severity != Severity::kWARNING) return;
        const std::lock_guard<std::mutex> held(lock_);
        (error ? errors_ : warnings_).emplace_back(message);
    } catch (...) {  // no memory for the message
    }
}

std::string Logger::take() {
    const std::lock_guard<std::mutex> held(lock_);
    const std::vector<std::string>& from = errors_.empty() ? warnings_ : errors_;
    std::string said;
    for (size_t n = from.size() < 3 ? 0 : from.size() - 3; n < from.size(); ++n)
        said += (said.empty() ? "" : "; ") + from[n];
    errors_.clear();
    warnings_.clear();
    return said.empty() ? "no reason given" : said;
}

}  // namespace editar
