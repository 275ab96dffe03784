// Two models in two threads; others ask for a busy model and set stop flags meanwhile: for ThreadSanitizer.
#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "editar/editar.hpp"

namespace {

std::atomic<int> failures{0}, trimming{0};

void expect(bool good, const char* what) {
    if (good) return;
    std::fprintf(stderr, "%s\n", what);
    ++failures;
}

// Edits three times, the second time up to a stop; during each edit another thread calls too.
void work(const char* bundle, int seed) {
    editar_model_options options{};
    options.threads = 1;
    editar::Model model(bundle, options);
    editar::Image picture;
    picture.width = picture.height = model.info().image_size;
    picture.data.assign(static_cast<size_t>(picture.width) * picture.height * 3, static_cast<uint8_t>(seed));
    editar::Session session = model.open(picture);
    auto sampling = editar::sized<editar_sampling>();
    sampling.seed = static_cast<uint64_t>(seed);
    std::atomic<int32_t> stop{0};
    static_assert(sizeof stop == sizeof(int32_t));
    editar_request request{};
    request.instruction = "make the ball green";
    request.sampling = &sampling;
    request.stop = reinterpret_cast<const volatile int32_t*>(&stop);
    std::vector<int32_t> first;
    for (int round = 0; round < 3; ++round) {
        const bool stops = round == 1;
        std::thread other;
        auto call = [&] {
            auto output = editar::sized<editar_output>();
            editar_request same = request;
            same.size = sizeof same;
            expect(editar_edit(session.get(), &same, &output) == EDITAR_BUSY, "a second edit is not told BUSY");
            const char* const* texts = nullptr;
            expect(editar_get_texts(session.get(), 0, &texts) == EDITAR_BUSY, "get_texts is not told BUSY");
            std::vector<int32_t> source(static_cast<size_t>(model.info().picture_tokens));
            expect(editar_get_source(session.get(), nullptr, source.data()) == EDITAR_OK, "get_source failed");
            if (stops) stop = 1;
        };
        const editar::Result result = session.edit(request, [&](int32_t done, int32_t, const int32_t*) {
            if (done == 5) other = std::thread(call);
            if (done == 40) other.join();
            return true;
        });
        if (other.joinable()) other.join();
        stop = 0;
        expect(result.stopped == stops, "an edit is stopped, or not, against its flag");
        expect(session.texts() != nullptr, "an edit has no texts");
        if (round == 0) first = result.tokens[0];
        if (!stops) expect(result.tokens[0] == first, "the same edit gives other tokens");
    }
}

}  // namespace

// Over glibc's. This sanitizer brings its own malloc, as some programs do, and there glibc sets up its heap by the
// first call of this function, which two threads must not make at once: glibc then aborts when the second of them ends.
extern "C" int malloc_trim(size_t pad) {
    expect(trimming.fetch_add(1) == 0, "two threads trim the heap at once");
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    static const auto trim = reinterpret_cast<int (*)(size_t)>(dlsym(RTLD_NEXT, "malloc_trim"));
    const int freed = trim(pad);
    --trimming;
    return freed;
}

int main(int count, char** words) {
    if (count != 2) return 2;
    auto guarded = [&](int seed) {
        try {
            work(words[1], seed);
        } catch (const std::exception& e) {
            expect(false, e.what());
        }
    };
    std::thread one(guarded, 1), two(guarded, 2);
    one.join();
    two.join();
    return failures.load();
}
