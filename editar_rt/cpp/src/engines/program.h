// An engine with its buffers on host and device: editar_rt/backends/engines/program.py.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engines/engines.h"
#include "sampler_inputs.h"

namespace editar {

// The layout of tensors in one block of bytes, each at an aligned offset.
class Block {
public:
    struct Place {
        std::string name, dtype;
        std::vector<int64_t> shape;
        size_t offset, bytes;
    };

    Block(const EngineShape& shape, const std::vector<const TensorInfo*>& tensors);
    const std::vector<Place>& places() const { return places_; }
    const Place* find(std::string_view name) const;  // null if it is in another block
    const Place& at(std::string_view name) const;    // throws EDITAR_BAD_BUNDLE
    // Reject a tensor of another shape or type: EDITAR_BAD_BUNDLE.
    void check(std::string_view name, const std::vector<int64_t>& shape, const char* dtype) const;
    size_t size() const { return size_; }

private:
    std::vector<Place> places_;
    size_t size_ = 0;
};

// On each side, the inputs form one block and are copied together. The decoder's prefix and the sampler's noise are
// last: most runs omit them.
class Program {
public:
    // lent: addresses of inputs that are another program's outputs.
    Program(Engines& engines, const EngineShape& shape, const std::map<std::string, void*>& lent);

    const EngineShape& shape() const { return shape_; }
    const EngineContext& context() const { return *context_; }
    void* address(std::string_view name) const;  // on the device
    // Arrays on the host, of an input or of an output that is copied to it.
    template <typename T>
    T* input(std::string_view name) const {
        return reinterpret_cast<T*>(sent_->at(in_.at(name).offset));
    }
    template <typename T>
    const T* output(std::string_view name) const {
        return reinterpret_cast<const T*>(received_->at(returned_.at(name).offset));
    }
    bool has_input(std::string_view name) const { return in_.find(name) != nullptr; }
    const Block& inputs() const { return in_; }
    const Block& outputs() const { return returned_; }  // that are copied to the host
    const Block& all_outputs() const { return out_; }

    void* received(const Block::Place& output) const { return received_->at(output.offset); }
    // Set a sampler's inputs, for all of its rows.
    void set_inputs(const SamplerInputs& inputs);

    // Queue the inputs' copy to the device. last: include the prefix or the noise; otherwise its value there stays.
    void upload(bool last = true) const;
    // Queue the copy of the outputs to the host, except the new keys and values.
    void download() const;

    int passes = 0;      // number of times that inputs were set for a step
    bool noisy = false;  // whether a sampler's noise is set, so that it must be copied too

private:
    const Device& device_;
    EngineShape shape_;
    std::unique_ptr<EngineContext> context_;
    Block in_, out_, returned_;
    std::unique_ptr<Memory> in_memory_, out_memory_, sent_, received_;
    size_t first_bytes_;  // of the inputs before the last
};

}  // namespace editar
