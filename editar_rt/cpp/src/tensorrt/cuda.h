// The functions of CUDA's runtime that the plug-in calls, from a library that is opened at run time: a machine without
// CUDA then gets a sentence, and no CUDA is needed to build. As editar_rt/backends/engines/cuda.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace editar {

// Values of C's enumerations, the same in every version.
constexpr int CUDA_OUT_OF_MEMORY = 2, CUDA_INSUFFICIENT_DRIVER = 35, CUDA_NO_DEVICE = 100;
constexpr int TO_DEVICE = 1, TO_HOST = 2, ON_DEVICE = 3;  // kinds of copies

struct CudaPlace {  // a part of struct cudaMemcpy3DParms: array, position, pitched pointer
    void* array;
    size_t x, y, z;
    void* address;
    size_t pitch, width, lines;
};
struct CudaCopy3D {  // struct cudaMemcpy3DParms
    CudaPlace source, target;
    size_t width, height, depth;
    int kind;
};

// name, arguments; enumerations are int, and handles void*
#define EDITAR_CUDA_FUNCTIONS(X)                                                           \
    X(cudaDriverGetVersion, (int*))                                                        \
    X(cudaRuntimeGetVersion, (int*))                                                       \
    X(cudaGetDeviceCount, (int*))                                                          \
    X(cudaGetDevice, (int*))                                                               \
    X(cudaSetDevice, (int))                                                                \
    X(cudaDeviceGetAttribute, (int*, int, int))                                            \
    X(cudaMemGetInfo, (size_t*, size_t*))                                                  \
    X(cudaMalloc, (void**, size_t))                                                        \
    X(cudaFree, (void*))                                                                   \
    X(cudaHostAlloc, (void**, size_t, unsigned))                                           \
    X(cudaFreeHost, (void*))                                                               \
    X(cudaMemsetAsync, (void*, int, size_t, void*))                                        \
    X(cudaMemcpyAsync, (void*, const void*, size_t, int, void*))                           \
    X(cudaMemcpy2DAsync, (void*, size_t, const void*, size_t, size_t, size_t, int, void*)) \
    X(cudaMemcpy3DAsync, (const CudaCopy3D*, void*))                                       \
    X(cudaStreamCreateWithFlags, (void**, unsigned))                                       \
    X(cudaStreamDestroy, (void*))                                                          \
    X(cudaStreamSynchronize, (void*))                                                      \
    X(cudaStreamBeginCapture, (void*, int))                                                \
    X(cudaStreamEndCapture, (void*, void**))                                               \
    X(cudaGraphInstantiateWithFlags, (void**, void*, unsigned long long))                  \
    X(cudaGraphDestroy, (void*))                                                           \
    X(cudaGraphExecDestroy, (void*))                                                       \
    X(cudaGraphLaunch, (void*, void*))

class Cuda {
public:
    // The process's runtime, opened by the first call. Throws EDITAR_BACKEND_FAILED, as everything here.
    static const Cuda& get();

#define EDITAR_DECLARE(name, arguments) int(*name) arguments = nullptr;  // NOLINT(bugprone-macro-parentheses)
    EDITAR_CUDA_FUNCTIONS(EDITAR_DECLARE)
#undef EDITAR_DECLARE

    void check(const char* function, int code) const;  // "CUDA: cudaFree failed with error 1 (…)"
    std::string device_name(int device) const;
    // The only device, or the one that the caller's thread has chosen; no GPU and an old driver are told apart.
    int find_device() const;
    std::string capability(int device) const;  // "8.9"
    std::string version() const;               // of the runtime: "12.6"
    std::string driver() const;                // the newest CUDA that the driver supports

private:
    const char* (*error_text_)(int) = nullptr;
    int (*properties_)(void*, int) = nullptr;
};

}  // namespace editar
