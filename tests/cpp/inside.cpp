// What the tests call inside of the library, by ctypes. A failed call returns its status and leaves its sentence.
#include <cstring>
#include <exception>
#include <memory>
#include <string>

#include "bundle.h"
#include "error.h"
#include "graph_file.h"
#include "json.h"
#include "sha256.h"
#include "tokenizer.h"

using namespace editar;

namespace {

std::string answer;  // of the last call: its result or its sentence
std::unique_ptr<Tokenizer> tokenizer;

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

int32_t inside_sha256(const char* data, size_t size, size_t piece) {
    return calling([&] {
        Sha256 digest;
        for (size_t at = 0; at < size; at += piece) digest.add(data + at, piece < size - at ? piece : size - at);
        return digest.hex();
    });
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
}
