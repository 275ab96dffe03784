// An open bundle as functions on arrays; parts are opened on first use. As editar_rt/model.py.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "backend.h"
#include "bundle.h"
#include "sampling.h"
#include "sequence.h"
#include "tokenizer.h"

namespace editar {

struct ModelOptions {
    std::string device = "auto", engine_path, cache, plugin_path, engines;
    int threads = 0;
    bool check_all_files = false;
};

struct Encoded {                     // a prompt's token ids, padded and truncated
    std::vector<int32_t> ids, mask;  // [T]
    int tokens = 0;                  // before truncation, with the end token
};

// The text encoder's input: an instruction as it is, or a description after its task's prefix.
std::string build_prompt(const char* task, const char* text);

class Model {
public:
    Model(const std::string& folder, const ModelOptions& options);
    Model(const Bundle& bundle, std::unique_ptr<Backend> backend);  // to try a backend

    const Bundle& bundle() const { return bundle_; }
    const ModelInfo& sizes() const { return bundle_.manifest().model; }
    Backend& backend() { return *backend_; }
    const Sampling& default_sampling() const { return default_sampling_; }

    int image_size() const;  // throws EDITAR_MISSING_PART, as all three
    int picture_tokens() const;
    int vocabulary() const;
    int prefix_length() const { return picture_tokens() + sizes().text_tokens; }

    std::vector<int32_t> tokenize(const std::string& prompt);
    // Pad and truncate ids; a truncated prompt keeps its end token.
    Encoded padded(std::vector<int32_t> ids);
    std::vector<float> encode_text(const Encoded& encoded);                // -> [T, C]
    std::vector<int32_t> encode_square(const uint8_t* rgb);                // [side, side, 3] -> [N]
    std::vector<int32_t> encode_pixels(const std::vector<float>& pixels);  // [3, side, side] in -1 to 1 -> [N]
    std::vector<float> decode_pixels(const int32_t* tokens);               // [N] -> [3, side, side], about -1 to 1
    void decode_tokens(const int32_t* tokens, uint8_t* rgb);               // [N] -> [side, side, 3]
    // `condition` [N]; null is the unconditional picture.
    Inputs inputs(const float* text_states, const int32_t* condition);
    // Text states [T, C] of a caller.
    void check_states(const float* text_states) const;
    // Tokens [N], 0 to size - 1.
    void check_tokens(const char* what, const int32_t* tokens, int size, bool negative_too = false) const;

    std::atomic<bool> busy{false};
    const int64_t process;  // that opened it

private:
    Bundle bundle_;
    Sampling default_sampling_;
    std::unique_ptr<Backend> backend_;
    std::unique_ptr<Tokenizer> tokenizer_;
};

}  // namespace editar
