#include "ort/library.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "dynamic_library.h"
#include "error.h"
#if defined(_WIN32)
#include <windows.h>
#endif

namespace editar {

namespace {

std::mutex lock;
std::atomic<Log> log_function{nullptr};
std::atomic<void*> log_user{nullptr};
std::atomic<int32_t> log_level{0};

void ORT_API_CALL from_engine(void*, OrtLoggingLevel severity, const char*, const char*, const char*,
                              const char* message) {
    int32_t level = severity <= ORT_LOGGING_LEVEL_VERBOSE   ? 0
                    : severity <= ORT_LOGGING_LEVEL_INFO    ? 1
                    : severity <= ORT_LOGGING_LEVEL_WARNING ? 2
                                                            : 3;
    log_message(level, message);
}

std::vector<std::string> candidates(const char* path) {
    if (path != nullptr && *path != '\0') return {path};
    const char* named = std::getenv("EDITAR_ONNXRUNTIME");
    if (named != nullptr && *named != '\0') return {named};
#if defined(_WIN32)
    const std::vector<std::string> names = {"onnxruntime.dll"};
#elif defined(__APPLE__)
    const std::vector<std::string> names = {"libonnxruntime.dylib", "libonnxruntime.1.dylib"};
#else
    const std::vector<std::string> names = {"libonnxruntime.so.1", "libonnxruntime.so"};
#endif
    std::vector<std::string> all;
    const std::string folder = own_folder();
    if (!folder.empty())
        for (const std::string& name : names) all.push_back(folder + name);
#if !defined(_WIN32)  // by its bare name, Windows would find an old one among its own
    for (const std::string& name : names) all.push_back(name);
#endif
    return all;
}

// The wheels' builds collect usage data unless this is set before they are loaded; the user's own choice stays.
void refuse_telemetry() {
#if defined(_WIN32)
    if (std::getenv("ORT_DISABLE_TELEMETRY") == nullptr) SetEnvironmentVariableW(L"ORT_DISABLE_TELEMETRY", L"1");
#else
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);
#endif
}

}  // namespace

void set_log(Log log, void* user, int32_t least_level) {
    std::lock_guard<std::mutex> held(lock);
    log_function = nullptr;
    log_user = user;
    log_level = least_level;
    log_function = log;
}

void log_message(int32_t level, const std::string& message) {
    Log log = log_function;
    if (log != nullptr && level >= log_level) log(log_user, level, message.c_str());
}

OnnxRuntime& OnnxRuntime::get(const char* path) {
    static OnnxRuntime ort;
    std::lock_guard<std::mutex> held(lock);
    const std::string wanted = path == nullptr ? "" : path;
    if (ort.api_ != nullptr) {
        if (!wanted.empty() && wanted != ort.path_ && !is_library_at(ort.library_, wanted))
            throw backend_error(
                "this process has already opened ONNX Runtime " + ort.version_ +
                (ort.path_.empty() ? "" : " from " + ort.path_) +
                "; all models of a process use the same one, so leave onnxruntime_path out or start another process");
        return ort;
    }
    refuse_telemetry();
    const std::string advice =
        "install ONNX Runtime and give the path of its library: onnxruntime_path, or the variable EDITAR_ONNXRUNTIME";
    void* library = open_library(candidates(path), "ONNX Runtime's library", advice);
    using Base = const OrtApiBase*(ORT_API_CALL*)();
    auto base_of = reinterpret_cast<Base>(library_function(library, "OrtGetApiBase"));
    const OrtApiBase* base = base_of == nullptr ? nullptr : base_of();
    if (base == nullptr) throw backend_error("the library given as ONNX Runtime is another one; " + advice);
    const std::string version = base->GetVersionString();
    const OrtApi* api = base->GetApi(ORT_API_VERSION);
    if (api == nullptr)
        throw backend_error("ONNX Runtime " + version + " is too old: this library was built for 1." +
                            std::to_string(ORT_API_VERSION) + " and newer; " + advice);
    ort.version_ = version;
    OrtEnv* env = nullptr;
    OrtMemoryInfo* cpu = nullptr;
    OrtStatus* status = api->CreateEnvWithCustomLogger(from_engine, nullptr, ORT_LOGGING_LEVEL_WARNING, "editar", &env);
    if (status == nullptr) status = api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &cpu);
    if (status != nullptr) {
        std::string message = api->GetErrorMessage(status);
        api->ReleaseStatus(status);
        throw backend_error("ONNX Runtime " + version + " cannot start: " + message);
    }
    if (OrtStatus* refused = api->DisableTelemetryEvents(env)) api->ReleaseStatus(refused);
    ort.env_ = env;
    ort.cpu_ = cpu;
    ort.path_ = wanted;
    ort.library_ = library;
    ort.api_ = api;
    return ort;
}

bool OnnxRuntime::is_at_least(int major, int minor) const {
    char* end = nullptr;
    long own_major = std::strtol(version_.c_str(), &end, 10);
    long own_minor = *end == '.' ? std::strtol(end + 1, nullptr, 10) : 0;
    return own_major > major || (own_major == major && own_minor >= minor);
}

std::string OnnxRuntime::said(OrtStatus* status) const {
    if (status == nullptr) return "";
    std::string words;
    for (const char* c = api_->GetErrorMessage(status); *c != '\0'; ++c) {  // on one line
        const bool space = *c == ' ' || *c == '\n' || *c == '\r' || *c == '\t';
        if (!space)
            words += *c;
        else if (!words.empty() && words.back() != ' ')
            words += ' ';
    }
    api_->ReleaseStatus(status);
    while (!words.empty() && words.back() == ' ') words.pop_back();
    return words.empty() ? "it gave no reason" : words;
}

void OnnxRuntime::check_memory(const std::string& reason) {
    for (const char* words : {"bad_alloc", "Failed to allocate memory"})
        if (reason.find(words) != std::string::npos) throw std::bad_alloc();
}

void OnnxRuntime::check(OrtStatus* status, std::string_view part) const {
    if (status == nullptr) return;
    const std::string reason = said(status);
    check_memory(reason);
    throw backend_error("ONNX Runtime failed in the part " + std::string(part) + " (" + reason.substr(0, 300) +
                        "); check the bundle with: editar-cli verify BUNDLE");
}

OrtValue* OnnxRuntime::value(void* data, size_t bytes, const int64_t* shape, size_t rank,
                             ONNXTensorElementDataType type, const OrtMemoryInfo* memory) const {
    OrtValue* made = nullptr;
    std::string reason = said(
        api_->CreateTensorWithDataAsOrtValue(memory == nullptr ? cpu_ : memory, data, bytes, shape, rank, type, &made));
    if (!reason.empty()) throw backend_error("ONNX Runtime " + version_ + " refused a tensor: " + reason);
    return made;
}

std::basic_string<ORTCHAR_T> ort_path(const std::string& path) {
#if defined(_WIN32)
    int length = MultiByteToWideChar(CP_UTF8, 0, path.c_str(), -1, nullptr, 0);
    std::wstring result(length > 0 ? length - 1 : 0, L'\0');
    if (length > 1) MultiByteToWideChar(CP_UTF8, 0, path.c_str(), -1, &result[0], length);
    return result;
#else
    return path;
#endif
}

}  // namespace editar
