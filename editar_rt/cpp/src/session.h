// One picture and its edits: everything that does not depend on the instruction is computed once. As
// editar_rt/session.py and edit.py.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "masks.h"
#include "model.h"
#include "pictures.h"
#include "scheduler.h"

namespace editar {

// A caller's request, checked; its memory stays the caller's.
struct Request {
    std::string prompt, instruction, task;
    const float* text_states = nullptr;
    std::vector<int32_t> token_ids;
    bool has_ids = false;
    Sampling sampling;
    int variants = 1, mask_margin = 1, speculate = 0;
    std::vector<int32_t> kept;  // the first target tokens, which stay
    bool has_mask = false, paste = true;
    Picture mask;  // grey
    int32_t(EDITAR_CALL* on_progress)(void*, int32_t, int32_t, const int32_t*) = nullptr;
    int32_t(EDITAR_CALL* on_preview)(void*, int32_t, int32_t, const editar_picture*) = nullptr;
    double preview_share = 0;
    void* user = nullptr;
    const volatile int32_t* stop = nullptr;
    bool wants_pictures = true;
};

struct Outcome {
    std::vector<int32_t> tokens;  // [variants, N]; from `done` on, the source's
    std::vector<uint8_t> rgb;     // [variants, side, side, 3]
    int done = 0, prompt_tokens = 0, steps = 0;
    bool stopped = false, truncated = false, mask_empty = false;
    double encode = 0, text = 0, prefill = 0, decode = 0, pixels = 0, preview = 0, engine = 0;  // seconds
};

class Session {
public:
    // `picture` is RGB.
    Session(Model& model, const Picture& picture);

    Model& model() const { return model_; }
    const Picture& square() const { return square_; }
    const std::vector<int32_t>& tokens() const { return tokens_; }
    Outcome edit(const Request& request);
    // How the last edit was made: pairs of names and values, ended by null. Null if there was none.
    const char* const* texts(int variant);

private:
    void pictures(const int32_t* tokens, int variants, const Bools* mask, uint8_t* rgb);
    std::vector<float> states(const Request& request, Outcome& outcome);
    Scheduler& rows(int variants, bool guided);
    void draw(const Request& request, const std::vector<int32_t>& known, const Bools* mask, Outcome& outcome);

    Model& model_;
    int width_, height_;
    Picture square_;
    std::vector<int32_t> tokens_;
    double encode_seconds_ = 0, pixel_seconds_ = 0;
    std::unique_ptr<Scheduler> scheduler_;
    std::string last_prompt_;  // with its states
    std::vector<float> last_states_;
    int last_prompt_tokens_ = 0;
    std::vector<std::pair<std::string, std::string>> texts_;  // of the first variant
    uint64_t seed_ = 0;
    int variants_ = 0;
    std::vector<std::string> held_;
    std::vector<const char*> pointers_;
};

}  // namespace editar
