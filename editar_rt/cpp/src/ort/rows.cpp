#include "ort/rows.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>

#include "error.h"
#include "machine.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace editar {

namespace {

size_t page_bytes() {
#if defined(__linux__)
    static const size_t bytes = sysconf(_SC_PAGESIZE);
    return bytes;
#else
    return 4096;
#endif
}

}  // namespace

RowBuffer::RowBuffer(int rows, int heads, int positions, size_t position_bytes)
    : rows_(rows), heads_(heads), position_bytes_(std::max<size_t>(position_bytes, 1)) {
    const size_t step = page_bytes() / std::gcd(page_bytes(), position_bytes_);  // positions that fill whole pages
    // NOLINTNEXTLINE(clang-analyzer-core.DivideZero): a common divisor of the page is at most the page
    positions_ = static_cast<int>((positions + step - 1) / step * step);
#if defined(__linux__)
    if (rows > 1) {
        descriptor_ = memfd_create(ROWS_MEMORY, MFD_CLOEXEC);
        if (descriptor_ >= 0 && ftruncate(descriptor_, static_cast<off_t>(bytes())) == 0) {
            void* address = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor_, 0);
            if (address != MAP_FAILED) data_ = static_cast<uint8_t*>(address);
        }
        if (data_ == nullptr && descriptor_ >= 0) {
            close(descriptor_);
            descriptor_ = -1;
        }
    }
#endif
    if (data_ == nullptr) {
        heap_.reset(static_cast<uint8_t*>(
            std::calloc(std::max<size_t>(bytes(), 1), 1)));  // pages that are not written take no memory
        if (heap_ == nullptr) throw std::bad_alloc();
        data_ = heap_.get();
    }
}

RowBuffer::~RowBuffer() {
#if defined(__linux__)
    if (descriptor_ >= 0) {
        munmap(data_, bytes());
        close(descriptor_);
    }
#endif
}

bool RowBuffer::map(int source, int target, size_t size) {
#if defined(__linux__)
    if (descriptor_ < 0) return false;
    if (source != target) note_sharing();
    for (int number = 0; number < heads_; ++number) {
        const off_t place = head(source, number) - data_;
        void* mapped =
            mmap(head(target, number), size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, descriptor_, place);
        if (mapped == MAP_FAILED) return false;
    }
    return true;
#else
    (void)source, (void)target, (void)size;
    return false;
#endif
}

RowBuffers::RowBuffers(int count, int rows, int heads, int positions, size_t position_bytes)
    : position_bytes_(position_bytes), root_(rows), shared_(rows, 0), frozen_(rows, 0) {
    for (int n = 0; n < count; ++n)
        buffers_.push_back(std::make_unique<RowBuffer>(rows, heads, positions, position_bytes));
    std::iota(root_.begin(), root_.end(), 0);
}

void RowBuffers::copy(int source, int target, int start, int stop, bool frozen) {
    prepare_write(target, start);
    int done = start;
    if (frozen && start == 0) {
        const int root = root_[source];
        done = share(root, target, root == source ? stop : std::min(stop, shared_[source]));
    }
    for (const auto& buffer : buffers_)
        for (int number = 0; number < buffer->heads(); ++number)
            std::memcpy(buffer->head(target, number) + done * position_bytes_,
                        buffer->head(source, number) + done * position_bytes_, (stop - done) * position_bytes_);
}

void RowBuffers::prepare_write(int row, int position) {
    if (position >= frozen_[row]) return;
    for (int other = 0; other < static_cast<int>(root_.size()); ++other)
        if (other != row && root_[other] == row && position < shared_[other]) take_back(other, shared_[other]);
    if (position < shared_[row]) take_back(row, position);
    note_shares();
}

// Map as many whole pages as these positions fill. Returns the number of positions in them.
int RowBuffers::share(int root, int target, int positions) {
    const size_t size = positions * position_bytes_ / page_bytes() * page_bytes();
    if (size == 0 || root == target) return 0;
    for (const auto& buffer : buffers_) {
        if (buffer->map(root, target, size)) continue;
        for (const auto& each : buffers_) each->map(target, target, size);  // undo those that succeeded
        return 0;
    }
    root_[target] = root;
    shared_[target] = static_cast<int>((size + position_bytes_ - 1) / position_bytes_);
    note_shares();
    return static_cast<int>(size / position_bytes_);
}

// Give a row its own memory back, with its first `keep` positions.
void RowBuffers::take_back(int row, int keep) {
    const size_t pages = (shared_[row] * position_bytes_ + page_bytes() - 1) / page_bytes();
    const size_t kept = keep * position_bytes_;
    for (const auto& buffer : buffers_) {
        std::vector<uint8_t> held(kept * buffer->heads());
        for (int number = 0; number < buffer->heads(); ++number)
            std::memcpy(held.data() + number * kept, buffer->head(row, number), kept);
        if (!buffer->map(row, row, pages * page_bytes()))
            throw backend_error("the system refused memory for a row of the KV cache; free some and try again");
        for (int number = 0; number < buffer->heads(); ++number)
            std::memcpy(buffer->head(row, number), held.data() + number * kept, kept);
    }
    root_[row] = row;
    shared_[row] = 0;
}

void RowBuffers::note_shares() {
    frozen_ = shared_;
    for (size_t row = 0; row < root_.size(); ++row) frozen_[root_[row]] = std::max(frozen_[root_[row]], shared_[row]);
}

}  // namespace editar
