// A product in C++17 that edits a picture with the header-only wrapper.
#include <editar/editar.hpp>
#include <iostream>
#include <type_traits>

static_assert(std::is_nothrow_move_constructible_v<editar::Session> && std::is_nothrow_move_assignable_v<editar::Model>);
static_assert(!std::is_copy_constructible_v<editar::Session> && !std::is_copy_assignable_v<editar::Model>);

int main(int count, char** words) {
    if (count != 3) return 2;
    try {
        editar_model_options options{};
        options.threads = 1;
        editar::Model model(words[1], options);
        editar::Image grey_square;
        grey_square.width = grey_square.height = model.info().image_size;
        grey_square.data.assign(static_cast<size_t>(grey_square.width) * grey_square.height * 3, 128);
        editar::Session session = model.open(grey_square);
        editar_request request{};
        request.instruction = words[2];
        int calls = 0;
        const editar::Result result = session.edit(request, [&](int32_t, int32_t, const int32_t*) { return ++calls > 0; });
        for (int32_t token : result.tokens[0]) std::cout << token << ' ';
        if (calls == 0 || result.stopped || session.texts() == nullptr) return 1;

        // An exception of a callback stops the edit, and comes out of it.
        try {
            session.edit(request, [](int32_t, int32_t, const int32_t*) -> bool { throw std::runtime_error("mine"); });
            return 1;
        } catch (const std::runtime_error& e) {
            if (std::string(e.what()) != "mine") return 1;
        }
        // Errors of the library are exceptions with their status: a bad word, a number whose results no memory holds,
        // and a session that was moved away.
        auto refused = [](auto call) {
            try {
                call();
            } catch (const editar::Exception& e) {
                return e.status() == EDITAR_BAD_ARGUMENT && *e.what() != '\0';
            }
            return false;
        };
        editar_request bad = request;
        bad.task = "paint";
        if (!refused([&] { session.edit(bad); })) return 1;
        bad = request;
        bad.variants = 2147483647;
        if (!refused([&] { session.edit(bad); })) return 1;
        editar::Image short_one = grey_square;
        short_one.data.pop_back();
        if (!refused([&] { model.open(short_one); })) return 1;
        editar::Session moved = std::move(session);
        if (!refused([&] { session.edit(request); }) || !refused([&] { session.texts(); })) return 1;
        session = std::move(moved);

        // A preview alone gets its own callback's data; the request's other callback is not called with it.
        request.on_progress = [](void*, int32_t, int32_t, const int32_t*) -> int32_t { std::abort(); };
        request.preview_share = 1;
        int previews = 0;
        session.edit(request, {}, [&](int32_t, int32_t, const editar_picture& shown) {
            previews += shown.width == grey_square.width && shown.data != nullptr;
            return true;
        });
        if (previews == 0) return 1;

        // A session outlives its model.
        model = editar::Model(words[1], options);
        if (session.edit(editar_request{}).images.size() != 1) return 1;
    } catch (const std::exception& e) {
        std::cerr << e.what() << '\n';
        return 1;
    }
    return 0;
}
