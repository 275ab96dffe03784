// In place of TensorRT's header, for tests without it: of the classes that the plug-in uses, the members that it uses,
// with the names, arguments and results of NVIDIA's documentation. NVIDIA's classes are laid out otherwise, so that a
// plug-in compiled with this header runs over the stand-in of these tests alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda_runtime_api.h"
#if !defined(NV_TENSORRT_MAJOR)
#include "NvInferVersion.h"
#endif

#define NV_TENSORRT_VERSION (NV_TENSORRT_MAJOR * 10000L + NV_TENSORRT_MINOR * 100L + NV_TENSORRT_PATCH)

namespace nvinfer1 {

class Dims64 {
public:
    static constexpr int32_t MAX_DIMS{8};
    int32_t nbDims;
    int64_t d[MAX_DIMS];
};
using Dims = Dims64;

class ILogger {
public:
    enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
    virtual void log(Severity severity, char const* msg) noexcept = 0;
    virtual ~ILogger() = default;
};

enum class ExecutionContextAllocationStrategy : int32_t { kSTATIC = 0, kON_PROFILE_CHANGE = 1, kUSER_MANAGED = 2 };

class IHostMemory {
public:
    virtual ~IHostMemory() noexcept = default;
    virtual void* data() const noexcept = 0;
    virtual std::size_t size() const noexcept = 0;
};

class IExecutionContext {
public:
    virtual ~IExecutionContext() noexcept = default;
    virtual void setDeviceMemoryV2(void* memory, int64_t size) noexcept = 0;
    virtual bool setInputShape(char const* tensorName, Dims const& dims) noexcept = 0;
    virtual bool setOptimizationProfileAsync(int32_t profileIndex, cudaStream_t stream) noexcept = 0;
    virtual bool setTensorAddress(char const* tensorName, void* data) noexcept = 0;
    virtual bool enqueueV3(cudaStream_t stream) noexcept = 0;
};

#if defined(TRT_MAJOR_RTX)
enum class DynamicShapesKernelSpecializationStrategy : int32_t { kLAZY = 0, kEAGER = 1, kNONE = 2 };

class IRuntimeCache {
public:
    virtual ~IRuntimeCache() noexcept = default;
    virtual IHostMemory* serialize() const noexcept = 0;
    virtual bool deserialize(void const* blob, std::size_t size) noexcept = 0;
};

class IRuntimeConfig {
public:
    virtual ~IRuntimeConfig() noexcept = default;
    virtual void setExecutionContextAllocationStrategy(ExecutionContextAllocationStrategy strategy) noexcept = 0;
    virtual IRuntimeCache* createRuntimeCache() const noexcept = 0;
    virtual bool setRuntimeCache(IRuntimeCache const& cache) noexcept = 0;
    virtual void setDynamicShapesKernelSpecializationStrategy(
        DynamicShapesKernelSpecializationStrategy strategy) noexcept = 0;
};
#endif

class ICudaEngine {
public:
    virtual ~ICudaEngine() noexcept = default;
    virtual Dims getTensorShape(char const* tensorName) const noexcept = 0;
    virtual int64_t getDeviceMemorySizeV2() const noexcept = 0;
    virtual int32_t getNbOptimizationProfiles() const noexcept = 0;
#if defined(TRT_MAJOR_RTX)
    virtual IRuntimeConfig* createRuntimeConfig() noexcept = 0;
    virtual IExecutionContext* createExecutionContext(IRuntimeConfig* runtimeConfig) noexcept = 0;
#else
    virtual IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept = 0;
#endif
};

class IRuntime {
public:
    virtual ~IRuntime() noexcept = default;
    virtual ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept = 0;
};

}  // namespace nvinfer1
