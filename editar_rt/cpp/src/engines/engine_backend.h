// Runs bundles of the dialects delta and native through engines of fixed shapes: editar_rt/backends/engines/backend.py.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "backend.h"
#include "engines/program.h"

namespace editar {

class EngineBackend : public Backend {
public:
    // plan: the engines to use, of those that the folder has.
    EngineBackend(std::shared_ptr<Engines> engines, Plan plan);

    std::string name() const override;
    std::string device() const override { return "tensorrt"; }
    double read_bandwidth() override;
    int64_t memory_in_use() const override;
    std::vector<std::pair<int, int>> samplers() const override;
    std::vector<int32_t> sample(const float* logits, const SamplerInputs& inputs) override;
    std::vector<Array> run(std::string_view part, const std::vector<Feed>& inputs) override;
    std::unique_ptr<Decoder> make_decoder(int rows, int capacity) override;

    const Manifest& manifest() const { return engines_->bundle().manifest(); }
    const Device& machine() const { return engines_->device(); }
    const Plan& plan() const { return plan_; }
    // The manifest's description of a part. Throws EDITAR_MISSING_PART.
    const PartInfo& part(const std::string& name) const;
    int capacity() const;  // positions of a row of the decoder's cache
    // An engine with its buffers, created on first use.
    Program& program(const EngineShape& shape);

    std::string uncaptured;  // why steps are not recorded; "" if they are, or if none has run yet

private:
    std::shared_ptr<Engines> engines_;
    Plan plan_;
    std::map<EngineShape, std::unique_ptr<Program>> programs_;
};

// The backend of a bundle whose graphs have fixed shapes. `plugin_path`: of the library that runs engines; "" tries
// beside this library, and the system's. `engines`: the folder of engines in the bundle; "" tries all. `cache`: the
// folder for compiled kernels; "" keeps none.
std::unique_ptr<Backend> open_engine_backend(const Bundle& bundle, const std::string& plugin_path,
                                             const std::string& engines, const std::string& cache);

}  // namespace editar
