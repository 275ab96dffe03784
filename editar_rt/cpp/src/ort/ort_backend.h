// ONNX Runtime on the CPU or a CUDA device: one session per part, opened on first use.
#pragma once

#include <map>
#include <string>

#include "backend.h"
#include "bundle.h"
#include "ort/library.h"

namespace editar {

struct OrtSettings {
    std::string device = "auto";  // "auto", "cpu" or "cuda"
    int threads = 0;              // 0 is thread_count()
    const char* engine_path = nullptr;
    std::string cache;  // folder for prepacked weights; "" is none
};

class CudaCopier;

class OrtBackend : public Backend {
public:
    OrtBackend(const Bundle& bundle, const OrtSettings& settings);
    ~OrtBackend() override;

    std::string name() const override;
    std::string device() const override { return cuda_ ? "cuda" : "cpu"; }
    int64_t shared_bytes() const override;
    std::vector<Array> run(std::string_view part, const std::vector<Feed>& inputs) override;
    std::unique_ptr<Decoder> make_decoder(int rows, int capacity) override;

    // The session of a part, opened on first use; of the decoder, that of `decoder_part`.
    OrtSession* session(std::string_view part);
    // The decoder's graph to open: the one that also runs chunks of several rows, where there is one.
    const char* decoder_part() const;
    const OnnxRuntime& ort() const { return ort_; }
    const Bundle& bundle() const { return bundle_; }
    const CudaCopier* cuda() const { return cuda_.get(); }  // null on the CPU

    SessionPtr open(const std::string& graph, SessionOptionsPtr options);
    SessionOptionsPtr make_options() const;

private:
    const Bundle& bundle_;
    OnnxRuntime& ort_;
    OrtSettings settings_;
    std::unique_ptr<CudaCopier> cuda_;
    std::string why_cpu_;
    struct Open {
        SessionPtr session;
        std::vector<std::string> weights, outputs;
    };
    std::map<std::string, Open, std::less<>> sessions_;
};

// Graphs on a CUDA device, and copies inside it.
class CudaCopier {
public:
    // Throws EDITAR_BACKEND_FAILED where the provider is missing or does not work here.
    explicit CudaCopier(const OnnxRuntime& ort);
    ~CudaCopier();
    CudaCopier(const CudaCopier&) = delete;
    CudaCopier& operator=(const CudaCopier&) = delete;
    // Copy bytes between two addresses; a source on the CPU where `from_cpu`.
    void copy(const void* source, void* target, size_t bytes, bool from_cpu = false) const;
    const OrtMemoryInfo* memory() const { return memory_.get(); }
    OrtAllocator* allocator() const { return allocator_; }
    static void append(const OnnxRuntime& ort, OrtSessionOptions* options);

private:
    const OnnxRuntime& ort_;
    MemoryInfoPtr memory_;
    SessionPtr session_;
    OrtAllocator* allocator_ = nullptr;
};

// The graph of a part with weights prepacked for this machine, which is written if it does not exist yet; "" if that is
// not worthwhile or cannot be done (the reason is logged).
std::string prepacked(OrtBackend& backend, const std::string& root, const std::string& part);
std::string prepacked_weights(const std::string& graph);  // the file with a stored graph's weights
void forget_prepacked(const std::string& graph);          // remove a stored graph that does not open

}  // namespace editar
