// What the tests call inside of the library, by ctypes. A failed call returns its status and leaves its sentence.
#include <cstring>
#include <exception>
#include <memory>
#include <string>

#include "bundle.h"
#include "error.h"
#include "exact.h"
#include "graph_file.h"
#include "json.h"
#include "kept_folder.h"
#include "machine.h"
#include "ort/rows.h"
#include "picture_files.h"
#include "pictures.h"
#include "sampling.h"
#include "sha256.h"
#include "tokenizer.h"

using namespace editar;

namespace {

std::string answer;  // of the last call: its result or its sentence
std::unique_ptr<Tokenizer> tokenizer;
std::unique_ptr<RowBuffers> rows;

template <typename Work>
int32_t calling(Work work) {
    try {
        answer = work();
        return EDITAR_OK;
    } catch (const Error& error) {
        answer = error.what();
        return error.status();
    } catch (const std::exception& error) {
        answer = error.what();
        return EDITAR_INTERNAL;
    }
}

std::string list_of(const std::vector<std::string>& words) {
    std::string out;
    for (const auto& word : words) out += (out.empty() ? "[" : ", ") + json_quoted(word);
    return out.empty() ? "[]" : out + "]";
}

std::string bytes_of(const Picture& picture, int32_t* sizes) {
    sizes[0] = picture.width, sizes[1] = picture.height, sizes[2] = picture.channels;
    return std::string(picture.data.begin(), picture.data.end());
}

// The value as JSON text, numbers as they were written.
std::string written(const Json& value) {
    std::string out;
    switch (value.kind) {
        case Json::Kind::string:
            return json_quoted(value.text);
        case Json::Kind::list:
            for (const auto& item : value.items) out += (out.empty() ? "" : ",") + written(item);
            return "[" + out + "]";
        case Json::Kind::object:
            for (const auto& [name, member] : value.members)
                out += (out.empty() ? "" : ",") + json_quoted(name) + ":" + written(member);
            return "{" + out + "}";
        case Json::Kind::number:
            return value.text;
        case Json::Kind::boolean:
            return value.boolean ? "true" : "false";
        case Json::Kind::null:
            break;
    }
    return "null";
}

}  // namespace

extern "C" {

const char* inside_answer(size_t* size) {
    *size = answer.size();
    return answer.data();
}

int32_t inside_json(const char* text, size_t size) {
    return calling([&] { return written(Json::parse({text, size}, "bundle.json")); });
}

int32_t inside_number(const char* text, double* number) {
    return calling([&] {
        *number = read_number(text);
        return "";
    });
}

int32_t inside_sha256(const char* data, size_t size, size_t piece, int32_t portable) {
    return calling([&] {
        Sha256 digest(portable != 0);
        for (size_t at = 0; at < size; at += piece) digest.add(data + at, piece < size - at ? piece : size - at);
        return digest.hex();
    });
}

// Read a manifest and its sampling defaults. The answer is empty.
int32_t inside_manifest(const char* text, size_t size) {
    return calling([&] {
        Sampling::of_bundle(Manifest::parse({text, size}).sampling, "bundle");
        return "";
    });
}

// The bits of a function's values: "exp", "log", or "gumbel" of random words.
int32_t inside_exact(const char* name, const uint64_t* arguments, int64_t count, uint64_t* values) {
    return calling([&] {
        const std::string function(name);
        for (int64_t i = 0; i < count; ++i) {
            double x = 0, value = 0;
            std::memcpy(&x, &arguments[i], sizeof x);
            value = function == "exp" ? exact::exp(x) : function == "log" ? exact::log(x) : exact::gumbel(arguments[i]);
            std::memcpy(&values[i], &value, sizeof value);
        }
        return "";
    });
}

// The folder of kept weights that a caller's name, or NULL, leads to.
int32_t inside_cache_folder(const char* named) {
    return calling([&] { return kept_folder::cache_folder(named); });
}

int32_t inside_is_as_sealed(const char* folder) {
    return calling([&] { return std::string(kept_folder::is_as_sealed(folder) ? "yes" : "no"); });
}

// Make a folder with one file, as kept weights are.
int32_t inside_keep(const char* folder, const char* name, const char* content, size_t size) {
    return calling([&] {
        kept_folder::Making making(folder);
        place_file(making.partial() + "/" + name, {content, size});
        making.finish();
        return "";
    });
}

// Rows of a cache of one tensor, which the next calls use; rows 0 drops them. `data` gets its memory.
int32_t inside_rows(int32_t count, int32_t heads, int32_t positions, int64_t position_bytes, uint8_t** data) {
    return calling([&] {
        rows.reset();
        if (count > 0) rows = std::make_unique<RowBuffers>(1, count, heads, positions, position_bytes);
        *data = rows ? (*rows)[0].data() : nullptr;
        return std::to_string(rows ? (*rows)[0].positions() : 0);
    });
}

int32_t inside_copy_row(int32_t source, int32_t target, int32_t start, int32_t stop, int32_t frozen) {
    return calling([&] { return rows->copy(source, target, start, stop, frozen != 0), ""; });
}

int32_t inside_prepare_write(int32_t row, int32_t position) {
    return calling([&] { return rows->prepare_write(row, position), ""; });
}

int32_t inside_counted_twice() {
    return calling([&] { return std::to_string(bytes_counted_twice(ROWS_MEMORY)); });
}

int32_t inside_drop_file_pages(const char* file) {
    return calling([&] { return drop_file_pages({file}), ""; });
}

// Open a bundle; with `check`, hash every file and read every graph. The answer is its fingerprint.
int32_t inside_bundle(const char* folder, int32_t hash_all, int32_t check) {
    return calling([&] {
        const Bundle bundle = Bundle::open(folder, hash_all != 0);
        if (check) bundle.check();
        return bundle.fingerprint();
    });
}

// Open a bundle and read a part's graph. The answer is the list of the part's files.
int32_t inside_part_files(const char* folder, const char* part) {
    return calling([&] { return list_of(Bundle::open(folder).part_files(part)); });
}

// Read a graph by itself. The answer is the list of its external files.
int32_t inside_graph(const char* path) {
    return calling([&] {
        std::vector<std::string> locations;
        for (const auto& each : read_graph(path).external) locations.push_back(each.location);
        return list_of(locations);
    });
}

// Read a tokenizer, which the next calls use. The answer is empty.
int32_t inside_tokenizer(const char* json, size_t size) {
    return calling([&] {
        tokenizer = std::make_unique<Tokenizer>(std::string_view(json, size), "tokenizer.json");
        return "";
    });
}

// Encode texts that lie one behind the other, each up to its stop. Ids go to `ids`, each text's number to `counts`.
int32_t inside_encode(const char* texts, const int64_t* stops, int64_t texts_count, int32_t* ids, int32_t* counts) {
    return calling([&] {
        for (int64_t i = 0; i < texts_count; ++i) {
            const int64_t start = i == 0 ? 0 : stops[i - 1];
            const auto found = tokenizer->encode({texts + start, static_cast<size_t>(stops[i] - start)});
            counts[i] = static_cast<int32_t>(found.size());
            for (const int32_t id : found) *ids++ = id;
        }
        return "";
    });
}

int32_t inside_pad_id(int32_t* id) {
    return calling([&] {
        *id = tokenizer->pad_id();
        return "";
    });
}

// Read a picture file. The answer is its pixels; `sizes` gets width, height and channels.
int32_t inside_picture(const char* file, size_t bytes, int32_t grey, int32_t* sizes) {
    return calling([&] { return bytes_of(read_picture(file, bytes, grey != 0), sizes); });
}

int32_t inside_picture_size(const char* file, size_t bytes, int32_t* sizes) {
    return calling([&] {
        const auto [width, height] = picture_size(file, bytes);
        sizes[0] = width, sizes[1] = height;
        return "";
    });
}

// A picture in the caller's memory: as RGB, the model's square of it where `side` is above 0.
int32_t inside_square(uint8_t* data, int32_t width, int32_t height, int32_t channels, int64_t stride, int32_t side,
                      int32_t* sizes) {
    return calling([&] {
        const editar_picture given = {sizeof(editar_picture), data, width, height, channels, stride};
        const Picture picture = rgb_of(given);
        return bytes_of(side > 0 ? fit_square(picture, side) : picture, sizes);
    });
}

// A grey mask of a picture of some size, as bytes 0 and 1 of the square.
int32_t inside_mask(uint8_t* data, int32_t width, int32_t height, int32_t picture_width, int32_t picture_height,
                    int32_t side) {
    return calling([&] {
        const editar_picture given = {sizeof(editar_picture), data, width, height, EDITAR_GREY, 0};
        const auto square = fit_mask(grey_of(given), picture_width, picture_height, side);
        return std::string(square.begin(), square.end());
    });
}

// Write a picture with texts: names and values by turns, ended by NULL.
int32_t inside_write_png(const char* path, uint8_t* data, int32_t width, int32_t height, int32_t channels,
                         const char* const* texts) {
    return calling([&] {
        const editar_picture given = {sizeof(editar_picture), data, width, height, channels, 0};
        Texts pairs;
        for (; *texts; texts += 2) pairs.emplace_back(texts[0], texts[1]);
        write_png(path, channels == EDITAR_GREY ? grey_of(given) : rgb_of(given), pairs);
        return "";
    });
}
}
