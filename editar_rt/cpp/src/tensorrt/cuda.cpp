#include "tensorrt/cuda.h"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "dynamic_library.h"
#include "error.h"

namespace editar {

namespace {

constexpr const char* VARIABLE = "EDITAR_CUDART";
constexpr int CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76;  // attributes
constexpr size_t PROPERTIES = 8192;  // bytes, more than the structure, which begins with the name and grows

std::vector<std::string> candidates() {
    const char* named = std::getenv(VARIABLE);
    if (named != nullptr && *named != '\0') return {named};
#if defined(_WIN32)
    const std::vector<std::string> names = {"cudart64_13.dll", "cudart64_12.dll", "cudart64_110.dll"};
#else
    const std::vector<std::string> names = {"libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so"};
#endif
    std::vector<std::string> all;
    all.reserve(2 * names.size());
    for (const std::string& name : names) all.push_back(own_folder() + name);
    all.insert(all.end(), names.begin(), names.end());
    return all;
}

std::string dotted(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

const Cuda& Cuda::get() {
    static Cuda cuda;
    static std::mutex lock;
    const std::lock_guard<std::mutex> held(lock);
    if (cuda.properties_ != nullptr) return cuda;
    void* library = open_library(candidates(), "CUDA's runtime library, libcudart,",
                                 std::string("install it, or give its path in the variable ") + VARIABLE);
    auto function = [&](const char* name) {
        void* found = library_function(library, name);
        if (found == nullptr)
            throw backend_error(std::string("the library given as CUDA's runtime has no function ") + name +
                                "; install CUDA 11.4 or newer");
        return found;
    };
#define EDITAR_FIND(name, arguments) \
    cuda.name = reinterpret_cast<int(*) arguments>(function(#name));  // NOLINT(bugprone-macro-parentheses)
    EDITAR_CUDA_FUNCTIONS(EDITAR_FIND)
#undef EDITAR_FIND
    cuda.error_text_ = reinterpret_cast<const char* (*)(int)>(function("cudaGetErrorString"));
    void* newer = library_function(library, "cudaGetDeviceProperties_v2");
    cuda.properties_ =
        reinterpret_cast<int (*)(void*, int)>(newer != nullptr ? newer : function("cudaGetDeviceProperties"));
    return cuda;
}

void Cuda::check(const char* function, int code) const {
    if (code == 0) return;
    const char* text = error_text_(code);
    throw backend_error(std::string("CUDA: ") + function + " failed with error " + std::to_string(code) + " (" +
                        (text == nullptr ? "unknown" : text) + ")");
}

int Cuda::find_device() const {
    int count = 0, device = 0;
    const int code = cudaGetDeviceCount(&count);
    if (code == CUDA_INSUFFICIENT_DRIVER) {
        int supported = 0;
        check("cudaDriverGetVersion", cudaDriverGetVersion(&supported));
        if (supported == 0) throw backend_error("there is no NVIDIA driver on this machine; install one");
        throw backend_error("the NVIDIA driver supports CUDA up to " + dotted(supported) + ", but this is CUDA " +
                            version() + "; install a newer driver, or packages for the older CUDA");
    }
    if (code != CUDA_NO_DEVICE) check("cudaGetDeviceCount", code);
    if (count == 0) throw backend_error("CUDA finds no GPU on this machine");
    check("cudaGetDevice", cudaGetDevice(&device));
    return device;
}

std::string Cuda::device_name(int device) const {
    std::vector<char> properties(PROPERTIES, '\0');
    check("cudaGetDeviceProperties", properties_(properties.data(), device));
    return {properties.data(), strnlen(properties.data(), 256)};
}

std::string Cuda::capability(int device) const {
    int major = 0, minor = 0;
    check("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&major, CAPABILITY_MAJOR, device));
    check("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&minor, CAPABILITY_MINOR, device));
    return std::to_string(major) + "." + std::to_string(minor);
}

std::string Cuda::version() const {
    int number = 0;
    check("cudaRuntimeGetVersion", cudaRuntimeGetVersion(&number));
    return dotted(number);
}

std::string Cuda::driver() const {
    int number = 0;
    check("cudaDriverGetVersion", cudaDriverGetVersion(&number));
    return dotted(number);
}

}  // namespace editar
