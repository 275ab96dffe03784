#include "ort/ort_backend.h"

#include <cstring>

#include "error.h"
#include "facts.h"
#include "machine.h"
#include "ort/ort_decoder.h"
#include "ort/rows.h"

namespace editar {

namespace {

int64_t elements(const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    return count;
}

std::string joined(const std::vector<std::string>& words) {
    std::string text;
    for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
    return text;
}

bool contains(const std::vector<std::string>& words, const std::string& word) {
    for (const std::string& each : words)
        if (each == word) return true;
    return false;
}

std::string upper(std::string text) {
    for (char& c : text)
        if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
    return text;
}

}  // namespace

OrtBackend::OrtBackend(const Bundle& bundle, const OrtSettings& settings)
    : bundle_(bundle), ort_(OnnxRuntime::get(settings.engine_path)), settings_(settings) {
    const std::string& device = settings.device;
    if (device == "cuda" || (device == "auto" && contains(bundle.manifest().providers, "cuda"))) {
        try {
            cuda_ = std::make_unique<CudaCopier>(ort_);
        } catch (const Error& e) {
            if (device == "cuda") throw;
            why_cpu_ = e.what();
        }
    }
}

OrtBackend::~OrtBackend() = default;

std::string OrtBackend::name() const {
    return "ONNX Runtime " + ort_.version() + " (" + upper(device()) + ")";
}

int64_t OrtBackend::shared_bytes() const {
    return bytes_counted_twice(ROWS_MEMORY);
}

SessionOptionsPtr OrtBackend::make_options() const {
    const OrtApi& api = ort_.api();
    OrtSessionOptions* raw = nullptr;
    ort_.check(api.CreateSessionOptions(&raw), "options");
    SessionOptionsPtr options = own(ort_, raw);
    auto entry = [&](const char* name, const char* value) {
        ort_.check(api.AddSessionConfigEntry(raw, name, value), "options");
    };
    ort_.check(api.SetSessionLogSeverityLevel(raw, ORT_LOGGING_LEVEL_ERROR), "options");
    ort_.check(api.SetSessionGraphOptimizationLevel(raw, ORT_ENABLE_ALL), "options");
    // Matmuls with dequantized weights (INT4 for TensorRT) run in float32, without rounded activations.
    entry(facts::ACCURACY_LEVEL_KEY, facts::ACCURACY_LEVEL);
    ort_.check(api.SetIntraOpNumThreads(raw, settings_.threads > 0 ? settings_.threads : thread_count()), "options");
    // Do not spin between two runs, while the loop samples or another part computes.
    entry("session.force_spinning_stop", "1");
    if (ort_.is_at_least(facts::TAKES_DURATION_MAJOR, facts::TAKES_DURATION_MINOR))
        entry("session.intra_op.spin_duration_us", std::to_string(facts::SPIN_US).c_str());
    else if (is_limited())
        entry("session.intra_op.allow_spinning", "0");
    return options;
}

SessionPtr OrtBackend::open(const std::string& graph, SessionOptionsPtr options) {
    if (cuda_) CudaCopier::append(ort_, options.get());
    OrtSession* raw = nullptr;
    const std::string reason = [&] {
        const auto held = mapping_weights();
        return ort_.said(ort_.api().CreateSession(ort_.env(), ort_path(graph).c_str(), options.get(), &raw));
    }();
    OnnxRuntime::check_memory(reason);
    if (!reason.empty())
        throw backend_error("ONNX Runtime " + ort_.version() + " cannot load " + graph + ": " + reason);
    return own(ort_, raw);
}

OrtSession* OrtBackend::session(std::string_view name) {
    const std::string part(name);
    const auto found = sessions_.find(part);
    if (found != sessions_.end()) return found->second.session.get();
    const Manifest& manifest = bundle_.manifest();
    if (manifest.part(part) == nullptr) {
        std::vector<std::string> held;
        for (const auto& each : manifest.parts) held.push_back(each.first);
        throw missing_part("the bundle " + bundle_.folder() + " has no part " + part + "; its parts are " +
                           (held.empty() ? "nothing" : joined(held)));
    }
    const bool is_decoder = part == facts::DECODER;
    if (is_decoder && !contains(manifest.providers, device()))
        throw backend_error("ONNX Runtime does not run " + bundle_.folder() + " on " + device() +
                            ": its decoder (precision " + manifest.precision + ", dialect " + manifest.dialect +
                            ") is for " + joined(manifest.providers) + "; export it again with --provider " + device() +
                            (why_cpu_.empty() ? "" : " (" + why_cpu_ + ")"));
    if (is_decoder && manifest.kv_cache == facts::INT8 &&
        !ort_.is_at_least(facts::READS_INT8_MAJOR, facts::READS_INT8_MINOR))
        throw backend_error("the cache of " + bundle_.folder() + " is int8, which needs ONNX Runtime " +
                            std::to_string(facts::READS_INT8_MAJOR) + "." + std::to_string(facts::READS_INT8_MINOR) +
                            " or newer, but this is " + ort_.version() +
                            "; install a newer one, or export the bundle again with --kv-cache same");
    auto options = [&] {
        SessionOptionsPtr made = make_options();
        if (part == facts::PREFIX_GRAPH)  // it runs once an edit, and the arena would keep the memory of a run
            ort_.check(ort_.api().DisableCpuMemArena(made.get()), part);
        return made;
    };
    const std::string described = is_decoder ? decoder_part() : part;
    Open opened;
    const std::string kept = cuda_ ? "" : prepacked(*this, settings_.cache, described);
    if (!kept.empty()) {
        try {
            opened.session = open(kept, options());
            opened.weights = {prepacked_weights(kept)};
        } catch (const Error&) {
            forget_prepacked(kept);
        }
    }
    if (opened.session == nullptr) {
        opened.session = open(bundle_.part_path(described), options());
        for (const std::string& name : bundle_.part_files(described))
            if (name != manifest.part(described)->file) opened.weights.push_back(bundle_.path(name));
    }
    drop_file_pages(opened.weights);  // opening reads more than running needs
    trim_heap();
    for (const TensorInfo& output : manifest.part(described)->outputs) opened.outputs.push_back(output.name);
    return (sessions_[part] = std::move(opened)).session.get();
}

const char* OrtBackend::decoder_part() const {
    const bool takes = ort_.is_at_least(facts::TAKES_CHUNK_LENGTHS_MAJOR, facts::TAKES_CHUNK_LENGTHS_MINOR);
    return takes && bundle_.manifest().part(facts::DECODER_CHUNKS) != nullptr ? facts::DECODER_CHUNKS : facts::DECODER;
}

std::vector<Array> OrtBackend::run(std::string_view part, const std::vector<Feed>& inputs) {
    OrtSession* session = this->session(part);
    const Open& opened = sessions_.find(part)->second;
    const OrtApi& api = ort_.api();
    std::vector<ValuePtr> values;
    std::vector<const OrtValue*> fed;
    std::vector<const char*> input_names, output_names;
    for (const Feed& feed : inputs) {
        const bool floats = feed.type == Type::float32;
        values.push_back(
            own(ort_,
                ort_.value(const_cast<void*>(feed.data), elements(feed.shape) * 4, feed.shape.data(), feed.shape.size(),
                           floats ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32)));
        fed.push_back(values.back().get());
        input_names.push_back(feed.name.data());
    }
    for (const std::string& name : opened.outputs) output_names.push_back(name.c_str());
    std::vector<OrtValue*> raw(output_names.size(), nullptr);
    OrtStatus* status = api.Run(session, nullptr, input_names.data(), fed.data(), fed.size(), output_names.data(),
                                output_names.size(), raw.data());
    std::vector<ValuePtr> results;
    results.reserve(raw.size());
    for (OrtValue* each : raw) results.push_back(own(ort_, each));
    ort_.check(status, part);
    std::vector<Array> arrays;
    for (size_t n = 0; n < results.size(); ++n) {
        OrtTensorTypeAndShapeInfo* raw_info = nullptr;
        ort_.check(api.GetTensorTypeAndShape(results[n].get(), &raw_info), part);
        TensorTypeAndShapeInfoPtr info = own(ort_, raw_info);
        ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        size_t rank = 0;
        ort_.check(api.GetTensorElementType(raw_info, &type), part);
        ort_.check(api.GetDimensionsCount(raw_info, &rank), part);
        Array array;
        array.name = opened.outputs[n];
        array.shape.resize(rank);
        ort_.check(api.GetDimensions(raw_info, array.shape.data(), rank), part);
        void* data = nullptr;
        ort_.check(api.GetTensorMutableData(results[n].get(), &data), part);
        const int64_t count = elements(array.shape);
        if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
            array.floats.assign(static_cast<float*>(data), static_cast<float*>(data) + count);
        } else if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32) {
            array.ints.assign(static_cast<int32_t*>(data), static_cast<int32_t*>(data) + count);
        } else {
            throw bundle_error("the part " + std::string(part) + " returns " + array.name +
                               " in a type that is neither float32 nor int32; export the bundle again");
        }
        arrays.push_back(std::move(array));
    }
    if (part == facts::PREFIX_GRAPH) drop_file_pages(opened.weights);
    return arrays;
}

std::unique_ptr<Decoder> OrtBackend::make_decoder(int rows, int capacity) {
    return std::make_unique<OrtDecoder>(*this, rows, capacity);
}

}  // namespace editar
