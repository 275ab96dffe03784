// The decoder on ONNX Runtime, with a KV cache that the graph updates in place.
//
// The graph runs through an IoBinding, with past and present of the cache bound to the same memory. The inputs and
// logits of a step are arrays that stay bound. A step of several contiguous rows is one run; GroupQueryAttention
// accepts chunks after a past for one row only, so chunks run row by row.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "backend.h"
#include "facts.h"
#include "ort/ort_backend.h"
#include "ort/rows.h"

namespace editar {

class OrtDecoder : public Decoder {
public:
    OrtDecoder(OrtBackend& backend, int rows, int capacity);
    ~OrtDecoder() override;

    int piece() const override;
    int runs(int rows, int positions) const override { return positions == 1 || takes_chunks(positions) ? 1 : rows; }
    DraftChunks draft_chunks() const override;
    const float* run(const Batch& batch) override;
    void copy(int source, int target, int start, int stop, bool frozen) override;
    void release(int row) override { filled_[row + spare_] = 0; }

private:
    // Contiguous rows with past and present bound, and arrays of the other inputs.
    struct Bound {
        IoBindingPtr binding;
        std::vector<ValuePtr> cache;  // keeps the bound values alive
        std::map<std::string_view, ValuePtr> inputs;
        ValuePtr output;
        std::vector<int32_t> tokens, past, last, positions, lengths;
        int32_t total = 0;
        std::vector<float> logits;
    };
    using Rows = std::pair<int, int>;         // first row, number of rows
    using Shape = std::tuple<int, int, int>;  // and number of positions

    void reserve(int positions);
    Bound bind(int first_row, int rows);
    void set_input(Bound& bound, std::string_view name, const void* data, std::vector<int64_t> shape, Type type);
    void set_output(Bound& bound, int rows, int outputs);
    void run_bound(Bound& bound, bool gives_back);
    bool takes_chunks(int positions) const;
    const float* step(int first, int count, const int32_t* tokens, const int32_t* past, const float* states);
    const float* repeated(int first_row, int rows, int positions, const int32_t* tokens, const int32_t* past,
                          const float* states);
    const float* once(int first_row, int rows, int positions, int outputs, const int32_t* tokens, const int32_t* past,
                      const float* states);
    void chunk(const Batch& batch, int place, float* logits);
    int adjacent(int first, int count) const;

    OrtBackend& backend_;
    const OnnxRuntime& ort_;
    OrtSession* session_;
    ONNXTensorElementDataType type_;
    bool pairs_;  // whether an odd number of rows would run in a kernel that rounds differently
    bool like_steps_;
    int spare_, rows_, capacity_, room_, growth_;
    int layers_, heads_, vocab_, dim_;
    size_t position_bytes_;
    int allocated_ = 0;
    std::vector<int32_t> filled_;  // end of each row's contents; 0 if they are not needed
    std::unique_ptr<RowBuffers> buffers_;
    std::vector<void*> device_;  // on CUDA, in their place
    size_t row_bytes_ = 0;
    std::set<std::string, std::less<>> wanted_;
    std::vector<float> no_states_;
    std::map<Rows, Bound> bindings_;
    std::map<Shape, Bound> repeated_;
    RunOptionsPtr shrinking_;
    std::vector<float> logits_;
};

}  // namespace editar
