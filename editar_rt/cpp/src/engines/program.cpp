#include "engines/program.h"

#include <algorithm>
#include <cstring>

#include "error.h"
#include "facts.h"

namespace editar {

namespace {

bool begins(const std::string& name, const char* beginning) {
    return name.rfind(beginning, 0) == 0;
}

bool is_past(const std::string& name) {
    return begins(name, facts::PAST_KEY) || begins(name, facts::PAST_VALUE);
}

bool is_present(const std::string& name) {
    return begins(name, facts::PRESENT_KEY) || begins(name, facts::PRESENT_VALUE);
}

bool is_last(std::string_view name) {
    return name == facts::PREFIX || name == facts::sampler::NOISE;
}

std::vector<const TensorInfo*> own_inputs(const PartInfo& part, const std::map<std::string, void*>& lent) {
    std::vector<const TensorInfo*> all;
    for (bool last : {false, true})
        for (const TensorInfo& tensor : part.inputs)
            if (is_last(tensor.name) == last && lent.count(tensor.name) == 0 && !is_past(tensor.name))
                all.push_back(&tensor);
    return all;
}

std::vector<const TensorInfo*> own_outputs(const PartInfo& part, bool with_new_rows) {
    std::vector<const TensorInfo*> all;
    for (const TensorInfo& tensor : part.outputs)
        if (!is_present(tensor.name) && (with_new_rows || tensor.name != facts::NEW_ROWS)) all.push_back(&tensor);
    return all;
}

const PartInfo& part_of(const Engines& engines, const EngineShape& shape) {
    return *engines.bundle().manifest().part(shape.part);
}

}  // namespace

Block::Block(const EngineShape& shape, const std::vector<const TensorInfo*>& tensors) {
    constexpr size_t alignment = facts::engines::ALIGNMENT;
    for (const TensorInfo* tensor : tensors) {
        Place place{tensor->name, tensor->dtype, shape.of(*tensor), size_, 0};
        place.bytes = bytes_of(*tensor, place.shape);
        size_ += (place.bytes + alignment - 1) / alignment * alignment;
        places_.push_back(std::move(place));
    }
}

const Block::Place* Block::find(std::string_view name) const {
    for (const Place& place : places_)
        if (place.name == name) return &place;
    return nullptr;
}

const Block::Place& Block::at(std::string_view name) const {
    const Place* found = find(name);
    if (found == nullptr)
        throw bundle_error("a part of the bundle lacks the tensor " + std::string(name) + "; export the bundle again");
    return *found;
}

void Block::check(std::string_view name, const std::vector<int64_t>& shape, const char* dtype) const {
    const Place& place = at(name);
    if (place.shape != shape || place.dtype != dtype)
        throw bundle_error("the tensor " + place.name +
                           " of a part has another shape or type than the model's sizes say; export the bundle again");
}

Program::Program(Engines& engines, const EngineShape& shape, const std::map<std::string, void*>& lent)
    : device_(engines.device()),
      shape_(shape),
      context_(engines.context(shape)),
      in_(shape, own_inputs(part_of(engines, shape), lent)),
      out_(shape, own_outputs(part_of(engines, shape), true)),
      returned_(shape, own_outputs(part_of(engines, shape), false)),
      in_memory_(std::make_unique<Memory>(device_, in_.size(), false)),
      out_memory_(std::make_unique<Memory>(device_, out_.size(), false)),
      sent_(std::make_unique<Memory>(device_, in_.size(), true)),
      received_(std::make_unique<Memory>(device_, returned_.size(), true)),
      first_bytes_(in_.size()) {
    for (const Block::Place& place : in_.places()) {
        if (is_last(place.name)) first_bytes_ = std::min(first_bytes_, place.offset);
        context_->bind(place.name, in_memory_->at(place.offset));
    }
    for (const Block::Place& place : out_.places()) context_->bind(place.name, out_memory_->at(place.offset));
    for (const auto& [name, address] : lent) context_->bind(name, address);
    if (has_input(facts::LOGIT_POSITIONS))
        for (int n = 0; n < shape.positions; ++n) input<int32_t>(facts::LOGIT_POSITIONS)[n] = n;
    upload();
    device_.synchronize();
}

void* Program::address(std::string_view name) const {
    if (const Block::Place* place = out_.find(name)) return out_memory_->at(place->offset);
    return in_memory_->at(in_.at(name).offset);
}

void Program::set_inputs(const SamplerInputs& inputs) {
    namespace names = facts::sampler;
    const int64_t rows = inputs.rows(), positions = inputs.positions();
    auto set = [&](const char* name, const auto& values, const std::vector<int64_t>& shape, const char* dtype) {
        if (passes == 0) in_.check(name, shape, dtype);  // the manifest may say anything
        std::memcpy(input<char>(name), values.data(), values.size() * sizeof values[0]);
    };
    set(names::NULL_ROWS, inputs.uncond_rows, {rows}, "int32");
    set(names::NUMBERS, inputs.numbers, {rows, positions}, "float32");
    set(names::CFG_SCALE, inputs.cfg_scale, {rows, positions}, "float32");
    set(names::TEMPERATURE, inputs.temperature, {rows, positions}, "float32");
    set(names::TOP_K, inputs.top_k, {rows, positions}, "int32");
    set(names::TOP_P, inputs.top_p, {rows, positions}, "float32");
    if (passes == 0) returned_.check(names::DRAWN, {rows, positions}, "int32");
    noisy = !inputs.noise.empty();
    if (noisy) {
        const auto vocabulary = static_cast<int64_t>(inputs.noise.size() / inputs.numbers.size());
        in_.check(names::NOISE, {rows, positions, vocabulary}, "float32");
        std::memcpy(input<char>(names::NOISE), inputs.noise.data(), inputs.noise.size() * sizeof(float));
    }
    ++passes;
}

void Program::upload(bool last) const {
    device_.to_device(in_memory_->at(0), sent_->at(0), last ? in_.size() : first_bytes_);
}

void Program::download() const {
    for (const Block::Place& place : returned_.places())
        device_.to_host(received_->at(place.offset), out_memory_->at(out_.find(place.name)->offset), place.bytes);
}

}  // namespace editar
