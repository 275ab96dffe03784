// libeditar_tensorrt: the table of editar_plugin.h over TensorRT and CUDA. As editar_rt/backends/engines/cuda.py and
// tensorrt_compat.py. Neither library is linked, so that a machine without them gets a sentence.
#include <cstring>
#include <exception>
#include <memory>

#include "editar_plugin.h"
#include "error.h"
#include "tensorrt/cuda.h"
#include "tensorrt/library.h"

using editar::backend_error;
using editar::Cuda;

namespace {

constexpr unsigned NON_BLOCKING = 1;  // a stream that does not wait for the default one
constexpr int RELAXED = 2;            // capture lets other threads allocate

thread_local std::string last_error;

}  // namespace

struct editar_device {
    explicit editar_device(editar::Logger::Log log) : logger(log) {}
    ~editar_device();
    editar_device(const editar_device&) = delete;
    editar_device& operator=(const editar_device&) = delete;

    const Cuda* cuda = nullptr;
    const editar::TensorRT* tensorrt = nullptr;
    editar::Logger logger;
    int index = 0;
    void* stream = nullptr;
    std::string gpu, capability, version, driver;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
#if defined(TRT_MAJOR_RTX)
    std::unique_ptr<nvinfer1::IRuntimeCache> kernels;  // for all contexts, which it outlives
    std::string saved_kernels;
    std::unique_ptr<nvinfer1::IHostMemory> serialized;
#endif
};

struct editar_recording {
    void* executable;
};

struct editar_engine {
    editar_device* device;
    std::unique_ptr<nvinfer1::ICudaEngine> engine;
};

struct editar_context {
    editar_device* device;
#if defined(TRT_MAJOR_RTX)
    std::unique_ptr<nvinfer1::IRuntimeConfig> config;  // outlives the context that it configures
#endif
    std::unique_ptr<nvinfer1::IExecutionContext> context;
};

namespace {

// Makes a device the current one of this thread, and the former one again at the end.
class Current {
public:
    explicit Current(const editar_device* device) : cuda_(*device->cuda) {
        cuda_.check("cudaGetDevice", cuda_.cudaGetDevice(&former_));
        if (former_ == device->index) former_ = -1;
        if (former_ >= 0) cuda_.check("cudaSetDevice", cuda_.cudaSetDevice(device->index));
    }
    ~Current() {
        if (former_ >= 0) cuda_.cudaSetDevice(former_);
    }
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

private:
    const Cuda& cuda_;
    int former_ = -1;
};

// Runs the body of a function of the table. Nothing is thrown past it.
template <typename Body>
int32_t guarded(const editar_device* device, Body body) noexcept {
    try {
        const Current current(device);
        body(*device->cuda);
        return 0;
    } catch (const std::exception& error) {
        try {
            last_error = error.what();
        } catch (...) {  // no memory for the message
        }
        return 1;
    }
}

const char* said() {
    return last_error.c_str();
}

// The device.

void close_device(editar_device* device) {
    delete device;
}

int32_t open_device(editar::Logger::Log log, editar_device** device, editar_device_facts* facts) {
    try {
        auto made = std::make_unique<editar_device>(log);
        made->tensorrt = &editar::TensorRT::get();
        const Cuda& cuda = Cuda::get();
        made->index = cuda.find_device();
        made->cuda = &cuda;
        made->gpu = cuda.device_name(made->index);
        made->capability = cuda.capability(made->index);
        made->version = cuda.version();
        made->driver = cuda.driver();
        cuda.check("cudaStreamCreateWithFlags", cuda.cudaStreamCreateWithFlags(&made->stream, NON_BLOCKING));
        made->runtime.reset(made->tensorrt->make_runtime(made->logger));
        if (made->runtime == nullptr)
            throw backend_error(std::string(editar::TITLE) + " " + made->tensorrt->version() +
                                " cannot start: " + made->logger.take());
        *facts = {editar::LIBRARY,      made->tensorrt->version().c_str(),
                  made->gpu.c_str(),    made->capability.c_str(),
                  editar::CAPABILITIES, made->version.c_str(),
                  made->driver.c_str()};
        *device = made.release();
        return 0;
    } catch (const std::exception& error) {
        last_error = error.what();
        return 1;
    }
}

// Memory.

int32_t allocate(editar_device* device, size_t bytes, void** address) {
    return guarded(device, [&](const Cuda& cuda) {
        const int code = cuda.cudaMalloc(address, bytes == 0 ? 1 : bytes);  // at multiples of at least 256
        if (code == editar::CUDA_OUT_OF_MEMORY) {
            size_t free_bytes = 0, total = 0;
            cuda.check("cudaMemGetInfo", cuda.cudaMemGetInfo(&free_bytes, &total));
            throw backend_error("out of memory on the GPU: " + std::to_string(bytes >> 20) +
                                " MiB are needed, but only " + std::to_string(free_bytes >> 20) + " of " +
                                std::to_string(total >> 20) +
                                " MiB are free; close other programs that use it, edit fewer pictures at once, or use "
                                "a smaller bundle");
        }
        cuda.check("cudaMalloc", code);
    });
}

void release(editar_device* device, void* address) {
    guarded(device, [&](const Cuda& cuda) { cuda.cudaFree(address); });
}

int32_t memory(editar_device* device, size_t* free_bytes, size_t* total) {
    return guarded(device,
                   [&](const Cuda& cuda) { cuda.check("cudaMemGetInfo", cuda.cudaMemGetInfo(free_bytes, total)); });
}

int32_t allocate_host(editar_device* device, size_t bytes, void** address) {
    return guarded(device, [&](const Cuda& cuda) {
        const size_t size = bytes == 0 ? 1 : bytes;
        cuda.check("cudaHostAlloc", cuda.cudaHostAlloc(address, size, 0));
        std::memset(*address, 0, size);  // not every part is written before the first copy
    });
}

void release_host(editar_device* device, void* address) {
    guarded(device, [&](const Cuda& cuda) { cuda.cudaFreeHost(address); });
}

int32_t zero(editar_device* device, void* address, size_t bytes) {
    return guarded(device, [&](const Cuda& cuda) {
        cuda.check("cudaMemsetAsync", cuda.cudaMemsetAsync(address, 0, bytes, device->stream));
    });
}

int32_t copy(editar_device* device, void* target, const void* source, size_t bytes, int kind) {
    return guarded(device, [&](const Cuda& cuda) {
        cuda.check("cudaMemcpyAsync", cuda.cudaMemcpyAsync(target, source, bytes, kind, device->stream));
    });
}

int32_t to_device(editar_device* device, void* target, const void* source, size_t bytes) {
    return copy(device, target, source, bytes, editar::TO_DEVICE);
}

int32_t to_host(editar_device* device, void* target, const void* source, size_t bytes) {
    return copy(device, target, source, bytes, editar::TO_HOST);
}

int32_t copy_lines(editar_device* device, const editar_lines* target, const editar_lines* source, size_t width,
                   size_t height, size_t depth) {
    return guarded(device, [&](const Cuda& cuda) {
        if (depth == 1) {
            cuda.check("cudaMemcpy2DAsync",
                       cuda.cudaMemcpy2DAsync(target->address, target->pitch, source->address, source->pitch, width,
                                              height, editar::ON_DEVICE, device->stream));
            return;
        }
        auto place = [&](const editar_lines& lines) {
            return editar::CudaPlace{nullptr, 0, 0, 0, lines.address, lines.pitch, width, lines.slice / lines.pitch};
        };
        const editar::CudaCopy3D described{place(*source), place(*target), width, height, depth, editar::ON_DEVICE};
        cuda.check("cudaMemcpy3DAsync", cuda.cudaMemcpy3DAsync(&described, device->stream));
    });
}

int32_t synchronize(editar_device* device) {
    return guarded(device, [&](const Cuda& cuda) {
        cuda.check("cudaStreamSynchronize", cuda.cudaStreamSynchronize(device->stream));
    });
}

// Recorded work: CUDA graphs.

int32_t begin_recording(editar_device* device) {
    return guarded(device, [&](const Cuda& cuda) {
        cuda.check("cudaStreamBeginCapture", cuda.cudaStreamBeginCapture(device->stream, RELAXED));
    });
}

int32_t end_recording(editar_device* device, editar_recording** recording) {
    return guarded(device, [&](const Cuda& cuda) {
        void *graph = nullptr, *executable = nullptr;
        cuda.check("cudaStreamEndCapture", cuda.cudaStreamEndCapture(device->stream, &graph));
        int code = 0;
        if (recording != nullptr) code = cuda.cudaGraphInstantiateWithFlags(&executable, graph, 0);
        cuda.cudaGraphDestroy(graph);
        cuda.check("cudaGraphInstantiateWithFlags", code);
        if (recording != nullptr) *recording = new editar_recording{executable};
    });
}

int32_t replay(editar_device* device, editar_recording* recording) {
    return guarded(device, [&](const Cuda& cuda) {
        cuda.check("cudaGraphLaunch", cuda.cudaGraphLaunch(recording->executable, device->stream));
    });
}

void close_recording(editar_device* device, editar_recording* recording) {
    if (recording == nullptr) return;
    guarded(device, [&](const Cuda& cuda) { cuda.cudaGraphExecDestroy(recording->executable); });
    delete recording;
}

// Engines.

int32_t load_engine(editar_device* device, const void* file, size_t bytes, editar_engine** engine) {
    return guarded(device, [&](const Cuda&) {
        auto made = std::make_unique<editar_engine>();
        made->device = device;
        made->engine.reset(device->runtime->deserializeCudaEngine(file, bytes));
        if (made->engine == nullptr) throw backend_error(device->logger.take());
        *engine = made.release();
    });
}

void close_engine(editar_engine* engine) {
    if (engine == nullptr) return;
    guarded(engine->device, [&](const Cuda&) { engine->engine.reset(); });
    delete engine;
}

int64_t scratch_bytes(const editar_engine* engine) {
    return engine->engine->getDeviceMemorySizeV2();
}

// Make the context without scratch memory; it stays null where the library cannot.
void make(editar_context& made, nvinfer1::ICudaEngine& engine) {
    constexpr auto users = nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED;
#if defined(TRT_MAJOR_RTX)
    editar_device& device = *made.device;
    made.config.reset(engine.createRuntimeConfig());
    if (made.config == nullptr) return;
    made.config->setExecutionContextAllocationStrategy(users);
    // Kernels for a shape are compiled before its first run: later, they would change under a recorded one.
    made.config->setDynamicShapesKernelSpecializationStrategy(
        nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
    if (device.kernels == nullptr) {
        device.kernels.reset(made.config->createRuntimeCache());
        if (device.kernels != nullptr && !device.saved_kernels.empty())  // what does not fit this machine is ignored
            device.kernels->deserialize(device.saved_kernels.data(), device.saved_kernels.size());
    }
    if (device.kernels != nullptr) made.config->setRuntimeCache(*device.kernels);
    made.context.reset(engine.createExecutionContext(made.config.get()));
#else
    made.context.reset(engine.createExecutionContext(users));
#endif
}

bool is_open(const nvinfer1::Dims& shape) {
    for (int n = 0; n < shape.nbDims; ++n)
        if (shape.d[n] < 0) return true;
    return false;
}

int32_t open_context(editar_engine* engine, int32_t profile, const editar_shape* shapes, size_t count, void* scratch,
                     int64_t scratch_size, editar_context** context) {
    return guarded(engine->device, [&](const Cuda&) {
        editar_device& device = *engine->device;
        auto made = std::make_unique<editar_context>();
        made->device = &device;
        make(*made, *engine->engine);
        if (made->context == nullptr) throw backend_error(device.logger.take());
        if (scratch != nullptr) made->context->setDeviceMemoryV2(scratch, scratch_size);
        auto must = [&](bool done) {
            if (!done) throw backend_error(device.logger.take());
        };
        if (engine->engine->getNbOptimizationProfiles() > 1)
            must(made->context->setOptimizationProfileAsync(profile, static_cast<cudaStream_t>(device.stream)));
        bool open = false;
        for (size_t n = 0; n < count; ++n) open = open || is_open(engine->engine->getTensorShape(shapes[n].name));
        for (size_t n = 0; open && n < count; ++n) {
            nvinfer1::Dims dims{};
            if (shapes[n].rank > nvinfer1::Dims::MAX_DIMS) throw backend_error("a tensor has too many dimensions");
            dims.nbDims = shapes[n].rank;
            for (int axis = 0; axis < dims.nbDims; ++axis) dims.d[axis] = shapes[n].sizes[axis];
            must(made->context->setInputShape(shapes[n].name, dims));
        }
        *context = made.release();
    });
}

void close_context(editar_context* context) {
    if (context == nullptr) return;
    guarded(context->device, [&](const Cuda&) { context->context.reset(); });
    delete context;
}

int32_t bind(editar_context* context, const char* name, void* address) {
    if (context->context->setTensorAddress(name, address)) return 0;
    return guarded(context->device, [&](const Cuda&) { throw backend_error(context->device->logger.take()); });
}

int32_t enqueue(editar_context* context) {
    return guarded(context->device, [&](const Cuda&) {
        if (!context->context->enqueueV3(static_cast<cudaStream_t>(context->device->stream)))
            throw backend_error(context->device->logger.take());
    });
}

// Compiled kernels.

int32_t set_kernels(editar_device* device, const void* kernels, size_t bytes) {
    return guarded(device, [&](const Cuda&) {
#if defined(TRT_MAJOR_RTX)
        device->saved_kernels.assign(static_cast<const char*>(kernels), bytes);
#else
        (void)kernels;
        (void)bytes;
#endif
    });
}

int32_t get_kernels(editar_device* device, const void** kernels, size_t* bytes) {
    *kernels = nullptr;
    *bytes = 0;
    return guarded(device, [&](const Cuda&) {
#if defined(TRT_MAJOR_RTX)
        if (device->kernels != nullptr) device->serialized.reset(device->kernels->serialize());
        if (device->serialized == nullptr) return;
        *kernels = device->serialized->data();
        *bytes = device->serialized->size();
#endif
    });
}

constexpr editar_plugin TABLE = {
    EDITAR_PLUGIN_VERSION, said,          open_device, close_device,    allocate,    release,      memory,
    allocate_host,         release_host,  zero,        to_device,       to_host,     copy_lines,   synchronize,
    begin_recording,       end_recording, replay,      close_recording, load_engine, close_engine, scratch_bytes,
    open_context,          close_context, bind,        enqueue,         set_kernels, get_kernels,
};

}  // namespace

editar_device::~editar_device() {
    if (cuda == nullptr) return;
    guarded(this, [this](const Cuda& functions) {
#if defined(TRT_MAJOR_RTX)
        serialized.reset();
        kernels.reset();
#endif
        runtime.reset();
        if (stream != nullptr) functions.cudaStreamDestroy(stream);
    });
}

#if defined(_WIN32)
#define EDITAR_EXPORT __declspec(dllexport)
#else
#define EDITAR_EXPORT __attribute__((visibility("default")))
#endif

extern "C" EDITAR_EXPORT const editar_plugin* editar_plugin_table(uint32_t version) {
    return version == EDITAR_PLUGIN_VERSION ? &TABLE : nullptr;
}
