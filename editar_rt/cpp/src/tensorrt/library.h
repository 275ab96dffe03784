// NVIDIA's library of engines, opened at run time: TensorRT, or TensorRT for RTX, as the headers are.
#pragma once

#include <NvInfer.h>

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

namespace editar {

#if defined(TRT_MAJOR_RTX)
constexpr bool IS_RTX = true;
constexpr const char *LIBRARY = "rtx", *TITLE = "TensorRT for RTX";
// The compute capabilities that its builder can name, without those that lack kernels for float32: of 1.7.
constexpr const char* CAPABILITIES = "8.0 8.6 8.9 12.0 12.1";
constexpr int HEADER_MAJOR = TRT_MAJOR_RTX, HEADER_MINOR = TRT_MINOR_RTX;
#else
constexpr bool IS_RTX = false;
constexpr const char *LIBRARY = "tensorrt", *TITLE = "TensorRT";
constexpr const char* CAPABILITIES = "";
constexpr int HEADER_MAJOR = NV_TENSORRT_MAJOR, HEADER_MINOR = NV_TENSORRT_MINOR;
#endif

class TensorRT {
public:
    // The process's library, opened by the first call. Throws EDITAR_BACKEND_FAILED where it is missing, or is of a
    // version whose classes are not those of the headers.
    static const TensorRT& get();
    const std::string& version() const { return version_; }  // "10.15.1.29"
    // The object that loads engines; null where it cannot start, and the logger then knows why.
    nvinfer1::IRuntime* make_runtime(nvinfer1::ILogger& logger) const;

private:
    void* (*create_)(void* logger, int32_t version) = nullptr;
    std::string version_;
};

// Keeps what the library says for the sentence of a failed call.
class Logger : public nvinfer1::ILogger {
public:
    using Log = void (*)(int32_t level, const char* message);
    explicit Logger(Log log) : log_(log) {}
    void log(Severity severity, const char* message) noexcept override;
    // The errors since the last call, in one line; the last warnings if there are none.
    std::string take();

private:
    Log log_;
    std::mutex lock_;  // the library logs from its own threads too
    std::vector<std::string> errors_, warnings_;
};

}  // namespace editar
