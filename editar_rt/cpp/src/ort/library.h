// ONNX Runtime's C API, from the library that is opened at run time.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <string>
#include <string_view>
#include <type_traits>

#include "machine.h"

namespace editar {

using Log = void (*)(void* user, int32_t level, const char* message);
void set_log(Log log, void* user, int32_t least_level);
void log_message(int32_t level, const std::string& message);  // in the order of EDITAR_LOG_…

class OnnxRuntime {
public:
    // The process's library: opened by the first call. Throws EDITAR_BACKEND_FAILED.
    // `path`: null or "" tries $EDITAR_ONNXRUNTIME, beside this library, and the system's.
    static OnnxRuntime& get(const char* path);

    const OrtApi& api() const { return *api_; }
    const OrtEnv* env() const { return env_; }
    const std::string& version() const { return version_; }
    bool is_at_least(int major, int minor) const;

    // Throws std::bad_alloc if that is the reason which the engine gave.
    static void check_memory(const std::string& reason);
    // Throws what a call returned as EDITAR_BACKEND_FAILED: "ONNX Runtime failed in the part …", or std::bad_alloc.
    void check(OrtStatus* status, std::string_view part) const;
    // The message of a failed call, on one line, and "" otherwise.
    std::string said(OrtStatus* status) const;

    // A value over the caller's memory, which lies on the CPU unless `memory` says otherwise.
    OrtValue* value(void* data, size_t bytes, const int64_t* shape, size_t rank, ONNXTensorElementDataType type,
                    const OrtMemoryInfo* memory = nullptr) const;

private:
    OnnxRuntime() = default;
    void* library_ = nullptr;
    const OrtApi* api_ = nullptr;
    OrtEnv* env_ = nullptr;
    OrtMemoryInfo* cpu_ = nullptr;
    std::string version_, path_;
};

// An object of ONNX Runtime, released by the function `Release` of its API.
template <typename T, void (ORT_API_CALL* OrtApi::*Release)(T*)>
struct Releaser {
    const OrtApi* api = nullptr;
    void operator()(T* object) const {
        if (api == nullptr) return;
        std::shared_lock<std::shared_mutex> held;
        if constexpr (std::is_same_v<T, OrtSession>) held = mapping_weights();
        (api->*Release)(object);
    }
};
#define EDITAR_ORT_TYPE(name)                                                                  \
    using name##Ptr = std::unique_ptr<Ort##name, Releaser<Ort##name, &OrtApi::Release##name>>; \
    inline name##Ptr own(const OnnxRuntime& ort, Ort##name* object) {                          \
        return name##Ptr(object, {&ort.api()});                                                \
    }
EDITAR_ORT_TYPE(Session)
EDITAR_ORT_TYPE(SessionOptions)
EDITAR_ORT_TYPE(RunOptions)
EDITAR_ORT_TYPE(IoBinding)
EDITAR_ORT_TYPE(Value)
EDITAR_ORT_TYPE(MemoryInfo)
EDITAR_ORT_TYPE(TensorTypeAndShapeInfo)
#undef EDITAR_ORT_TYPE

// A path as ONNX Runtime takes it: wide on Windows.
std::basic_string<ORTCHAR_T> ort_path(const std::string& path);

}  // namespace editar
