#include "session.h"

#include <algorithm>
#include <chrono>

#include "error.h"
#include "facts.h"

namespace editar {

namespace {

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

bool Request::asks_to_stop() const {
    if (stop == nullptr) return false;
#if defined(__GNUC__)
    return __atomic_load_n(stop, __ATOMIC_RELAXED) != 0;
#else
    return *stop != 0;  // MSVC: reads of an aligned volatile int are atomic
#endif
}

Session::Session(Model& model, const Picture& picture) : model_(model), width_(picture.width), height_(picture.height) {
    const double started = now();
    square_ = fit_square(picture, model.image_size());
    tokens_ = model.encode_square(square_.data.data());
    encode_seconds_ = now() - started;
    pixel_seconds_ = 2 * encode_seconds_;  // until measured: VQ decoders take about twice as long as encoders
}

// Decode tokens to pictures, composited into the source if there is a mask; one by one, so that a picture has the same
// pixels in any batch.
void Session::pictures(const int32_t* tokens, int variants, const Bools* mask, uint8_t* rgb) {
    const size_t bytes = square_.data.size();
    const bool changes = mask == nullptr || std::find(mask->begin(), mask->end(), 1) != mask->end();
    const double started = now();
    std::vector<float> share;
    if (mask != nullptr && changes) share = feather(*mask, model_.image_size(), model_.sizes().grid);
    for (int n = 0; n < variants; ++n) {
        uint8_t* own = rgb + n * bytes;
        if (!changes) {
            std::copy(square_.data.begin(), square_.data.end(), own);
            continue;
        }
        model_.decode_tokens(tokens + static_cast<size_t>(n) * tokens_.size(), own);
        if (!share.empty()) composite(own, square_.data.data(), share);
    }
    if (changes) pixel_seconds_ = (now() - started) / variants;
}

std::vector<float> Session::states(const Request& request, Outcome& outcome) {
    const size_t size = static_cast<size_t>(model_.sizes().text_tokens) * model_.sizes().text_dim;
    if (request.text_states != nullptr) return {request.text_states, request.text_states + size};
    if (request.has_ids) {
        const Encoded encoded = model_.padded(request.token_ids);
        outcome.prompt_tokens = encoded.tokens;
        return model_.encode_text(encoded);
    }
    if (last_states_.empty() || last_prompt_ != request.prompt) {
        const Encoded encoded = model_.padded(model_.tokenize(request.prompt));
        last_states_ = model_.encode_text(encoded);
        last_prompt_ = request.prompt;
        last_prompt_tokens_ = encoded.tokens;
    }
    outcome.prompt_tokens = last_prompt_tokens_;
    return last_states_;
}

// Rows of the KV cache; those of the last edit if their number fits.
Scheduler& Session::rows(int variants, bool guided) {
    if (scheduler_ == nullptr || scheduler_->pictures() != variants || scheduler_->guided() != guided) {
        scheduler_.reset();  // free its memory before the next one is allocated
        scheduler_ = std::make_unique<Scheduler>(model_.backend(), variants, guided, model_.prefix_length(),
                                                 model_.picture_tokens(), model_.vocabulary(), model_.sizes().dim);
    }
    return *scheduler_;
}

Outcome Session::edit(const Request& request) {
    const int count = model_.picture_tokens(), side = model_.image_size();
    Outcome outcome;
    outcome.encode = encode_seconds_;
    // 1) What is known: the source's tokens outside the mask, and kept ones.
    Bools mask;
    std::vector<int32_t> known(count, -1);
    if (request.has_mask) {
        mask = fit_mask(request.mask, width_, height_, side);
        outcome.mask_empty = std::find(mask.begin(), mask.end(), 1) == mask.end();
        const Bools cells =
            dilate(touched_cells(mask, side, model_.sizes().grid), model_.sizes().grid, request.mask_margin);
        for (int n = 0; n < count; ++n)
            if (cells[n] == 0) known[n] = tokens_[n];
    }
    const auto free = std::count(known.begin(), known.end(), -1);
    const Bools* pasted = request.has_mask && request.paste ? &mask : nullptr;
    for (int n = 0; n < request.variants; ++n)
        outcome.tokens.insert(outcome.tokens.end(), tokens_.begin(), tokens_.end());
    outcome.done = static_cast<int>(request.kept.size());
    std::copy(request.kept.begin(), request.kept.end(), known.begin());
    for (int n = 0; n < request.variants; ++n)
        std::copy(request.kept.begin(), request.kept.end(), outcome.tokens.begin() + static_cast<size_t>(n) * count);
    // 2) Sample the others.
    const bool nothing_to_draw = std::find(known.begin(), known.end(), -1) == known.end();
    outcome.stopped = request.asks_to_stop();
    if (nothing_to_draw) {
        for (int n = 0; n < request.variants; ++n)
            std::copy(known.begin(), known.end(), outcome.tokens.begin() + static_cast<size_t>(n) * count);
        outcome.done = count;
    } else if (!outcome.stopped) {
        draw(request, known, pasted, outcome);
    }
    if (outcome.done == count) outcome.stopped = false;  // too late
    // 3) Decode the tokens to pictures.
    if (request.wants_pictures) {
        const double started = now();
        outcome.rgb.resize(request.variants * square_.data.size());
        pictures(outcome.tokens.data(), request.variants, pasted, outcome.rgb.data());
        outcome.pixels = now() - started;
    }
    encode_seconds_ = 0;
    tell(request, free);
    return outcome;
}

// Keep how an edit was made. `free`: number of tokens that its mask leaves free.
void Session::tell(const Request& request, int64_t free) {
    const int count = model_.picture_tokens();
    std::vector<std::pair<std::string, std::string>> texts = {{"instruction", request.instruction},
                                                              {"task", request.task}};
    for (auto& each : request.sampling.settings(count)) texts.push_back(std::move(each));
    texts.emplace_back("bundle", model_.bundle().fingerprint());
    texts.emplace_back("backend", model_.backend().name());
    texts.emplace_back("version", editar_version());
    if (request.has_mask)
        texts.emplace_back("mask", std::to_string(free) + " of " + std::to_string(count) + " tokens drawn");
    told_.assign(request.variants, {});
    for (int n = 0; n < request.variants; ++n) {
        Told& own = told_[n];
        for (const auto& [name, value] : texts) {
            own.texts.push_back(name);
            own.texts.push_back(name == "seed" ? std::to_string(request.sampling.seed + n) : value);
        }
        for (const std::string& each : own.texts) own.pointers.push_back(each.c_str());
        own.pointers.push_back(nullptr);
    }
}

void Session::draw(const Request& request, const std::vector<int32_t>& known, const Bools* mask, Outcome& outcome) {
    const int count = model_.picture_tokens(), grid = model_.sizes().grid, variants = request.variants;
    double started = now();
    const std::vector<float> text_states = states(request, outcome);
    outcome.truncated = outcome.prompt_tokens > model_.sizes().text_tokens;
    outcome.text = now() - started;
    // Prefill the picture once, then the text; the other variants copy both.
    started = now();
    const Inputs inputs = model_.inputs(text_states.data(), tokens_.data());
    Scheduler& scheduler = rows(variants, request.sampling.guided());
    std::vector<std::unique_ptr<Sequence>> sequences;
    sequences.reserve(variants);
    for (int n = 0; n < variants; ++n)
        sequences.push_back(std::make_unique<Sequence>(scheduler.context(n), inputs, request.sampling,
                                                       request.sampling.seed + n, known));
    for (const auto& each : sequences) scheduler.speculate(*each, request.speculate, tokens_);
    for (const auto& each : sequences) scheduler.prefill(*each);
    outcome.prefill = now() - started;
    // Decode all variants together, those that lag behind first.
    started = now();
    const double engine = scheduler.engine_seconds;
    int reported = 0;
    bool drawn = false;  // whether there is something new to preview
    double expected = pixel_seconds_;
    std::vector<uint8_t> shown(request.on_preview == nullptr ? 0 : square_.data.size());
    // Store and report target tokens up to `stop`: known ones as one run, sampled ones one by one.
    auto report = [&](int stop, bool sampled) {
        for (int n = 0; n < variants; ++n)
            std::copy(sequences[n]->tokens.begin() + reported, sequences[n]->tokens.begin() + stop,
                      outcome.tokens.begin() + static_cast<size_t>(n) * count + reported);
        const bool whole_line = stop / grid > reported / grid;
        drawn = drawn || sampled;
        reported = stop;
        outcome.done = std::max(outcome.done, reported);
        if (request.on_progress != nullptr &&
            request.on_progress(request.user, stop, count, outcome.tokens.data()) != 0)
            outcome.stopped = true;
        if (request.on_preview != nullptr && whole_line && drawn && stop < count && !outcome.stopped) {
            const double begun = now();
            if (outcome.preview + expected <= request.preview_share * (begun - started - outcome.preview)) {
                pictures(outcome.tokens.data(), 1, mask, shown.data());
                editar_picture picture = {sizeof(editar_picture), shown.data(), square_.width,
                                          square_.height,         EDITAR_RGB,   0};
                if (request.on_preview(request.user, stop, count, &picture) != 0) outcome.stopped = true;
                expected = now() - begun;
                outcome.preview += expected;
                drawn = false;
            }
        }
        if (request.asks_to_stop()) outcome.stopped = true;
        return !outcome.stopped;
    };
    while (reported < count && !outcome.stopped) {
        int least = count;
        for (const auto& each : sequences) least = std::min(least, each->position);
        std::vector<Sequence*> lagging;
        for (const auto& each : sequences)
            if (each->position == least) lagging.push_back(each.get());
        if (least < count) scheduler.step(lagging);
        int stop = count;  // what every variant has
        bool finished = true;
        for (const auto& each : sequences) {
            finished = finished && each->finished();
            stop = std::min(stop, each->drawn);
        }
        while (reported < stop && !outcome.stopped) {
            int position = reported;
            while (known[position] >= 0) ++position;
            if (position > reported && !report(position, false)) break;
            report(position + 1, true);
        }
        if (finished && !outcome.stopped && reported < count) report(count, false);
    }
    outcome.decode = now() - started - outcome.preview;
    outcome.engine = scheduler.engine_seconds - engine;
    for (const auto& each : sequences) outcome.passes.push_back(each->passes);
}

const char* const* Session::texts(int variant) const {
    if (told_.empty()) return nullptr;
    if (variant < 0 || variant >= static_cast<int>(told_.size()))
        throw option_error("variant must be 0 to " + std::to_string(told_.size() - 1) + ", got " +
                           std::to_string(variant));
    return told_[variant].pointers.data();
}

}  // namespace editar
