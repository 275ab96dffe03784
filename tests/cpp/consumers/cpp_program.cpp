// A product in C++17 that edits a picture with the header-only wrapper.
#include <editar/editar.hpp>
#include <iostream>

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
        // An error of the library is an exception with its status.
        try {
            request.task = "paint";
            session.edit(request);
            return 1;
        } catch (const editar::Exception& e) {
            if (e.status() != EDITAR_BAD_ARGUMENT) return 1;
        }
    } catch (const std::exception& e) {
        std::cerr << e.what() << '\n';
        return 1;
    }
    return 0;
}
