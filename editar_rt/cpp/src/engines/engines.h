// The engines of a bundle on one device: editar_rt/backends/engines/tensorrt.py.
//
// Every engine has one context. All contexts share one block of scratch memory, because they run one after the other on
// one stream.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "bundle.h"
#include "engines/device.h"
#include "engines/folder.h"
#include "engines/kept_kernels.h"
#include "engines/plan.h"
#include "engines/trial.h"

namespace editar {

// An engine with addresses.
class EngineContext {
public:
    EngineContext(const Device& device, std::string file, editar_context* context)
        : device_(device), file_(std::move(file)), context_(context) {}
    ~EngineContext() { device_.plugin().close_context(context_); }
    EngineContext(const EngineContext&) = delete;
    EngineContext& operator=(const EngineContext&) = delete;
    void bind(const std::string& name, void* address) const;
    void enqueue() const;  // queue one pass

private:
    const Device& device_;
    std::string file_;
    editar_context* context_;
};

class Engines {
public:
    // The device of a bundle's first folder of engines that were built for this machine. All throw
    // EDITAR_BACKEND_FAILED. named: the only folder to try; "" tries all. cache: the folder for compiled kernels; ""
    // keeps none.
    static std::unique_ptr<Engines> open(const Bundle& bundle, const editar_plugin& plugin, const std::string& named,
                                         const std::string& cache);
    ~Engines();
    Engines(const Engines&) = delete;
    Engines& operator=(const Engines&) = delete;

    const Bundle& bundle() const { return bundle_; }
    const Device& device() const { return *device_; }
    const BuildInfo& info() const { return info_; }
    Trial& trial() { return trial_; }
    const std::string& folder() const { return folder_; }
    std::string name() const;  // for users: "TensorRT 10.15.1.29 (Orin)"
    std::string rebuild() const { return rebuild_command(bundle_, info_.target); }
    // The context of a shape; its engine is loaded on first use.
    std::unique_ptr<EngineContext> context(const EngineShape& shape);

private:
    Engines(const Bundle& bundle, std::unique_ptr<Device> device, std::string folder, BuildInfo info, Trial trial,
            const std::string& cache);
    editar_engine* loaded(const std::string& file);

    const Bundle& bundle_;
    std::unique_ptr<Device> device_;
    std::string folder_;
    BuildInfo info_;
    Trial trial_;
    std::unique_ptr<KeptKernels> kernels_;          // where the library compiles on the machine
    std::map<std::string, editar_engine*> loaded_;  // by file
    std::unique_ptr<Memory> scratch_;
    int64_t scratch_bytes_ = 0;
};

}  // namespace editar
