// Whether pages of a file are dropped, and stay while another thread opens or closes files with weights.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <thread>
#include <vector>

#include "machine.h"

namespace {

constexpr size_t BYTES = 20 << 20;  // smaller files are not searched for

size_t resident(void* file) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    FILE* lines = std::fopen("/proc/self/smaps", "r");
    char line[512];
    size_t start = 0, end = 0, found = 0, kilobytes = 0;
    while (lines != nullptr && std::fgets(line, sizeof line, lines) != nullptr) {
        if (std::sscanf(line, "%zx-%zx ", &start, &end) == 2) continue;
        if (start == reinterpret_cast<size_t>(file) && std::sscanf(line, "Rss: %zu", &kilobytes) == 1)
            found = kilobytes;
    }
    if (lines != nullptr) std::fclose(lines);
    return found * 1024 / page;
}

}  // namespace

int main(int count, char** words) {
    if (count != 2) return 2;
    const int descriptor = open(words[1], O_RDWR | O_CREAT, 0600);
    if (descriptor < 0 || ftruncate(descriptor, BYTES) != 0) return 2;
    void* file = mmap(nullptr, BYTES, PROT_READ, MAP_SHARED, descriptor, 0);
    if (file == MAP_FAILED) return 2;
    volatile unsigned sum = 0;
    for (size_t n = 0; n < BYTES; n += 4096) sum = sum + static_cast<const volatile unsigned char*>(file)[n];
    const size_t before = resident(file);
    {
        const auto held = editar::mapping_weights();
        std::thread([&] { editar::drop_file_pages({words[1]}); }).join();
    }
    const size_t kept = resident(file);
    std::thread([&] { editar::drop_file_pages({words[1]}); }).join();
    std::printf("%d %d %zu\n", before > 0, kept == before, resident(file));
    return 0;
}
