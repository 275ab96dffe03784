// ONNX Runtime's CUDA provider, with buffers on the device: editar_rt/backends/ort/cuda_provider.py.
//
// ONNX Runtime reports the provider as available if it was compiled in, whatever is missing on the machine. Therefore a
// session with one operator is opened and run first. It also copies between two addresses, for which this API has no
// function.
#include "error.h"
#include "ort/ort_backend.h"

namespace editar {

namespace {

// An ONNX graph of Identity, uint8 [n] source -> target.
constexpr unsigned char COPY[] =
    "\x08\x08:J\n\x1a\n\x06source\x12\x06target\x22\x08Identity\x12\x04"
    "copyZ\x12\n\x06source\x12\x08\n\x06"
    "\x08\x02\x12\x02\n\x00"
    "b\x12\n\x06target\x12\x08\n\x06\x08\x02\x12\x02\n\x00"
    "B\x04\n\x00\x10\x11";

}  // namespace

void CudaCopier::append(const OnnxRuntime& ort, OrtSessionOptions* options) {
    const OrtApi& api = ort.api();
    OrtCUDAProviderOptionsV2* cuda = nullptr;
    std::string reason = ort.said(api.CreateCUDAProviderOptions(&cuda));
    if (reason.empty()) {
        // TF32 is on by default: float32 matmuls with inputs rounded to 10 bits of mantissa.
        const char *name = "use_tf32", *value = "0";
        reason = ort.said(api.UpdateCUDAProviderOptions(cuda, &name, &value, 1));
        if (reason.empty()) reason = ort.said(api.SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda));
        api.ReleaseCUDAProviderOptions(cuda);
    }
    if (!reason.empty())
        throw backend_error("ONNX Runtime " + ort.version() + " does not run on CUDA here (" + reason +
                            "); install its build for CUDA with the driver, CUDA and cuDNN, or choose device cpu");
}

CudaCopier::CudaCopier(const OnnxRuntime& ort) : ort_(ort) {
    const OrtApi& api = ort.api();
    OrtSessionOptions* options = nullptr;
    ort.check(api.CreateSessionOptions(&options), "copy");
    const SessionOptionsPtr held = own(ort, options);
    ort.check(api.SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_FATAL), "copy");
    append(ort, options);
    OrtSession* session = nullptr;
    const std::string reason =
        ort.said(api.CreateSessionFromArray(ort.env(), COPY, sizeof COPY - 1, options, &session));
    if (!reason.empty()) throw backend_error("CUDA does not work here: " + reason);
    session_ = own(ort, session);
    OrtMemoryInfo* memory = nullptr;
    ort.check(api.CreateMemoryInfo("Cuda", OrtArenaAllocator, 0, OrtMemTypeDefault, &memory), "copy");
    memory_ = own(ort, memory);
    ort.check(api.CreateAllocator(session, memory, &allocator_), "copy");
    uint8_t byte = 0;
    void* target = allocator_->Alloc(allocator_, 1);
    if (target == nullptr) throw backend_error("CUDA does not work here: the device gives no memory");
    copy(&byte, target, 1, true);
    allocator_->Free(allocator_, target);
}

CudaCopier::~CudaCopier() {
    if (allocator_ != nullptr) ort_.api().ReleaseAllocator(allocator_);
}

void CudaCopier::copy(const void* source, void* target, size_t bytes, bool from_cpu) const {
    const OrtApi& api = ort_.api();
    const auto size = static_cast<int64_t>(bytes);
    OrtIoBinding* binding = nullptr;
    ort_.check(api.CreateIoBinding(session_.get(), &binding), "copy");
    const IoBindingPtr held = own(ort_, binding);
    const ValuePtr from = own(ort_, ort_.value(const_cast<void*>(source), bytes, &size, 1,
                                               ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, from_cpu ? nullptr : memory()));
    const ValuePtr to = own(ort_, ort_.value(target, bytes, &size, 1, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, memory()));
    ort_.check(api.BindInput(binding, "source", from.get()), "copy");
    ort_.check(api.BindOutput(binding, "target", to.get()), "copy");
    ort_.check(api.RunWithBinding(session_.get(), nullptr, binding), "copy");
}

}  // namespace editar
