#include "engines/engine_backend.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "engines/engine_decoder.h"
#include "engines/gate.h"
#include "error.h"
#include "facts.h"

namespace editar {

namespace {

constexpr size_t COPIED_BYTES = size_t{256} << 20;  // far more than a device's caches hold
constexpr int PASSES = 3;

}  // namespace

EngineBackend::EngineBackend(std::shared_ptr<Engines> engines, Plan plan)
    : engines_(std::move(engines)), plan_(std::move(plan)) {}

std::string EngineBackend::name() const {
    return engines_->name() + (uncaptured.empty() ? "" : "; steps are not captured: " + uncaptured);
}

const PartInfo& EngineBackend::part(const std::string& name) const {
    const PartInfo* found = manifest().part(name);
    if (found != nullptr) return *found;
    std::string held;
    for (const auto& each : manifest().parts) held += (held.empty() ? "" : ", ") + each.first;
    throw missing_part("the bundle " + engines_->bundle().folder() + " has no part " + name + "; its parts are " +
                       (held.empty() ? "nothing" : held));
}

int EngineBackend::capacity() const {
    const TensorInfo* past = part(facts::DECODER).input(facts::PAST_KEY + std::string("0"));
    if (past == nullptr || past->shape.size() != 4 || past->shape[2] < 1 || past->shape[2] > INT32_MAX)
        throw bundle_error("the cache of the bundle's decoder has no positions; export the bundle again");
    return static_cast<int>(past->shape[2]);
}

Program& EngineBackend::program(const EngineShape& shape) {
    part(shape.part);
    std::unique_ptr<Program>& found = programs_[shape];
    if (found == nullptr) {
        std::map<std::string, void*> lent;
        if (shape.part == facts::SAMPLER)
            lent[facts::LOGITS] = program({facts::DECODER, shape.rows, shape.positions}).address(facts::LOGITS);
        found = std::make_unique<Program>(*engines_, shape, lent);
    }
    return *found;
}

// By copies on the device: every byte is read and written, and both count.
double EngineBackend::read_bandwidth() {
    const Memory block(machine(), 2 * COPIED_BYTES, false);
    auto fastest = [&](size_t size) {
        double best = 1e9;
        for (int pass = 0; pass <= PASSES; ++pass) {
            const auto begun = std::chrono::steady_clock::now();
            machine().copy_lines({block.at(COPIED_BYTES), size, size}, {block.at(0), size, size}, size, 1, 1);
            machine().synchronize();
            best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count());
        }
        return best;
    };
    const double seconds = fastest(COPIED_BYTES) - fastest(1);  // without the overhead of a call
    return seconds > 0 ? 2 * static_cast<double>(COPIED_BYTES) / seconds : 0;
}

int64_t EngineBackend::memory_in_use() const {
    size_t free_bytes = 0, total = 0;
    machine().check(machine().plugin().memory(machine().handle(), &free_bytes, &total));
    return static_cast<int64_t>(total - free_bytes);
}

std::vector<std::pair<int, int>> EngineBackend::samplers() const {
    return manifest().part(facts::SAMPLER) == nullptr ? std::vector<std::pair<int, int>>() : plan_.sampled();
}

std::vector<int32_t> EngineBackend::sample(const float* logits, const SamplerInputs& inputs) {
    const int rows = inputs.rows(), positions = inputs.positions();
    Program& decoder = program({facts::DECODER, rows, positions});
    Program& sampler = program({facts::SAMPLER, rows, positions});
    decoder.outputs().check(facts::LOGITS, {rows, positions, manifest().model.vocab_size}, "float32");
    const Block::Place& place = decoder.outputs().at(facts::LOGITS);
    std::memcpy(decoder.received(place), logits, place.bytes);
    machine().to_device(decoder.address(facts::LOGITS), decoder.received(place), place.bytes);
    sampler.set_inputs(inputs);
    sampler.upload();
    sampler.context().enqueue();
    sampler.download();
    machine().synchronize();
    const auto* drawn = sampler.output<int32_t>(facts::sampler::DRAWN);
    return {drawn, drawn + inputs.numbers.size()};
}

std::vector<Array> EngineBackend::run(std::string_view part, const std::vector<Feed>& inputs) {
    const std::string name(part);
    Program& program = this->program({name, 1, 1});
    const PartInfo& described = this->part(name);
    // The loop runs the parts for one picture.
    for (const Feed& feed : inputs) {
        const Block::Place* place = program.inputs().find(feed.name);
        size_t bytes = 4;  // float32 and int32
        for (int64_t size : feed.shape) bytes *= static_cast<size_t>(size);
        if (place == nullptr || bytes != place->bytes)
            throw bundle_error("the part " + name + " takes another " + std::string(feed.name) +
                               " than the manifest's sizes say; export the bundle again");
        std::memcpy(program.input<char>(feed.name), feed.data, bytes);
    }
    program.upload();
    program.context().enqueue();
    program.download();
    machine().synchronize();
    std::vector<Array> arrays;
    for (const TensorInfo& tensor : described.outputs) {
        const Block::Place* place = program.outputs().find(tensor.name);
        Array array;
        array.name = tensor.name;
        array.shape = place->shape;
        if (tensor.dtype == "float32") {
            const auto* values = program.output<float>(tensor.name);
            array.floats.assign(values, values + place->bytes / sizeof(float));
        } else if (tensor.dtype == "int32") {
            const auto* values = program.output<int32_t>(tensor.name);
            array.ints.assign(values, values + place->bytes / sizeof(int32_t));
        } else {
            throw bundle_error("the part " + name + " returns " + tensor.name +
                               " in a type that is neither float32 nor int32; export the bundle again");
        }
        arrays.push_back(std::move(array));
    }
    return arrays;
}

std::unique_ptr<Decoder> EngineBackend::make_decoder(int rows, int capacity) {
    return std::make_unique<EngineDecoder>(*this, rows, capacity);
}

std::unique_ptr<Backend> open_engine_backend(const Bundle& bundle, const std::string& plugin_path,
                                             const std::string& engines, const std::string& cache) {
    std::shared_ptr<Engines> opened = Engines::open(bundle, open_plugin_table(plugin_path), engines, cache);
    if (opened->trial().is_needed()) try_engines(opened);
    return std::make_unique<EngineBackend>(opened, opened->info().plan);
}

}  // namespace editar
