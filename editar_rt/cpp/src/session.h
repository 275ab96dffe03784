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
    editar_progress_fn on_progress = nullptr;
    editar_preview_fn on_preview = nullptr;
    double preview_share = 0;
    void* user = nullptr;
    const volatile int32_t* stop = nullptr;
    bool wants_pictures = true;

    bool asks_to_stop() const;
};

struct Outcome {
    std::vector<int32_t> tokens;  // [variants, N]; from `done` on, the source's
    std::vector<uint8_t> rgb;     // [variants, side, side, 3]
    std::vector<int32_t> passes;  // of each variant; none where nothing was drawn
    int done = 0, prompt_tokens = 0;
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
    // How a variant of the last edit was made: pairs of names and values, ended by null. Null if there was none.
    const char* const* texts(int variant) const;

private:
    void pictures(const int32_t* tokens, int variants, const Bools* mask, uint8_t* rgb);
    std::vector<float> states(const Request& request, Outcome& outcome);
    Scheduler& rows(int variants, bool guided);
    void tell(const Request& request, int64_t free);
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
    struct Told {  // how a variant was made: names and values
        std::vector<std::string> texts;
        std::vector<const char*> pointers;
    };
    std::vector<Told> told_;  // of the last edit's variants
};

}  // namespace editar
