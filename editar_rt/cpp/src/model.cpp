#include "model.h"

#include <cmath>

#include "engines/engine_backend.h"
#include "error.h"
#include "facts.h"
#include "files.h"
#include "machine.h"
#include "ort/ort_backend.h"

namespace editar {

namespace {

Array& find(std::vector<Array>& arrays, std::string_view name, std::string_view part) {
    for (Array& array : arrays)
        if (array.name == name) return array;
    throw bundle_error("the part " + std::string(part) + " does not return " + std::string(name) +
                       "; export the bundle again");
}

void check_size(size_t found, size_t expected, std::string_view name, std::string_view part) {
    if (found != expected)
        throw bundle_error("the part " + std::string(part) + " returned " + std::to_string(found) + " values of " +
                           std::string(name) + ", but the manifest says " + std::to_string(expected) +
                           "; export the bundle again");
}

}  // namespace

std::string build_prompt(const char* task, const char* text) {
    const std::string_view wanted = task == nullptr ? facts::TASK_PREFIXES[0].task : std::string_view(task);
    std::string names;
    for (const auto& each : facts::TASK_PREFIXES) {
        if (wanted == each.task) return std::string(each.prefix) + (text == nullptr ? "" : text);
        names += (names.empty() ? "" : ", ") + std::string(each.task);
    }
    throw option_error("task must be one of " + names + ", got '" + std::string(wanted.substr(0, 60)) + "'");
}

Model::Model(const std::string& folder, const ModelOptions& options)
    : process(process_number()),
      bundle_(Bundle::open(folder, options.check_all_files)),
      default_sampling_(Sampling::of_bundle(bundle_.manifest().sampling, bundle_.folder())) {
    const std::string& device = options.device;
    if (device != "auto" && device != "cpu" && device != "cuda" && device != "tensorrt")
        throw option_error("device must be one of auto, cpu, cuda, tensorrt, got '" + device.substr(0, 60) + "'");
    const Manifest& manifest = bundle_.manifest();
    const bool fixed = manifest.operators().has_fixed_shapes;
    if (fixed && device != "auto" && device != "tensorrt")
        throw backend_error("the bundle " + bundle_.folder() + " has the dialect " + manifest.dialect +
                            ", which runs on TensorRT, not on " + device + "; choose device tensorrt");
    if (!fixed && device == "tensorrt")
        throw backend_error("tensorrt runs bundles of the dialects delta and native, but " + bundle_.folder() +
                            " has the dialect " + manifest.dialect + "; convert it with: python -m export convert " +
                            bundle_.folder() + " --dialect delta -o OUT");
    if (fixed) {
        backend_ = open_engine_backend(bundle_, options.plugin_path, options.engines, options.cache);
        return;
    }
    OrtSettings settings;
    settings.device = device;
    settings.threads = options.threads;
    settings.engine_path = options.engine_path.empty() ? nullptr : options.engine_path.c_str();
    settings.cache = options.cache;
    backend_ = std::make_unique<OrtBackend>(bundle_, settings);
}

Model::Model(const Bundle& bundle, std::unique_ptr<Backend> backend)
    : process(process_number()), bundle_(bundle), backend_(std::move(backend)) {}

int Model::image_size() const {
    if (sizes().image_size == 0)
        throw missing_part("the bundle " + bundle_.folder() + " has no VQ tokenizer, so it has no picture size");
    return sizes().image_size;
}

int Model::picture_tokens() const {
    if (sizes().picture_tokens == 0)
        throw missing_part("the bundle " + bundle_.folder() + " has neither a VQ tokenizer nor a transformer");
    return sizes().picture_tokens;
}

int Model::vocabulary() const {
    if (sizes().vocab_size == 0) throw missing_part("the bundle " + bundle_.folder() + " has no transformer");
    return sizes().vocab_size;
}

std::vector<int32_t> Model::tokenize(const std::string& prompt) {
    const Manifest& manifest = bundle_.manifest();
    if (tokenizer_ == nullptr) {
        if (manifest.part(facts::TEXT_ENCODER) == nullptr || manifest.tokenizer.empty())
            throw missing_part("the bundle " + bundle_.folder() +
                               " has no text encoder; give text_states computed elsewhere, or export the bundle with "
                               "--text-encoder");
        const std::string path = bundle_.path(manifest.tokenizer);
        tokenizer_ = std::make_unique<Tokenizer>(MappedFile(path).bytes(), path);
    }
    return tokenizer_->encode(prompt);
}

Encoded Model::padded(std::vector<int32_t> ids) {
    Encoded encoded;
    const size_t length = sizes().text_tokens;
    encoded.tokens = static_cast<int>(ids.size());
    if (ids.size() > length) {
        const bool has_end = tokenizer_ == nullptr || tokenizer_->ends_with_special(ids);
        const int32_t end = ids.back();
        ids.resize(length);
        if (has_end && length > 0) ids.back() = end;
    }
    encoded.mask.assign(length, 0);
    for (size_t n = 0; n < ids.size(); ++n) encoded.mask[n] = 1;
    ids.resize(length, tokenizer_ == nullptr ? 0 : tokenizer_->pad_id());
    encoded.ids = std::move(ids);
    return encoded;
}

std::vector<float> Model::encode_text(const Encoded& encoded) {
    const std::vector<int64_t> shape = {1, static_cast<int64_t>(encoded.ids.size())};
    auto outputs =
        backend_->run(facts::TEXT_ENCODER, {{facts::INPUT_IDS, Type::int32, shape, encoded.ids.data()},
                                            {facts::ATTENTION_MASK, Type::int32, shape, encoded.mask.data()}});
    auto& states = find(outputs, facts::TEXT_STATES, facts::TEXT_ENCODER).floats;
    check_size(states.size(), static_cast<size_t>(sizes().text_tokens) * sizes().text_dim, facts::TEXT_STATES,
               facts::TEXT_ENCODER);
    return std::move(states);
}

std::vector<int32_t> Model::encode_square(const uint8_t* rgb) {
    const int side = image_size();
    const size_t area = static_cast<size_t>(side) * side;
    std::vector<float> pixels(3 * area);
    for (size_t pixel = 0; pixel < area; ++pixel)
        for (size_t channel = 0; channel < 3; ++channel)
            pixels[channel * area + pixel] = static_cast<float>(rgb[3 * pixel + channel]) / 127.5F - 1.0F;
    return encode_pixels(pixels);
}

std::vector<int32_t> Model::encode_pixels(const std::vector<float>& pixels) {
    const int side = image_size();
    auto outputs =
        backend_->run(facts::VQ_ENCODER, {{facts::PIXELS, Type::float32, {1, 3, side, side}, pixels.data()}});
    auto& tokens = find(outputs, facts::TOKENS, facts::VQ_ENCODER).ints;
    check_size(tokens.size(), picture_tokens(), facts::TOKENS, facts::VQ_ENCODER);
    return std::move(tokens);
}

std::vector<float> Model::decode_pixels(const int32_t* tokens) {
    const int side = image_size();
    check_tokens("tokens", tokens, sizes().codebook_size);
    auto outputs = backend_->run(facts::VQ_DECODER, {{facts::TOKENS, Type::int32, {1, picture_tokens()}, tokens}});
    auto& pixels = find(outputs, facts::PIXELS, facts::VQ_DECODER).floats;
    check_size(pixels.size(), 3 * static_cast<size_t>(side) * side, facts::PIXELS, facts::VQ_DECODER);
    return std::move(pixels);
}

void Model::decode_tokens(const int32_t* tokens, uint8_t* rgb) {
    const std::vector<float> pixels = decode_pixels(tokens);
    const size_t area = pixels.size() / 3;
    for (float value : pixels)
        if (!std::isfinite(value))
            throw backend_error(
                "the VQ decoder gave pixels that are not finite; check the bundle with: editar-cli "
                "verify " +
                bundle_.folder());
    for (size_t pixel = 0; pixel < area; ++pixel)
        for (size_t channel = 0; channel < 3; ++channel) {
            const float value = pixels[channel * area + pixel];
            const float clipped = value < -1.0F ? -1.0F : value > 1.0F ? 1.0F : value;
            rgb[3 * pixel + channel] = static_cast<uint8_t>((clipped + 1.0F) * 127.5F + 0.5F);
        }
}

Inputs Model::inputs(const float* text_states, const int32_t* condition) {
    const int text = sizes().text_tokens, dim = sizes().dim, count = picture_tokens();
    if (condition != nullptr) check_tokens("condition", condition, vocabulary());
    auto outputs = backend_->run(facts::PREFIX_GRAPH,
                                 {{facts::TEXT_STATES, Type::float32, {1, text, sizes().text_dim}, text_states}});
    auto chunk = [&](std::string_view name, int positions) {
        const auto& states = find(outputs, name, facts::PREFIX_GRAPH).floats;
        check_size(states.size(), static_cast<size_t>(positions) * dim, name, facts::PREFIX_GRAPH);
        return state_chunk(states.data(), positions, dim);
    };
    Inputs made;
    made.picture = condition == nullptr ? chunk(facts::NULL_PICTURE_PREFIX, count) : token_chunk(condition, count);
    made.text = chunk(facts::TEXT_PREFIX, text);
    made.uncond_text = chunk(facts::NULL_TEXT_PREFIX, text);
    return made;
}

void Model::check_states(const float* text_states) const {
    const size_t count = static_cast<size_t>(sizes().text_tokens) * sizes().text_dim;
    for (size_t n = 0; n < count; ++n)
        if (!std::isfinite(text_states[n]))
            throw option_error("text_states must be finite, got " + python_repr(text_states[n]) + " in position " +
                               std::to_string(n / sizes().text_dim));
}

void Model::check_tokens(const char* what, const int32_t* tokens, int size, bool negative_too) const {
    const int count = picture_tokens();
    for (int n = 0; n < count; ++n)
        if (tokens[n] >= size || (tokens[n] < 0 && !negative_too))
            throw option_error(std::string(what) + " must be 0 to " + std::to_string(size - 1) + ", got " +
                               std::to_string(tokens[n]));
}

}  // namespace editar
