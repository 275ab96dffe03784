// The C ABI: the only functions that the library exports. They check what a caller gives, and nothing is thrown out of
// them.
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "editar/editar.h"
#include "error.h"
#include "facts.h"
#include "kept_folder.h"
#include "machine.h"
#include "model.h"
#include "ort/library.h"
#include "picture_files.h"
#include "pictures.h"
#include "reports.h"
#include "scheduler.h"
#include "session.h"
#include "sha256.h"
#include "text.h"

// Structs grow at their ends, so none may end in padding: an older program leaves there what it likes.
#define EDITAR_ENDS_WITH(type, field) static_assert(offsetof(type, field) + sizeof(type::field) == sizeof(type))
EDITAR_ENDS_WITH(editar_model_options, engine_folder);
EDITAR_ENDS_WITH(editar_model_info, backend);
EDITAR_ENDS_WITH(editar_picture, stride);
EDITAR_ENDS_WITH(editar_sampling, noise);
EDITAR_ENDS_WITH(editar_request, stop);
EDITAR_ENDS_WITH(editar_output, engine_seconds);
EDITAR_ENDS_WITH(editar_bench_plan, steps);
#undef EDITAR_ENDS_WITH
static_assert(editar::facts::MAX_VARIANTS == EDITAR_MAX_VARIANTS);

struct editar_model {
    std::shared_ptr<editar::Model> model;
    std::string backend;
};
struct editar_session {
    std::shared_ptr<editar::Model> model;  // which so outlives its sessions in whatever order they are closed
    editar::Session session;
};

namespace editar {

namespace {

// Not a std::string: it needs no destructor when a thread ends, and no memory when there is none.
thread_local char last_error[4096];

void remember(const char* message) noexcept {
    size_t length = std::strlen(message);
    if (length >= sizeof last_error) {
        length = sizeof last_error - 1;
        while (length > 0 && (static_cast<unsigned char>(message[length]) & 0xC0) == 0x80)
            --length;  // whole characters
    }
    std::memcpy(last_error, message, length);
    last_error[length] = '\0';
}

// A sentence may quote names that are not UTF-8.
void remember_repaired(const char* message) noexcept {
    try {
        remember(repaired(message).c_str());
    } catch (const std::exception&) {  // no memory
        remember(message);
    }
}

template <typename Body>
editar_status guarded(Body body) noexcept {
    last_error[0] = '\0';
    try {
        const editar_status status = body();
        last_error[0] = '\0';  // of a call that a callback made
        return status;
    } catch (const Error& e) {
        remember_repaired(e.what());
        return e.status();
    } catch (const std::bad_alloc&) {
        remember("there is not enough memory; close other models, or use a bundle of another precision");
        return EDITAR_NO_MEMORY;
    } catch (const std::exception& e) {
        remember_repaired(e.what());
    } catch (...) {
        remember("an unknown exception; please report it");
    }
    return EDITAR_INTERNAL;
}

// A copy of a caller's struct: of an older caller without the newer fields, of a newer one only if those are 0.
template <typename T>
T checked(const T* given, const char* name) {
    T own;
    std::memset(&own, 0, sizeof own);
    own.size = sizeof own;
    if (given == nullptr) return own;
    size_t size = 0;
    std::memcpy(&size, given, sizeof size);
    if (size < sizeof size || size > 65536)
        throw option_error(std::string("size of ") + name + " must be sizeof(" + name + "), got " +
                           std::to_string(size));
    const auto* bytes = reinterpret_cast<const unsigned char*>(given);
    for (size_t n = sizeof own; n < size; ++n)
        if (bytes[n] != 0)
            throw option_error(std::string(name) + " has a field that this version " + editar_version() +
                               " of the library does not know; leave it 0, or update the library");
    std::memcpy(&own, given, size < sizeof own ? size : sizeof own);
    return own;
}

// Write a struct back to a caller whose own may be shorter.
template <typename T>
void give(const T& own, T* target, size_t size) {
    const size_t skip = sizeof(size_t);
    std::memcpy(reinterpret_cast<unsigned char*>(target) + skip, reinterpret_cast<const unsigned char*>(&own) + skip,
                (size < sizeof own ? size : sizeof own) - skip);
}

template <typename T>
T* given(T* pointer, const char* name) {
    if (pointer == nullptr) throw option_error(std::string(name) + " must not be NULL");
    return pointer;
}

std::string text(const char* given) {
    return given == nullptr ? "" : given;
}

thread_local std::string report, fault;  // until the thread's next report

// Whether a fork brought the model into this process. Its engine's threads are not here, and its rows of the cache are
// the other process's memory.
bool is_of_another_process(const Model& model) {
    return model.process != process_number();
}

// Holds a model for one call.
class Turn {
public:
    explicit Turn(Model& model) : model_(model) {
        if (is_of_another_process(model))
            throw backend_error("the model was opened in process " + std::to_string(model.process) +
                                ", before the fork that made process " + std::to_string(process_number()) +
                                "; open it in this process");
        if (model_.busy.exchange(true))
            throw Error(EDITAR_BUSY, "another call is using this model; wait for it, or open a model for each thread");
    }
    ~Turn() { model_.busy = false; }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

private:
    Model& model_;
};

// Token ids of a caller; the engine would count negative ones from the vocabulary's end.
std::vector<int32_t> checked_ids(const char* name, const int32_t* ids, int32_t count) {
    for (int32_t n = 0; n < count; ++n)
        if (ids[n] < 0) throw option_error(std::string(name) + " must be 0 or more, got " + std::to_string(ids[n]));
    return {ids, ids + count};
}

Request checked_request(const Model& model, const editar_request& given) {
    Request own;
    const int count = model.picture_tokens();
    own.task = given.task == nullptr ? std::string(facts::TASK_PREFIXES[0].task) : given.task;
    own.instruction = repaired(text(given.instruction));
    own.prompt = build_prompt(given.task, given.instruction);
    own.text_states = given.text_states;
    if (given.token_ids != nullptr) {
        if (given.token_count < 1 || given.token_count > 1 << 20)
            throw option_error("token_count must be 1 to 1048576, got " + std::to_string(given.token_count));
        own.token_ids = checked_ids("token_ids", given.token_ids, given.token_count);
        own.has_ids = true;
    }
    if (given.text_states != nullptr && own.has_ids)
        throw option_error("give either text_states or token_ids, not both");
    if (given.text_states != nullptr) model.check_states(given.text_states);
    const editar_sampling sampling = checked(given.sampling, "editar_sampling");
    own.sampling = model.default_sampling().with(&sampling, count);
    own.variants = given.variants == 0 ? 1 : given.variants;
    if (own.variants < 1 || own.variants > facts::MAX_VARIANTS)
        throw option_error("variants must be 1 to " + std::to_string(facts::MAX_VARIANTS) + ", got " +
                           std::to_string(given.variants));
    if (given.keep < 0 || given.keep > count)
        throw option_error("keep must be 0 to " + std::to_string(count) + ", got " + std::to_string(given.keep));
    if (given.keep > 0) {
        editar::given(given.kept, "kept");
        own.kept.assign(given.kept, given.kept + given.keep);
        for (int32_t token : own.kept)
            if (token < 0 || token >= model.vocabulary())
                throw option_error("kept must be 0 to " + std::to_string(model.vocabulary() - 1) + ", got " +
                                   std::to_string(token));
    }
    if (given.mask_margin < -1)
        throw option_error("mask_margin must be -1 (none) or more, got " + std::to_string(given.mask_margin));
    own.mask_margin = given.mask_margin == 0 ? facts::MASK_MARGIN : given.mask_margin == -1 ? 0 : given.mask_margin;
    own.paste = given.no_composite == 0;
    if (given.mask != nullptr) {
        if (own.task != facts::TASK_PREFIXES[0].task)
            throw option_error("a mask keeps parts of the picture, which task " + own.task +
                               " cannot do; masks are for task edit");
        own.mask = grey_of(checked(given.mask, "editar_picture"));
        own.has_mask = true;
    }
    if (given.speculate < EDITAR_SPECULATE_AUTO)
        throw option_error("speculate must be EDITAR_SPECULATE_AUTO, 0 (none) or an even number, got " +
                           std::to_string(given.speculate));
    own.speculate = given.speculate;
    if (!std::isfinite(given.preview_share) || given.preview_share < 0 || given.preview_share > 1)
        throw option_error("preview_share must be 0 to 1");
    own.preview_share = given.preview_share == 0 ? facts::PREVIEW_SHARE : given.preview_share;
    own.on_progress = given.on_progress;
    own.on_preview = given.on_preview;
    own.user = given.user;
    own.stop = given.stop;
    return own;
}

Texts pairs_of(const char* const* texts) {
    Texts pairs;
    for (; texts != nullptr && texts[0] != nullptr; texts += 2) {
        if (texts[1] == nullptr) throw option_error("texts must be pairs of names and values, ended by NULL");
        pairs.emplace_back(repaired(texts[0]), repaired(texts[1]));
    }
    return pairs;
}

}  // namespace

}  // namespace editar

using namespace editar;

extern "C" {

const char* EDITAR_CALL editar_version(void) {
#define EDITAR_TEXT_OF(x) #x
#define EDITAR_DOTTED(a, b, c) EDITAR_TEXT_OF(a) "." EDITAR_TEXT_OF(b) "." EDITAR_TEXT_OF(c)
    return EDITAR_DOTTED(EDITAR_VERSION_MAJOR, EDITAR_VERSION_MINOR, EDITAR_VERSION_PATCH);
}

const char* EDITAR_CALL editar_last_error(void) {
    return last_error;
}

void EDITAR_CALL editar_set_log(editar_log_fn log, void* user, int32_t least_level) {
    set_log(log, user, least_level);
}

editar_status EDITAR_CALL editar_open_model(const char* folder, const editar_model_options* options,
                                            editar_model** model) {
    return guarded([&] {
        *given(model, "model") = nullptr;
        const editar_model_options own = checked(options, "editar_model_options");
        ModelOptions wanted;
        if (own.device != nullptr) wanted.device = own.device;
        if (own.threads < 0 || own.threads > thread_limit())
            throw option_error("threads must be 0 (the usual) to " + std::to_string(thread_limit()) +
                               ", the number of logical cores of this machine, got " + std::to_string(own.threads));
        wanted.threads = own.threads;
        wanted.check_all_files = own.check_all_files != 0;
        wanted.engine_path = text(own.onnxruntime_path);
        wanted.cache = kept_folder::cache_folder(own.cache_folder);
        wanted.plugin_path = text(own.plugin_path);
        wanted.engines = text(own.engine_folder);
        auto opened = std::make_unique<editar_model>();
        opened->model = std::make_shared<Model>(given(folder, "folder"), wanted);
        opened->backend = opened->model->backend().name();
        *model = opened.release();
        return EDITAR_OK;
    });
}

void EDITAR_CALL editar_close_model(editar_model* model) {
    if (model != nullptr && is_of_another_process(*model->model)) return;  // its engine waits for its threads
    delete model;
}

editar_status EDITAR_CALL editar_get_model_info(const editar_model* model, editar_model_info* info) {
    return guarded([&] {
        editar_model_info own = checked(given(info, "info"), "editar_model_info");
        const size_t size = own.size;
        const Manifest& manifest = given(model, "model")->model->bundle().manifest();
        const ModelInfo& sizes = manifest.model;
        own.image_size = sizes.image_size;
        own.picture_tokens = sizes.picture_tokens;
        own.grid = sizes.grid;
        own.vocabulary = sizes.vocab_size;
        own.text_tokens = sizes.text_tokens;
        own.text_dim = sizes.text_dim;
        auto has = [&](std::string_view part) { return manifest.part(part) != nullptr; };
        own.parts = 0;
        if (has(facts::VQ_ENCODER) && has(facts::VQ_DECODER)) own.parts |= EDITAR_HAS_VQ;
        if (has(facts::TEXT_ENCODER) && !manifest.tokenizer.empty()) own.parts |= EDITAR_HAS_TEXT;
        if (has(facts::DECODER) && has(facts::PREFIX_GRAPH)) own.parts |= EDITAR_HAS_DECODER;
        own.precision = manifest.precision.c_str();
        own.fingerprint = model->model->bundle().fingerprint().c_str();
        own.backend = model->backend.c_str();
        give(own, info, size);
        return EDITAR_OK;
    });
}

editar_status EDITAR_CALL editar_describe_bundle(const char* folder, int32_t check_all_files, const char** json) {
    return guarded([&] {
        given(json, "json");
        const Bundle bundle = Bundle::open(given(folder, "folder"));
        if (check_all_files != 0) bundle.check();
        report = describe(bundle, check_all_files != 0);
        *json = report.c_str();
        return EDITAR_OK;
    });
}

editar_status EDITAR_CALL editar_verify(editar_model* model, const char** wrong, const char** json) {
    return guarded([&] {
        Model& own = *given(model, "model")->model;
        given(wrong, "fault");
        given(json, "json");
        const Turn turn(own);
        report = verify(own, fault);
        *wrong = fault.empty() ? nullptr : fault.c_str();
        *json = report.c_str();
        return EDITAR_OK;
    });
}

editar_status EDITAR_CALL editar_bench(editar_model* model, const editar_bench_plan* plan,
                                       const editar_sampling* sampling, const char** json) {
    return guarded([&] {
        Model& own = *given(model, "model")->model;
        given(json, "json");
        const editar_bench_plan wanted = checked(plan, "editar_bench_plan");
        const editar_sampling settings = checked(sampling, "editar_sampling");
        const Turn turn(own);
        BenchPlan planned;
        if (wanted.repeats != 0) planned.repeats = wanted.repeats;
        if (wanted.warmup != 0) planned.warmup = wanted.warmup == -1 ? 0 : wanted.warmup;
        planned.at = wanted.at;
        planned.steps = wanted.steps;
        report = bench(own, planned, own.default_sampling().with(&settings, own.picture_tokens()));
        *json = report.c_str();
        return EDITAR_OK;
    });
}

editar_status EDITAR_CALL editar_read_picture(const void* file, size_t bytes, editar_picture* picture) {
    return guarded([&] {
        editar_picture own = checked(given(picture, "picture"), "editar_picture");
        const size_t size = own.size;
        if (bytes > 0) given(file, "file");
        const bool grey = own.channels == EDITAR_GREY;
        if (own.channels != 0 && own.channels != EDITAR_GREY && own.channels != EDITAR_RGB)
            throw option_error("channels must be EDITAR_RGB or EDITAR_GREY, got " + std::to_string(own.channels));
        own.channels = grey ? EDITAR_GREY : EDITAR_RGB;
        if (own.data == nullptr) {
            const auto [width, height] = picture_size(file, bytes);
            own.width = width;
            own.height = height;
            own.stride = static_cast<int64_t>(width) * own.channels;
            give(own, picture, size);
            return EDITAR_OK;
        }
        const Picture read = read_picture(file, bytes, grey);
        if (read.width != own.width || read.height != own.height)
            throw option_error("the memory is for " + std::to_string(own.width) + "x" + std::to_string(own.height) +
                               " pixels, but the picture has " + std::to_string(read.width) + "x" +
                               std::to_string(read.height) + "; call with data NULL first");
        const size_t line = static_cast<size_t>(read.width) * read.channels;
        const int64_t stride = own.stride == 0 ? static_cast<int64_t>(line) : own.stride;
        if (stride < static_cast<int64_t>(line)) throw option_error("stride must be at least width * channels");
        for (int y = 0; y < read.height; ++y) std::memcpy(own.data + y * stride, read.data.data() + y * line, line);
        own.stride = stride;
        give(own, picture, size);
        return EDITAR_OK;
    });
}

editar_status EDITAR_CALL editar_write_png(const char* path, const editar_picture* picture, const char* const* texts) {
    return guarded([&] {
        const editar_picture own = checked(given(picture, "picture"), "editar_picture");
        write_png(given(path, "path"), own.channels == EDITAR_GREY ? grey_of(own) : rgb_of(own), pairs_of(texts));
        return EDITAR_OK;
    });
}

editar_status EDITAR_CALL editar_sha256(const void* data, size_t bytes, char digits[65]) {
    return guarded([&] {
        Sha256 digest;
        digest.add(bytes == 0 ? data : given(data, "data"), bytes);
        std::memcpy(given(digits, "digits"), digest.hex().c_str(), 65);
        return EDITAR_OK;
    });
}

editar_status EDITAR_CALL editar_open_session(editar_model* model, const editar_picture* picture,
                                              editar_session** session) {
    return guarded([&] {
        *given(session, "session") = nullptr;
        std::shared_ptr<Model> own = given(model, "model")->model;
        const editar_picture shown = checked(given(picture, "picture"), "editar_picture");
        const Turn turn(*own);
        *session = new editar_session{own, Session(*own, rgb_of(shown))};
        return EDITAR_OK;
    });
}

void EDITAR_CALL editar_close_session(editar_session* session) {
    if (session != nullptr && is_of_another_process(*session->model)) return;
    delete session;
}

editar_status EDITAR_CALL editar_get_source(const editar_session* session, uint8_t* rgb, int32_t* tokens) {
    return guarded([&] {
        const Session& own = given(session, "session")->session;
        if (rgb != nullptr) std::copy(own.square().data.begin(), own.square().data.end(), rgb);
        if (tokens != nullptr) std::copy(own.tokens().begin(), own.tokens().end(), tokens);
        return EDITAR_OK;
    });
}

editar_status EDITAR_CALL editar_edit(editar_session* session, const editar_request* request, editar_output* output) {
    return guarded([&] {
        Model& model = *given(session, "session")->model;
        editar_output own = checked(given(output, "output"), "editar_output");
        const size_t size = own.size;
        const Turn turn(model);
        Request wanted = checked_request(model, checked(given(request, "request"), "editar_request"));
        wanted.wants_pictures = own.rgb != nullptr;
        const Outcome made = session->session.edit(wanted);
        if (own.tokens != nullptr) std::copy(made.tokens.begin(), made.tokens.end(), own.tokens);
        if (own.rgb != nullptr) std::copy(made.rgb.begin(), made.rgb.end(), own.rgb);
        for (int n = 0; own.passes != nullptr && n < wanted.variants; ++n)
            own.passes[n] = made.passes.empty() ? 0 : made.passes[static_cast<size_t>(n)];
        own.done = made.done;
        own.prompt_tokens = made.prompt_tokens;
        own.flags = (made.truncated ? EDITAR_TEXT_TRUNCATED : 0) | (made.mask_empty ? EDITAR_MASK_EMPTY : 0);
        own.encode_seconds = made.encode;
        own.text_seconds = made.text;
        own.prefill_seconds = made.prefill;
        own.decode_seconds = made.decode;
        own.pixel_seconds = made.pixels;
        own.preview_seconds = made.preview;
        own.engine_seconds = made.engine;
        give(own, output, size);
        return made.stopped ? EDITAR_STOPPED : EDITAR_OK;
    });
}

editar_status EDITAR_CALL editar_get_texts(const editar_session* session, int32_t variant, const char* const** texts) {
    return guarded([&] {
        *given(texts, "texts") = nullptr;
        const Turn turn(*given(session, "session")->model);
        *texts = session->session.texts(variant);
        return EDITAR_OK;
    });
}

editar_status EDITAR_CALL editar_tokenize(editar_model* model, const char* task, const char* instruction, int32_t* ids,
                                          int32_t capacity, int32_t* count) {
    return guarded([&] {
        Model& own = *given(model, "model")->model;
        given(count, "count");
        const Turn turn(own);
        const std::vector<int32_t> found = own.tokenize(build_prompt(task, instruction));
        for (int32_t n = 0; ids != nullptr && n < capacity && n < static_cast<int32_t>(found.size()); ++n)
            ids[n] = found[n];
        *count = static_cast<int32_t>(found.size());
        return EDITAR_OK;
    });
}

editar_status EDITAR_CALL editar_encode_text(editar_model* model, const int32_t* ids, int32_t count, float* states) {
    return guarded([&] {
        Model& own = *given(model, "model")->model;
        given(ids, "ids");
        given(states, "states");
        if (count < 1) throw option_error("count must be 1 or more, got " + std::to_string(count));
        const Turn turn(own);
        const std::vector<float> found = own.encode_text(own.padded(checked_ids("ids", ids, count)));
        std::copy(found.begin(), found.end(), states);
        return EDITAR_OK;
    });
}

editar_status EDITAR_CALL editar_encode_square(editar_model* model, const uint8_t* rgb, int32_t* tokens) {
    return guarded([&] {
        Model& own = *given(model, "model")->model;
        const Turn turn(own);
        const std::vector<int32_t> found = own.encode_square(given(rgb, "rgb"));
        std::copy(found.begin(), found.end(), given(tokens, "tokens"));
        return EDITAR_OK;
    });
}

editar_status EDITAR_CALL editar_decode_tokens(editar_model* model, const int32_t* tokens, int32_t pictures,
                                               uint8_t* rgb) {
    return guarded([&] {
        Model& own = *given(model, "model")->model;
        given(tokens, "tokens");
        given(rgb, "rgb");
        if (pictures < 1) throw option_error("pictures must be 1 or more, got " + std::to_string(pictures));
        const Turn turn(own);
        const size_t count = own.picture_tokens(), bytes = static_cast<size_t>(own.image_size()) * own.image_size() * 3;
        for (int32_t n = 0; n < pictures; ++n) own.decode_tokens(tokens + n * count, rgb + n * bytes);
        return EDITAR_OK;
    });
}

editar_status EDITAR_CALL editar_score(editar_model* model, const float* text_states, const int32_t* condition,
                                       const int32_t* tokens, float* cond, float* uncond) {
    return guarded([&] {
        Model& own = *given(model, "model")->model;
        given(text_states, "text_states");
        const Turn turn(own);
        own.check_states(text_states);
        const int count = own.picture_tokens();
        own.check_tokens("tokens", given(tokens, "tokens"), own.vocabulary());
        Scheduler scheduler(own.backend(), 1, false, own.prefix_length(), count, own.vocabulary(), own.sizes().dim);
        const Inputs inputs = own.inputs(text_states, condition);
        const std::vector<int32_t> forced(tokens, tokens + count);
        if (cond != nullptr) scheduler.score(scheduler.context(0), inputs.picture, inputs.text, forced, cond);
        if (uncond != nullptr)
            scheduler.score(scheduler.context(0), inputs.picture, inputs.uncond_text, forced, uncond);
        return EDITAR_OK;
    });
}

editar_status EDITAR_CALL editar_generate(editar_model* model, const float* text_states, const int32_t* condition,
                                          const editar_sampling* sampling, const int32_t* known, int32_t* tokens) {
    return guarded([&] {
        Model& own = *given(model, "model")->model;
        given(text_states, "text_states");
        given(tokens, "tokens");
        const editar_sampling wanted = checked(sampling, "editar_sampling");
        const Turn turn(own);
        own.check_states(text_states);
        const int count = own.picture_tokens();
        const Sampling settings = own.default_sampling().with(&wanted, count);
        if (known != nullptr) own.check_tokens("known", known, own.vocabulary(), true);
        const Inputs inputs = own.inputs(text_states, condition);
        Scheduler scheduler(own.backend(), 1, settings.guided(), own.prefix_length(), count, own.vocabulary(),
                            own.sizes().dim);
        const std::vector<int32_t> fixed =
            known == nullptr ? std::vector<int32_t>(count, -1) : std::vector<int32_t>(known, known + count);
        Sequence sequence(scheduler.context(0), inputs, settings, settings.seed, fixed);
        if (!sequence.finished()) scheduler.prefill(sequence);
        while (!sequence.finished()) scheduler.step({&sequence});
        std::copy(sequence.tokens.begin(), sequence.tokens.end(), tokens);
        return EDITAR_OK;
    });
}

editar_status EDITAR_CALL editar_sample(const float* logits, int32_t vocabulary, const editar_sampling* sampling,
                                        int32_t position, int32_t* token) {
    return guarded([&] {
        given(logits, "logits");
        given(token, "token");
        if (vocabulary < 1) throw option_error("vocabulary must be 1 or more, got " + std::to_string(vocabulary));
        if (position < 0) throw option_error("position must be 0 or more, got " + std::to_string(position));
        const editar_sampling wanted = checked(sampling, "editar_sampling");
        const Sampling settings = Sampling().with(&wanted, 0);
        try {
            *token = Sampler().sample(logits, vocabulary, settings, settings.seed, position);
        } catch (const NotFinite&) {
            throw option_error("logits must not be NaN, and the largest must be finite");
        }
        return EDITAR_OK;
    });
}
}
