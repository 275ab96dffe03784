// The contents of a bundle: editar_rt/cli/info.py and measure/memory.py.
#include <algorithm>
#include <set>

#include "engines/folder.h"
#include "facts.h"
#include "json_text.h"
#include "reports.h"
#include "sampling.h"

namespace editar {

namespace {

constexpr int64_t FLOAT32 = 4, DECODER_WIDTHS = 13;  // largest working set of a position in the decoder, in widths

JsonText tensors(const std::vector<TensorInfo>& given) {
    JsonText list = JsonText::list();
    for (const TensorInfo& tensor : given) {
        JsonText shape = JsonText::list();
        for (size_t n = 0; n < tensor.shape.size(); ++n) {
            if (tensor.symbolic[n])
                shape.add(tensor.symbols[n]);
            else
                shape.add(tensor.shape[n]);
        }
        list.add(JsonText::object().set("name", tensor.name).set("dtype", tensor.dtype).set("shape", shape));
    }
    return list;
}

JsonText counts(const std::map<std::string, int64_t>& given) {
    JsonText object = JsonText::object();
    for (const auto& [name, value] : given) object.set(name, value);
    return object;
}

JsonText copied(const Json& value) {
    switch (value.kind) {
        case Json::Kind::boolean:
            return JsonText::raw(value.boolean ? "true" : "false");
        case Json::Kind::number:
            return JsonText::raw(value.text);
        case Json::Kind::string:
            return JsonText::raw(json_quoted(value.text));
        case Json::Kind::list: {
            JsonText list = JsonText::list();
            for (const Json& each : value.items) list.add(copied(each));
            return list;
        }
        case Json::Kind::object: {
            JsonText object = JsonText::object();
            for (const auto& [name, each] : value.members) object.set(name, copied(each));
            return object;
        }
        default:
            return JsonText::raw("null");
    }
}

JsonText model_sizes(const ModelInfo& model) {
    JsonText object = JsonText::object();
#define EDITAR_SIZE(name, largest)                \
    if (model.name == 0)                          \
        object.set(#name, JsonText::raw("null")); \
    else                                          \
        object.set(#name, static_cast<int64_t>(model.name));
    EDITAR_MODEL_SIZES(EDITAR_SIZE)
#undef EDITAR_SIZE
    return object.set("parameters", counts(model.parameters))
        .set("activations", counts(model.activations))
        .set("step_weight_bytes", counts(model.step_weight_bytes));
}

JsonText need(int64_t weights, int64_t cache, int64_t activations) {
    return JsonText::object()
        .set("weights", weights)
        .set("cache", cache)
        .set("activations", activations)
        .set("total", weights + cache + activations);
}

JsonText memory(const Bundle& bundle) {
    const Manifest& manifest = bundle.manifest();
    const ModelInfo& model = manifest.model;
    const int64_t rows = 2, positions = 2 * static_cast<int64_t>(model.picture_tokens) + model.text_tokens;
    const int64_t cache = rows * positions * cache_bytes_per_position(manifest);
    int64_t activations = manifest.part(facts::DECODER) == nullptr
                              ? 0
                              : rows * (positions - model.picture_tokens) * model.dim * DECODER_WIDTHS * FLOAT32;
    for (const auto& each : model.activations) activations = std::max(activations, each.second);
    std::set<std::string> files;
    for (const auto& part : manifest.parts)
        for (const std::string& name : bundle.part_files(part.first)) files.insert(name);
    int64_t stored = 0, parameters = 0;
    for (const std::string& name : files) stored += manifest.file(name)->bytes;
    for (const auto& each : model.parameters) parameters += each.second;
    bool half = false;  // CPUs have no 16-bit matmuls: such weights become float32 when they are loaded
    for (const auto& each : facts::PRECISIONS)
        if (manifest.precision == each.name) half = std::string_view(each.stored) != "float32";
    JsonText needs = JsonText::object();
    for (const char* device : {"cpu", "cuda"})
        needs.set(device, need(half && device[1] == 'p' ? FLOAT32 * parameters : stored, cache, activations));
    return needs;
}

// The GPU memory that built engines need, by the name of their folder: an engine of several shapes once, others each
// with all their weights.
JsonText engines(const Bundle& bundle) {
    const PartInfo* decoder = bundle.manifest().part(facts::DECODER);
    const TensorInfo* past = decoder == nullptr ? nullptr : decoder->input(facts::PAST_KEY + std::string("0"));
    const int64_t capacity = past == nullptr || past->symbolic[2] ? 0 : past->shape[2];
    JsonText needs = JsonText::object();
    for (const std::string& folder : find_engine_folders(bundle)) {
        const BuildInfo info = read_build(folder);
        int64_t weights = 0, scratch = 0;
        for (const auto& each : info.files) weights += each.second.bytes;
        for (const auto& each : info.engines) scratch = std::max(scratch, each.second.scratch_bytes);
        const double cache = static_cast<double>(info.plan.padded(2)) * static_cast<double>(capacity) *
                             static_cast<double>(cache_bytes_per_position(bundle.manifest()));
        needs.set(as_utf8(as_path(folder).filename()),
                  need(weights, static_cast<int64_t>(std::min(cache, 0x1p60)), scratch));
    }
    return needs;
}

}  // namespace

int64_t cache_bytes_per_position(const Manifest& manifest) {
    const PartInfo* decoder = manifest.part(facts::DECODER);
    const TensorInfo* keys = decoder == nullptr ? nullptr : decoder->input(facts::PAST_KEY + std::string("0"));
    if (keys == nullptr) return 0;
    const int64_t element = keys->dtype == "float32" || keys->dtype == "int32"      ? 4
                            : keys->dtype == "float16" || keys->dtype == "bfloat16" ? 2
                            : keys->dtype == "int64"                                ? 8
                                                                                    : 1;
    return 2 * element * manifest.model.layers * manifest.model.dim;
}

std::string describe(const Bundle& bundle, bool checked) {
    const Manifest& manifest = bundle.manifest();
    JsonText parts = JsonText::object(), files = JsonText::object(), providers = JsonText::list(),
             made_by = JsonText::object();
    for (const auto& [name, part] : manifest.parts)
        parts.set(name, JsonText::object()
                            .set("file", part.file)
                            .set("inputs", tensors(part.inputs))
                            .set("outputs", tensors(part.outputs)));
    for (const auto& [name, file] : manifest.files)
        files.set(name, JsonText::object().set("sha256", file.sha256).set("bytes", file.bytes));
    for (const std::string& provider : manifest.providers) providers.add(provider);
    for (const auto& [name, value] : manifest.made_by) made_by.set(name, value);
    auto optional = [](const std::string& text) { return JsonText::raw(text.empty() ? "null" : json_quoted(text)); };
    return JsonText::object()
        .set("model", model_sizes(manifest.model))
        .set("parts", parts)
        .set("files", files)
        .set("precision", manifest.precision)
        .set("spelling", manifest.dialect)
        .set("kv_cache", manifest.kv_cache)
        .set("sampler_top_k", manifest.sampler_top_k == 0 ? JsonText::raw("null")
                                                          : JsonText::raw(std::to_string(manifest.sampler_top_k)))
        .set("providers", providers)
        .set("tokenizer", optional(manifest.tokenizer))
        .set("samples", optional(manifest.samples))
        .set("sampling", manifest.sampling.kind == Json::Kind::object ? copied(manifest.sampling) : JsonText::object())
        .set("self_test", copied(manifest.self_test))
        .set("made_by", made_by)
        .set("format", facts::FORMAT)
        .set("format_version", manifest.format_version)
        .set("fingerprint", bundle.fingerprint())
        .set("checked", checked)
        .set("memory", memory(bundle))
        .set("engines", engines(bundle))
        .text();
}

}  // namespace editar
