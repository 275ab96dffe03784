// Two models in two threads, and a third thread that asks for a busy one and sets stop flags: for ThreadSanitizer.
#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "editar/editar.hpp"

int main(int count, char** words) {
    if (count != 2) return 2;
    std::atomic<int> failures{0};
    auto work = [&](int seed) {
        try {
            editar_model_options options{};
            options.threads = 1;
            editar::Model model(words[1], options);
            editar::Image picture;
            picture.width = picture.height = model.info().image_size;
            picture.data.assign(static_cast<size_t>(picture.width) * picture.height * 3, static_cast<uint8_t>(seed));
            editar::Session session = model.open(picture);
            std::vector<int32_t> first;
            for (int round = 0; round < 3; ++round) {
                auto sampling = editar::sized<editar_sampling>();
                sampling.seed = static_cast<uint64_t>(seed);
                editar_request request{};
                request.instruction = "make the ball green";
                request.sampling = &sampling;
                std::thread other;
                const editar::Result result = session.edit(request, [&](int32_t done, int32_t, const int32_t*) {
                    if (done == 5)
                        other = std::thread([&] {  // while this call lasts, another gets BUSY
                            auto output = editar::sized<editar_output>();
                            editar_request same = request;
                            same.size = sizeof same;
                            if (editar_edit(session.get(), &same, &output) != EDITAR_BUSY) ++failures;
                        });
                    if (done == 40 && other.joinable()) other.join();
                    return true;
                });
                if (round == 0) first = result.tokens[0];
                if (result.tokens[0] != first) ++failures;
            }
        } catch (const std::exception& e) {
            std::fprintf(stderr, "%s\n", e.what());
            ++failures;
        }
    };
    std::thread one(work, 1), two(work, 2);
    one.join();
    two.join();
    return failures.load();
}
