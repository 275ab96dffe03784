// CPU memory of a KV cache in which rows with equal contents share pages: editar_rt/backends/ort/rows.py.
//
// The picture's keys and values are the same in every row of a picture. The pages of such a row are mapped to those of
// the row that computed them: they take no additional memory, and attention finds them in the CPU's cache after it has
// read them for the other row. On systems other than Linux, and if the system refuses the mapping, rows are copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

namespace editar {

constexpr const char* ROWS_MEMORY = "editar-kv-cache";  // its name in the system's list of mappings

// An array [rows, heads, positions, width] of zeros.
class RowBuffer {
public:
    // positions: the least number; it is rounded up so that heads begin at page boundaries.
    RowBuffer(int rows, int heads, int positions, size_t position_bytes);
    ~RowBuffer();
    RowBuffer(const RowBuffer&) = delete;
    RowBuffer& operator=(const RowBuffer&) = delete;

    uint8_t* data() const { return data_; }
    int positions() const { return positions_; }
    size_t head_bytes() const { return positions_ * position_bytes_; }
    size_t row_bytes() const { return heads_ * head_bytes(); }
    uint8_t* head(int row, int number) const { return data_ + row * row_bytes() + number * head_bytes(); }
    size_t bytes() const { return rows_ * row_bytes(); }
    int heads() const { return heads_; }

    // Map the first `size` bytes (whole pages) of every head of row `target` to the memory of row `source`. A row
    // mapped to itself gets its own memory back, with its old contents. False if the system refuses.
    bool map(int source, int target, size_t size);

private:
    int rows_, heads_, positions_;
    size_t position_bytes_;
    uint8_t* data_ = nullptr;
    int descriptor_ = -1;
    std::unique_ptr<uint8_t, void (*)(void*)> heap_{nullptr, std::free};  // where the memory is not mapped
};

// Several buffers, one per tensor of a cache, whose rows share pages in the same way. A row that shares pages gets its
// own back before either row is written there, so neither row changes the other.
class RowBuffers {
public:
    RowBuffers(int count, int rows, int heads, int positions, size_t position_bytes);

    RowBuffer& operator[](size_t n) { return *buffers_[n]; }
    size_t size() const { return buffers_.size(); }
    void copy(int source, int target, int start, int stop, bool frozen);
    // Make sure that writing to a row from `position` on does not change other rows.
    void prepare_write(int row, int position);

private:
    int share(int root, int target, int positions);
    void take_back(int row, int keep);
    void note_shares();

    std::vector<std::unique_ptr<RowBuffer>> buffers_;
    size_t position_bytes_;
    std::vector<int> root_, shared_, frozen_;
};

}  // namespace editar
