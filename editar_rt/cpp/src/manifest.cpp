// bundle.json: its values, each checked before it is used (editar_rt/bundle/manifest.py, parts.py).
#include <algorithm>
#include <limits>

#include "bundle.h"
#include "error.h"
#include "text.h"

namespace editar {

namespace {

using facts::MANIFEST_NAME;
using facts::schema::Field;
using facts::schema::Kind;
using facts::schema::Type;

std::string manifest_text(const std::string& rest) {
    return std::string(MANIFEST_NAME) + rest;
}

std::string joined(const std::vector<std::string>& words, const char* between = ", ") {
    std::string out;
    for (const auto& word : words) out += (out.empty() ? "" : between) + word;
    return out;
}

void check_type(const Type& type, const Json& value, const std::string& where);

void check_object(const Type& type, const Json& value, const std::string& where) {
    // Unknown names are ignored: a later 1.x writer may add some.
    for (const auto& [name, member] : value.members)
        for (const Field* field = type.fields; field != type.fields + type.count; ++field)
            if (name == field->name) check_type(*field->type, member, where + ": " + name);
    std::vector<std::string> missing;
    for (const Field* field = type.fields; field != type.fields + type.count; ++field)
        if (field->required && !value.find(field->name)) missing.emplace_back(field->name);
    if (missing.empty()) return;
    std::sort(missing.begin(), missing.end());
    throw bundle_error(where + " lacks " + joined(missing) + "; export the bundle again");
}

void check_scalar(const Type& type, const Json& value, const std::string& where) {
    const bool integer = value.is_integer();
    if (integer) {
        const int64_t number = value.integer();
        if (number == std::numeric_limits<int64_t>::max() || number == std::numeric_limits<int64_t>::min()) {
            if (value.text != "9223372036854775807")
                throw bundle_error(where + " is a number of " + std::to_string(value.text.size()) +
                                   " digits; export the bundle again");
        }
    }
    const bool fits = type.kind == Kind::integer   ? integer
                      : type.kind == Kind::number  ? value.kind == Json::Kind::number
                      : type.kind == Kind::boolean ? value.kind == Json::Kind::boolean
                                                   : value.kind == Json::Kind::string;
    const char* name = type.kind == Kind::integer   ? "int"
                       : type.kind == Kind::number  ? "float"
                       : type.kind == Kind::boolean ? "bool"
                                                    : "str";
    if (!fits) throw bundle_error(where + " must be " + name + ", got " + shown(value));
}

// Compare a value with its type: `decode_json` of manifest.py.
void check_type(const Type& type, const Json& value, const std::string& where) {
    if (type.optional && value.kind == Json::Kind::null) return;
    switch (type.kind) {
        case Kind::object:
        case Kind::map:
            if (value.kind != Json::Kind::object)
                throw bundle_error(where + " must be an object, got " + value.python_type());
            if (type.kind == Kind::object) {
                check_object(type, value, where);
            } else {
                for (const auto& [name, member] : value.members) check_type(*type.of, member, where + ": " + name);
            }
            return;
        case Kind::list:
            if (value.kind != Json::Kind::list)
                throw bundle_error(where + " must be a list, got " + value.python_type());
            for (size_t i = 0; i < value.items.size(); ++i)
                check_type(*type.of, value.items[i], where + "[" + std::to_string(i) + "]");
            return;
        case Kind::either:
            try {
                check_type(*type.of, value, where);
            } catch (const Error&) {
                check_type(*type.other, value, where);
            }
            return;
        case Kind::any:
            return;
        default:
            check_scalar(type, value, where);
    }
}

// From checked values.

int64_t integer_of(const Json* value) {
    return value && value->kind == Json::Kind::number ? value->integer() : 0;
}

std::string text_of(const Json* value, std::string_view otherwise = "") {
    return value && value->kind == Json::Kind::string ? value->text : std::string(otherwise);
}

TensorInfo tensor_of(const Json& value) {
    TensorInfo tensor{value.find("name")->text, value.find("dtype")->text, {}, {}, {}};
    for (const auto& dimension : value.find("shape")->items) {
        const bool symbolic = dimension.kind == Json::Kind::string;
        tensor.symbolic.push_back(symbolic);
        tensor.shape.push_back(symbolic ? -1 : dimension.integer());
        tensor.symbols.push_back(symbolic ? dimension.text : "");
    }
    return tensor;
}

PartInfo part_of(const Json& value) {
    PartInfo part{value.find("file")->text, {}, {}};
    for (const auto& tensor : value.find("inputs")->items) part.inputs.push_back(tensor_of(tensor));
    for (const auto& tensor : value.find("outputs")->items) part.outputs.push_back(tensor_of(tensor));
    return part;
}

std::map<std::string, int64_t> counts_of(const Json* value) {
    std::map<std::string, int64_t> counts;
    if (value)
        for (const auto& [name, count] : value->members) counts[name] = count.integer();
    return counts;
}

ModelInfo model_of(const Json& value) {
    ModelInfo model;
    const auto size = [&value](const char* name, int largest) {
        const Json* given = value.find(name);
        if (!given || given->kind == Json::Kind::null) return 0;
        const int64_t number = given->integer();
        if (number < 1 || number > largest)
            throw bundle_error(manifest_text(": model: ") + name + " must be 1 to " + std::to_string(largest) +
                               ", got " + std::to_string(number));
        return static_cast<int>(number);
    };
#define EDITAR_SIZE(name, largest) model.name = size(#name, largest);
    EDITAR_MODEL_SIZES(EDITAR_SIZE)
#undef EDITAR_SIZE
    model.parameters = counts_of(value.find("parameters"));
    model.activations = counts_of(value.find("activations"));
    model.step_weight_bytes = counts_of(value.find("step_weight_bytes"));
    return model;
}

bool is_sha256(const std::string& text) {
    return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

template <typename Words>
void check_word(const std::string& name, const std::string& value, const Words& allowed) {
    std::vector<std::string> words(std::begin(allowed), std::end(allowed));
    if (std::find(words.begin(), words.end(), value) == words.end())
        throw bundle_error(manifest_text(": ") + name + " must be one of " + joined(words) + ", got " +
                           shown(value, 40));
}

template <typename Row, size_t count>
std::vector<std::string> names_of(const Row (&rows)[count]) {
    std::vector<std::string> names;
    for (const auto& row : rows) names.emplace_back(row.name);
    return names;
}

void check_words(const Manifest& manifest) {
    check_word("precision", manifest.precision, names_of(facts::PRECISIONS));
    check_word("spelling", manifest.dialect, names_of(facts::DIALECTS));
    check_word("kv_cache", manifest.kv_cache, facts::KV_CACHES);
    for (const auto& [name, part] : manifest.parts)
        for (const auto* tensors : {&part.inputs, &part.outputs})
            for (const auto& tensor : *tensors) check_word(tensor.name + ": dtype", tensor.dtype, facts::DTYPES);
}

void check_files(const Manifest& manifest, const Json& document) {
    std::vector<std::string> named;
    for (const auto& [name, part] : manifest.parts) named.push_back(part.file);
    for (const char* role : {"tokenizer", "samples"}) {
        const Json* file = document.find(role);
        if (file && file->kind == Json::Kind::string) named.push_back(file->text);  // "" too, which is no path
    }
    for (const auto& path : named) {
        check_relative(path);
        if (!manifest.file(path))
            throw bundle_error(manifest_text(" names ") + path +
                               " but has no size and hash of it; export the bundle again");
    }
    for (const auto& [name, part] : manifest.parts) {
        const std::string suffix = facts::GRAPH_SUFFIX;
        if (part.file.size() < suffix.size() || part.file.substr(part.file.size() - suffix.size()) != suffix)
            throw bundle_error(manifest_text(": ") + name + ": file must end with " + suffix + ", got " +
                               shown(part.file) + "; export the bundle again");
    }
    for (const auto& [path, info] : manifest.files) {
        check_relative(path);
        if (info.bytes < 0 || !is_sha256(info.sha256))
            throw bundle_error(manifest_text(" gives ") + path + " no valid size and SHA-256; export the bundle again");
    }
}

int64_t checked_version(const Json& document) {
    using facts::FORMAT_VERSION;
    const Json* given = document.find("format_version");
    if (!given || !given->is_integer() || given->integer() < 1)
        throw bundle_error(manifest_text(" has format_version ") + (given ? shown(*given, 40) : "None") + "; 1 to " +
                           std::to_string(FORMAT_VERSION) + " are known");
    if (given->integer() > FORMAT_VERSION)
        throw bundle_error("the bundle has format version " + given->text +
                           ", newer than the newest this runtime knows (" + std::to_string(FORMAT_VERSION) +
                           "); update the runtime");
    return given->integer();
}

const TensorInfo* find_tensor(const std::vector<TensorInfo>& tensors, std::string_view name) {
    // Of equal names the last one counts, as in a dict made from the list.
    const auto found = std::find_if(tensors.rbegin(), tensors.rend(), [&](const auto& t) { return t.name == name; });
    return found == tensors.rend() ? nullptr : &*found;
}

// The tensors that a part must have: parts.py.

[[noreturn]] void refuse(const std::string& what) {
    throw bundle_error(what + "; export the bundle again");
}

class PartCheck {
public:
    PartCheck(const Manifest& manifest, const std::string& name, const PartInfo& part)
        : manifest_(manifest), where_(manifest_text(": " + name)), name_(name), part_(part) {}

    void run() const {
        const auto& known = facts::parts::TENSORS;
        const auto found =
            std::find_if(std::begin(known), std::end(known), [&](const auto& each) { return name_ == each.part; });
        if (found == std::end(known)) return;
        check_all("input", part_.inputs, found->inputs, found->input_count);
        check_all("output", part_.outputs, found->outputs, found->output_count);
        if (name_ == facts::DECODER || name_ == facts::DECODER_CHUNKS) check_cache();
        if (!manifest_.operators().has_fixed_shapes) return;
        for (const auto* tensors : {&part_.inputs, &part_.outputs})
            for (const auto& tensor : *tensors) check_symbols(tensor);
    }

private:
    using Wanted = std::vector<int64_t>;  // 0 is any

    void check_all(const char* kind, const std::vector<TensorInfo>& given, const facts::parts::TensorShape* shapes,
                   int count) const {
        for (int i = 0; i < count; ++i) {
            Wanted wanted;
            const TensorInfo* tensor = required(kind, given, shapes[i].name);
            for (int axis = 0; axis < shapes[i].rank; ++axis) {
                const auto& dimension = shapes[i].dimensions[axis];
                wanted.push_back(!*dimension.of_model ? dimension.size : model_size(dimension.of_model));
            }
            check_shape(*tensor, wanted, false);
        }
    }

    const TensorInfo* required(const char* kind, const std::vector<TensorInfo>& given, std::string_view name) const {
        const TensorInfo* tensor = find_tensor(given, name);
        if (!tensor) refuse(where_ + " lacks the " + kind + " " + std::string(name));
        return tensor;
    }

    int model_size(std::string_view name) const {
        const int size = manifest_.model.size(name);
        if (size == 0) refuse(where_ + " needs the size " + std::string(name) + ", which model lacks");
        return size;
    }

    void check_shape(const TensorInfo& tensor, const Wanted& wanted, bool fixed_too) const {
        bool fits = tensor.shape.size() == wanted.size();
        for (size_t i = 0; fits && i < wanted.size(); ++i)
            fits = wanted[i] != 0 ? tensor.shape[i] == wanted[i]
                                  : tensor.symbolic[i] || (fixed_too && tensor.shape[i] > 0);
        if (fits) return;
        std::vector<std::string> sizes;
        for (const int64_t size : wanted) sizes.push_back(size == 0 ? "any" : std::to_string(size));
        refuse(where_ + ": " + tensor.name + " must be [" + joined(sizes) + "], as in model, got " +
               shown_shape(tensor));
    }

    // Keys and values, two tensors per layer.
    void check_cache() const {
        const auto& dialect = manifest_.operators();
        const bool fixed = dialect.has_fixed_shapes, returns_new = dialect.returns_new_rows;
        const int layers = model_size("layers");
        int held = 0;
        for (const auto& tensor : part_.inputs)
            for (const std::string_view beginning : facts::PAST_BEGINNINGS)
                if (tensor.name.compare(0, beginning.size(), beginning) == 0) ++held;
        if (held != 2 * layers)
            refuse(where_ + " must have keys and values of " + std::to_string(layers) +
                   " layers, as in model, but has " + std::to_string(held) + " such tensors");
        const char *past_names[] = {facts::PAST_KEY, facts::PAST_VALUE},
                   *present_names[] = {facts::PRESENT_KEY, facts::PRESENT_VALUE};
        for (int layer = 0; layer < layers; ++layer) {
            for (int kind = 0; kind < 2; ++kind) {
                const auto name = [layer](const char* beginning) { return beginning + std::to_string(layer); };
                const TensorInfo* past = required("input", part_.inputs, name(past_names[kind]));
                const Wanted shape = {0, model_size("heads"), 0, model_size("head_dim")};
                check_shape(*past, shape, fixed);
                if (returns_new) continue;
                const TensorInfo* present = required("output", part_.outputs, name(present_names[kind]));
                check_shape(*present, shape, fixed);
                if (fixed && (past->shape != present->shape || past->symbols != present->symbols))
                    refuse(where_ + ": " + present->name + " must have the shape of " + past->name +
                           ", with whose memory it is updated in place");
            }
        }
        if (returns_new) {
            const TensorInfo* rows = required("output", part_.outputs, facts::NEW_ROWS);
            check_shape(*rows, {2 * layers, 0, model_size("heads"), 0, model_size("head_dim")}, false);
        }
    }

    void check_symbols(const TensorInfo& tensor) const {
        for (size_t i = 0; i < tensor.shape.size(); ++i) {
            const auto& known = facts::parts::CALLED;
            if (!tensor.symbolic[i] ||
                std::find(std::begin(known), std::end(known), tensor.symbols[i]) != std::end(known))
                continue;
            refuse(where_ + ": " + tensor.name + " has the dimension " + shown(tensor.symbols[i], 40) +
                   ", which the dialect " + manifest_.dialect + " does not have");
        }
    }

    const Manifest& manifest_;
    std::string where_;
    const std::string& name_;
    const PartInfo& part_;
};

}  // namespace

std::string shown_shape(const TensorInfo& tensor) {
    std::string out = "[";
    for (size_t i = 0; i < tensor.shape.size() && out.size() < 80; ++i) {
        if (i > 0) out += ", ";
        out += tensor.symbolic[i] ? shown(tensor.symbols[i]) : std::to_string(tensor.shape[i]);
    }
    return (out + "]").substr(0, 80);
}

const TensorInfo* PartInfo::input(std::string_view name) const {
    return find_tensor(inputs, name);
}

const TensorInfo* PartInfo::output(std::string_view name) const {
    return find_tensor(outputs, name);
}

int ModelInfo::size(std::string_view name) const {
#define EDITAR_SIZE(field, largest) \
    if (name == #field) return field;
    EDITAR_MODEL_SIZES(EDITAR_SIZE)
#undef EDITAR_SIZE
    return 0;
}

void ModelInfo::check() const {
    const struct {
        std::string_view name, one, two;
    } products[] = {
        {"image_size", "grid", "downsampling"}, {"picture_tokens", "grid", "grid"}, {"dim", "heads", "head_dim"}};
    for (const auto& product : products) {
        const int64_t whole = size(product.name), one = size(product.one), two = size(product.two);
        if (whole == 0 || one == 0 || two == 0 || whole == one * two) continue;
        const std::string name(product.name), first(product.one), second(product.two);
        std::string values = name + " " + std::to_string(whole) + ", " + first + " " + std::to_string(one);
        if (first != second) values += ", " + second + " " + std::to_string(two);
        throw bundle_error(manifest_text(": ") + name + " is not " + first + " · " + second + " (" + values + ")");
    }
    if (codebook_size != 0 && vocab_size != 0 && codebook_size != vocab_size)
        throw bundle_error(manifest_text(": model: codebook_size and vocab_size must be equal, got ") +
                           std::to_string(codebook_size) + " and " + std::to_string(vocab_size) +
                           "; export the bundle again");
    const int64_t cached = int64_t{2} * layers * dim * (2 * int64_t{picture_tokens} + text_tokens);
    if (cached > facts::MOST_CACHED)
        throw bundle_error(manifest_text(": model: keys and values of one row would have ") + std::to_string(cached) +
                           " elements, but at most " + std::to_string(facts::MOST_CACHED) +
                           " are allowed; export the bundle again");
}

const PartInfo* Manifest::part(std::string_view name) const {
    for (const auto& each : parts)
        if (each.first == name) return &each.second;
    return nullptr;
}

const FileInfo* Manifest::file(std::string_view name) const {
    const auto found = files.find(name);
    return found == files.end() ? nullptr : &found->second;
}

const facts::Dialect& Manifest::operators() const {
    for (const auto& each : facts::DIALECTS)
        if (each.name == dialect) return each;
    return facts::DIALECTS[0];  // not reached: the word was checked
}

void check_schema(const Type& type, const Json& value, const std::string& where) {
    check_type(type, value, where);
}

Manifest Manifest::parse(std::string_view text) {
    const std::string name(MANIFEST_NAME);
    const Json document = Json::parse(text, name);
    const Json* format = document.find("format");
    if (!format || format->kind != Json::Kind::string || format->text != facts::FORMAT)
        throw bundle_error(name + " does not say \"format\": \"" + std::string(facts::FORMAT) +
                           "\"; this is not an EditAR bundle");
    Manifest manifest;
    manifest.format_version = checked_version(document);
    check_strings(document, name);
    check_type(facts::schema::manifest, document, name);
    // A sampling head of format version 1 has other inputs: the host samples instead.
    const bool old_sampler = manifest.format_version < 2 && document.find("parts")->find(facts::SAMPLER);
    for (const auto& [part, value] : document.find("parts")->members)
        if (!old_sampler || part != facts::SAMPLER) manifest.parts.emplace_back(part, part_of(value));
    for (const auto& [path, value] : document.find("files")->members)
        manifest.files.emplace(path, FileInfo{value.find("sha256")->text, value.find("bytes")->integer()});
    manifest.precision = text_of(document.find("precision"), manifest.precision);
    manifest.dialect = text_of(document.find("spelling"), manifest.dialect);
    manifest.kv_cache = text_of(document.find("kv_cache"), manifest.kv_cache);
    const int64_t top_k = old_sampler ? 0 : integer_of(document.find("sampler_top_k"));
    manifest.sampler_top_k = static_cast<int>(std::clamp<int64_t>(top_k, 0, std::numeric_limits<int>::max()));
    manifest.tokenizer = text_of(document.find("tokenizer"));
    manifest.samples = text_of(document.find("samples"));
    if (const Json* providers = document.find("providers")) {
        for (const auto& provider : providers->items) manifest.providers.push_back(provider.text);
    } else {
        for (const auto provider : facts::DEFAULT_PROVIDERS) manifest.providers.emplace_back(provider);
    }
    manifest.sampling.kind = Json::Kind::object;
    if (const Json* sampling = document.find("sampling")) manifest.sampling = *sampling;
    if (const Json* self_test = document.find("self_test")) manifest.self_test = *self_test;
    if (const Json* made_by = document.find("made_by"))
        for (const auto& [key, value] : made_by->members) manifest.made_by.emplace_back(key, value.text);
    check_files(manifest, document);
    check_words(manifest);
    manifest.model = model_of(*document.find("model"));
    manifest.model.check();
    for (const auto& [part, info] : manifest.parts) PartCheck(manifest, part, info).run();
    return manifest;
}

}  // namespace editar
