// What strangers' bytes go through, as targets of libFuzzer (tests/cpp/fuzz.sh) and of the replay below it: whatever the
// bytes are, the library answers, or refuses with a status and a sentence.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "bundle.h"
#include "error.h"
#include "graph_file.h"
#include "json.h"
#include "picture_files.h"
#include "pictures.h"
#include "sampling.h"
#include "tokenizer.h"

using namespace editar;

namespace {

constexpr int64_t most_pixels = 1 << 20;  // larger ones only take time

void json(std::string_view data) {
    check_strings(Json::parse(data, "fuzz"), "fuzz");
}

void manifest(std::string_view data) {
    const Manifest read = Manifest::parse(data);
    for (const auto& part : read.parts) part.second.input("tokens");
    Sampling::of_bundle(read.sampling, "fuzz").scales(16);
}

void graph(std::string_view data) {
    read_graph("fuzz", data);
}

// The tokenizer's file up to a zero, and a text behind it.
void tokenizer(std::string_view data) {
    const size_t end = data.rfind('\0');
    const Tokenizer read(data.substr(0, end), "fuzz");
    const auto ids = read.encode(end == std::string_view::npos ? "the red ball" : data.substr(end + 1));
    read.ends_with_special(ids);
    read.pad_id();
}

void picture(std::string_view data) {
    const auto [width, height] = picture_size(data.data(), data.size());
    if (int64_t{width} * height > most_pixels) return;
    const Picture grey = read_picture(data.data(), data.size(), true), rgb = read_picture(data.data(), data.size());
    if (grey.width != width || rgb.height != height) std::abort();
    if (rgb.width > 64 || rgb.height > 64) return;
    fit_square(rgb, 16);
    fit_mask(grey, width, height, 16);
    png_bytes(rgb, {{"name", "value"}});
}

struct Target {
    const char* name;
    void (*run)(std::string_view);
};
constexpr Target targets[] = {{"json", json},         {"manifest", manifest}, {"graph", graph},
                              {"tokenizer", tokenizer}, {"png", picture},       {"jpeg", picture}};

void run(const Target& target, std::string_view data) {
    try {
        target.run(data);
    } catch (const Error& error) {
        if (error.status() >= 0 || !*error.what() || std::strchr(error.what(), '\n')) std::abort();
    }
}

const Target& target_named(const std::string& name) {
    for (const auto& target : targets)
        if (name == target.name) return target;
    std::fprintf(stderr, "no target %s\n", name.c_str());
    std::exit(2);
}

}  // namespace

#ifdef EDITAR_FUZZ_WITH_CLANG

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const Target& target = target_named(std::getenv("EDITAR_FUZZ"));
    run(target, {reinterpret_cast<const char*>(data), size});
    return 0;
}

#else

// usage: replay TIMES FILE…, each in a folder by its target's name.
int main(int count, char** words) {
    const int times = std::atoi(words[1]);
    for (int time = 0; time < times; ++time)
        for (int i = 2; i < count; ++i) {
            const std::string path = words[i];
            const size_t name = path.rfind('/'), folder = path.rfind('/', name - 1);
            run(target_named(path.substr(folder + 1, name - folder - 1)), read_file(path, 64 << 20));
        }
    std::printf("%d files\n", count - 2);
    return 0;
}

#endif
