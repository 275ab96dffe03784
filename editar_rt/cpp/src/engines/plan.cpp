#include "engines/plan.h"

#include <algorithm>

#include "error.h"
#include "facts.h"

namespace editar {

namespace {

constexpr int64_t MOST_BYTES = int64_t{1} << 46;

int item_bytes(const std::string& dtype) {
    if (dtype == "int64") return 8;
    if (dtype == "float32" || dtype == "int32") return 4;
    return dtype == "float16" || dtype == "bfloat16" ? 2 : 1;
}

int least(int fallback, const std::vector<int>& all, int from) {
    int found = 0;
    for (int each : all)
        if (each >= from && (found == 0 || each < found)) found = each;
    return found == 0 ? fallback : found;
}

}  // namespace

std::string EngineShape::name() const {
    if (part != facts::DECODER && part != facts::SAMPLER) return part;
    return part + "-" + std::to_string(rows) + "x" + std::to_string(positions);
}

std::vector<int64_t> EngineShape::of(const TensorInfo& tensor) const {
    std::vector<int64_t> shape = tensor.shape;
    for (size_t n = 0; n < shape.size(); ++n) {
        if (!tensor.symbolic[n]) continue;
        const std::string& symbol = tensor.symbols[n];
        if (symbol == facts::ROWS_DIM || symbol == facts::PREFIX_ROWS_DIM)
            shape[n] = rows;
        else if (symbol == facts::POSITIONS_DIM || symbol == facts::WANTED_DIM || symbol == facts::PREFIX_POSITIONS_DIM)
            shape[n] = positions;
        else
            throw bundle_error("the dimension " + symbol + " of " + tensor.name + " in the part " + part +
                               " has no size; export the bundle again");
    }
    return shape;
}

size_t bytes_of(const TensorInfo& tensor, const std::vector<int64_t>& shape) {
    int64_t bytes = item_bytes(tensor.dtype);
    for (int64_t size : shape) {
        if (size < 0 || (size > 0 && bytes > MOST_BYTES / size))
            throw bundle_error("the tensor " + tensor.name + " has an impossible size; export the bundle again");
        bytes *= size;
    }
    return static_cast<size_t>(bytes);
}

std::vector<std::pair<int, int>> Plan::sampled() const {
    std::vector<int> few = {1};
    few.insert(few.end(), drafts.begin(), drafts.end());
    std::vector<std::pair<int, int>> shapes;
    for (int positions : few)
        for (int each : rows) shapes.emplace_back(each, positions);
    return shapes;
}

std::vector<EngineShape> Plan::decoder_shapes() const {
    std::vector<EngineShape> shapes;
    auto add = [&](int row_count, int positions) {
        for (const EngineShape& each : shapes)
            if (each.rows == row_count && each.positions == positions) return;
        shapes.push_back({facts::DECODER, row_count, positions});
    };
    for (const auto& [row_count, positions] : sampled()) add(row_count, positions);
    for (int chunk : chunks)
        if (chunk > 1) add(1, chunk);
    return shapes;
}

int Plan::unused_positions() const {
    return rows.back() > 1 ? std::max(1, drafts.empty() ? 1 : drafts.back()) : 0;
}

int Plan::padded(int count) const {
    const int most = std::max(count + static_cast<int>(count * facts::engines::SPARE_ROWS), rows[0]);
    int largest = 0;
    for (int each : rows)
        if (each <= most) largest = std::max(largest, each);
    return std::max(count, largest);
}

Window Plan::window(const std::vector<int32_t>& wanted, size_t done, int held) const {
    Window best{0, 0, 0};
    double cost = 0;
    for (int size : rows) {
        if (size > held) continue;
        Window found{std::min(static_cast<int>(wanted[done]), held - size), size, 0};
        for (size_t n = done; n < wanted.size(); ++n) found.served += wanted[n] < found.start + size ? 1 : 0;
        const double own = (1 + size * facts::engines::ROW_COST) / found.served;
        if (best.size == 0 || own < cost) {
            best = found;
            cost = own;
        }
    }
    return best;
}

int Plan::side_by_side(int positions) const {
    return positions <= 1 ? 1 : least(0, drafts, positions);
}

int Plan::runs(int count, int positions, int held) const {
    if (positions == 1 || (count > 1 && side_by_side(positions) != 0)) {
        std::vector<int32_t> all(count);
        for (int n = 0; n < count; ++n) all[n] = n;
        int found = 0;
        for (size_t done = 0; done < all.size(); ++found) done += window(all, done, held).served;
        return found;
    }
    int largest = 1, each = 0;
    for (const auto* sizes : {&chunks, &drafts})
        for (int size : *sizes) largest = std::max(largest, size);
    for (; positions > 0; ++each) positions -= chunk(positions, largest);
    return count * each;
}

int Plan::chunk(int positions, int room) const {
    std::vector<int> fitting;
    const bool alone = std::find(rows.begin(), rows.end(), 1) != rows.end();
    for (const auto* sizes : {&chunks, alone ? &drafts : nullptr})
        if (sizes != nullptr)
            for (int size : *sizes)
                if (size <= room) fitting.push_back(size);
    const int largest = fitting.empty() ? 1 : *std::max_element(fitting.begin(), fitting.end());
    return least(largest, fitting, positions);
}

}  // namespace editar
