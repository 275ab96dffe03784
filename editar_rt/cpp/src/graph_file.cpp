#include "graph_file.h"

#include <algorithm>
#include <limits>
#include <set>

#include "error.h"
#include "text.h"

namespace editar {

namespace {

namespace onnx = facts::graph_file;

struct Damaged {
    std::string what;
};

[[noreturn]] void damaged(std::string what) {
    throw Damaged{std::move(what)};
}

struct Span {
    size_t start = 0, stop = 0;
};

struct FieldValue {
    uint64_t number = 0;
    bool is_span = false;
    uint64_t integer = 0;  // where it is not a span
    Span span;
};

// Iterates over the fields of Protocol Buffers messages; every length is compared with the message that contains it.
class Reader {
public:
    explicit Reader(std::string_view data) : data_(data) {}
    Span whole() const { return {0, data_.size()}; }

    // The next field of a message that has a value or a span; false at its end.
    bool next(Span& message, FieldValue& field) {
        while (message.start < message.stop) {
            if (++fields_ > onnx::MAX_FIELDS)
                damaged("it has more than " + std::to_string(onnx::MAX_FIELDS) + " fields");
            const uint64_t tag = number(message, onnx::TAG_BYTES);
            field.number = tag >> 3;
            if (field.number == 0 || field.number >= 1u << 29)
                damaged("it has a field of number " + std::to_string(field.number));
            const auto wire = static_cast<int>(tag & 7);
            if (wire == onnx::VARINT) {
                field.is_span = false;
                field.integer = number(message, onnx::VARINT_BYTES);
                return true;
            }
            if (wire == onnx::BYTES) {
                const uint64_t size = number(message, onnx::VARINT_BYTES);
                if (size > message.stop - message.start) damaged("a length in it exceeds its message");
                field.is_span = true;
                field.span = {message.start, message.start + static_cast<size_t>(size)};
                message.start = field.span.stop;
                return true;
            }
            if (wire != onnx::FIXED32 && wire != onnx::FIXED64)
                damaged("it has a field of wire type " + std::to_string(wire));
            const size_t size = wire == onnx::FIXED32 ? 4 : 8;
            if (size > message.stop - message.start) damaged("it is truncated");
            message.start += size;
        }
        return false;
    }

    // A number of variable length; the span then begins after it.
    uint64_t number(Span& span, int most) {
        uint64_t value = 0;
        for (int i = 0; i < most; ++i) {
            if (span.start >= span.stop) damaged("it is truncated");
            const auto byte = static_cast<uint8_t>(data_[span.start++]);
            if (i == 9 && (byte & 0x7F) > 1) damaged("it has a number of too many bytes");
            value |= static_cast<uint64_t>(byte & 0x7F) << (7 * i);
            if (byte < 0x80) return value;
        }
        damaged("it has a number of too many bytes");
    }

    std::string text(Span span) const {
        if (span.stop - span.start > onnx::MAX_NAME)
            damaged("it has a name of more than " + std::to_string(onnx::MAX_NAME) + " bytes");
        const std::string_view found = data_.substr(span.start, span.stop - span.start);
        if (!is_utf8(found)) damaged("it has a name that is not UTF-8");
        return std::string(found);
    }

private:
    std::string_view data_;
    int fields_ = 0;
};

uint64_t saturating_product(uint64_t a, uint64_t b) {
    return b != 0 && a > std::numeric_limits<uint64_t>::max() / b ? std::numeric_limits<uint64_t>::max() : a * b;
}

uint64_t saturating_sum(uint64_t a, uint64_t b) {
    return a > std::numeric_limits<uint64_t>::max() - b ? std::numeric_limits<uint64_t>::max() : a + b;
}

// Collects the contents of a file; repeated messages of one field are merged, as parsers do.
class Walk {
public:
    explicit Walk(std::string_view data) : reader_(data) {}

    GraphFile graph_file() {
        bool found = false;
        Span whole = reader_.whole();
        for (FieldValue field; reader_.next(whole, field);) {
            if (field.number != 7) continue;
            found = true;
            if (field.is_span) interface(field.span);
        }
        if (!found) damaged("it has no graph");
        collect();
        const auto filled = [this](const TensorInfo& tensor) { return filled_.count(tensor.name) > 0; };
        auto& inputs = graph_.inputs;
        inputs.erase(std::remove_if(inputs.begin(), inputs.end(), filled), inputs.end());
        return std::move(graph_);
    }

private:
    // Inputs and outputs of the outermost graph, and the names of its initializers.
    void interface(Span graph) {
        for (FieldValue field; reader_.next(graph, field);) {
            if (!field.is_span) continue;
            if (field.number == onnx::INPUT) graph_.inputs.push_back(tensor_info(field.span));
            if (field.number == onnx::OUTPUT) graph_.outputs.push_back(tensor_info(field.span));
            if (field.number == onnx::INITIALIZER) filled_.insert(string(field.span, onnx::NAME));
        }
    }

    // External data of every tensor, wherever it occurs.
    void collect() {
        struct Waiting {
            Span span;
            int kind, depth;
        };
        std::vector<Waiting> waiting = {{reader_.whole(), onnx::MODEL, 0}};
        while (!waiting.empty()) {
            Waiting each = waiting.back();
            waiting.pop_back();
            if (each.depth > onnx::MAX_DEPTH)
                damaged("it is nested more than " + std::to_string(onnx::MAX_DEPTH) + " levels deep");
            if (each.kind == onnx::TENSOR) {
                tensor(each.span);
                continue;
            }
            for (FieldValue field; reader_.next(each.span, field);) {
                if (!field.is_span) continue;
                for (const auto& held : onnx::HOLDS)
                    if (held.message == each.kind && static_cast<uint64_t>(held.field) == field.number)
                        waiting.push_back({field.span, held.holds, each.depth + 1});
            }
        }
    }

    // Record every location, even if the tensor does not say that its data is external: parsers merge messages.
    void tensor(Span span) {
        std::vector<uint64_t> dims;
        uint64_t bits = 0, offset = 0, length = 0;
        std::vector<std::string> locations;
        for (FieldValue field; reader_.next(span, field);) {
            if (field.number == onnx::DIMS) {
                add_dims(dims, field);
            } else if (field.number == onnx::DATA_TYPE && !field.is_span) {
                bits = bits_of(field.integer);
            } else if (field.number == onnx::EXTERNAL_DATA && field.is_span) {
                const std::string key = string(field.span, 1), said = string(field.span, 2);
                if (key == "location") locations.push_back(said);
                if (key == "offset") offset = integer(key, said);
                if (key == "length") length = integer(key, said);
                if (key.compare(0, std::string_view(onnx::PREPACKED).size(), onnx::PREPACKED) == 0)
                    graph_.rearranged = true;
            }
        }
        if (locations.empty()) return;
        uint64_t count = 1;
        for (const uint64_t dim : dims) {
            if (dim >> 63) damaged("it has a tensor of negative size");
            count = saturating_product(count, dim);
        }
        for (const uint64_t dim : dims)
            if (dim == 0) count = 0;
        const uint64_t all = saturating_product(count, bits);
        const uint64_t size = std::max(length, all / 8 + (all % 8 != 0 ? 1 : 0));
        for (auto& location : locations) graph_.external.push_back({std::move(location), saturating_sum(offset, size)});
    }

    void add_dims(std::vector<uint64_t>& dims, const FieldValue& field) {
        const auto add = [&dims](uint64_t dim) {
            dims.push_back(dim);
            if (dims.size() > onnx::MAX_RANK)
                damaged("it has a tensor of more than " + std::to_string(onnx::MAX_RANK) + " dimensions");
        };
        if (!field.is_span) return add(field.integer);
        for (Span packed = field.span; packed.start < packed.stop;) add(reader_.number(packed, onnx::VARINT_BYTES));
    }

    static uint64_t bits_of(uint64_t type) {
        for (const auto& each : onnx::BITS)
            if (static_cast<uint64_t>(each.number) == type) return static_cast<uint64_t>(each.bits);
        return 0;
    }

    static uint64_t integer(const std::string& key, const std::string& said) {
        if (said.empty() || said.size() > 19 || said.find_first_not_of("0123456789") != std::string::npos)
            damaged("it has external data with " + key + " " + shown(said, 40));
        uint64_t value = 0;
        for (const char digit : said) value = value * 10 + static_cast<uint64_t>(digit - '0');
        return value;
    }

    TensorInfo tensor_info(Span value_info) {
        TensorInfo tensor{"", "unknown", {}, {}, {}};
        for (FieldValue field; reader_.next(value_info, field);) {
            if (!field.is_span) continue;
            if (field.number == 1) tensor.name = reader_.text(field.span);
            if (field.number != 2) continue;
            Span kinds = field.span;
            for (FieldValue kind; reader_.next(kinds, kind);)
                if (kind.is_span && kind.number == 1) type(kind.span, tensor);  // a tensor, not a sequence or map
        }
        return tensor;
    }

    void type(Span span, TensorInfo& tensor) {
        tensor = TensorInfo{tensor.name, "unknown", {}, {}, {}};
        for (FieldValue field; reader_.next(span, field);) {
            if (field.number == 1 && !field.is_span) {
                tensor.dtype = "unknown";
                for (const auto& each : onnx::DTYPES)
                    if (static_cast<uint64_t>(each.number) == field.integer) tensor.dtype = each.name;
            } else if (field.number == 2 && field.is_span) {
                Span dims = field.span;
                for (FieldValue dim; reader_.next(dims, dim);)
                    if (dim.is_span && dim.number == 1) dimension(dim.span, tensor);
                if (tensor.shape.size() > onnx::MAX_RANK)
                    damaged("it has a tensor of more than " + std::to_string(onnx::MAX_RANK) + " dimensions");
            }
        }
    }

    void dimension(Span span, TensorInfo& tensor) {
        int64_t size = -1;
        std::string symbol;
        bool symbolic = true;
        for (FieldValue field; reader_.next(span, field);) {
            if (field.number == 1 && !field.is_span) {
                size = static_cast<int64_t>(field.integer);
                symbolic = false;
            } else if (field.number == 2 && field.is_span) {
                symbol = reader_.text(field.span);
                symbolic = true;
            }
        }
        tensor.shape.push_back(symbolic ? -1 : size);
        tensor.symbols.push_back(symbolic ? symbol : "");
        tensor.symbolic.push_back(symbolic);
    }

    // A string of a message; the last one if there are several, as in parsers.
    std::string string(Span message, int number) {
        bool found = false;
        Span last;
        for (FieldValue field; reader_.next(message, field);) {
            if (!field.is_span || field.number != static_cast<uint64_t>(number)) continue;
            found = true;
            last = field.span;
        }
        return found ? reader_.text(last) : "";
    }

    Reader reader_;
    GraphFile graph_;
    std::set<std::string> filled_;
};

std::string in_folder_of(const std::string& graph, const std::string& location) {
    std::vector<std::string> parts;
    const size_t folder = graph.rfind('/');
    const std::string path = (folder == std::string::npos ? "" : graph.substr(0, folder + 1)) + location;
    for (size_t at = 0; at <= path.size();) {
        const size_t end = std::min(path.find('/', at), path.size());
        const std::string part = path.substr(at, end - at);
        if (!part.empty() && part != ".") parts.push_back(part);
        at = end + 1;
    }
    std::string name;
    for (const auto& part : parts) name += (name.empty() ? "" : "/") + part;
    return name;
}

// The name in the manifest of a file that a graph names relative to itself.
std::string listed(const std::string& path, const std::string& graph, const std::string& location,
                   const Manifest& manifest) {
    const std::string takes = path + " takes weights from " + shown(location, 200);
    try {
        Json checked;
        checked.kind = Json::Kind::string;
        checked.text = location;
        check_strings(checked, "");
        check_relative(location);
        // ONNX Runtime writes */…/* for an address in memory.
        if (location.find('*') != std::string::npos) throw bundle_error("");
    } catch (const Error&) {
        throw bundle_error(takes + ", which is not a file inside the bundle; do not trust it");
    }
    std::string name = in_folder_of(graph, location);
    if (!manifest.file(name))
        throw bundle_error(takes + ", for which " + std::string(facts::MANIFEST_NAME) +
                           " has no size and hash; export the bundle again");
    return name;
}

// Compare names, types, ranks and the sizes that are fixed in both.
void check_tensors(const std::string& path, const std::string& kind, const std::vector<TensorInfo>& said,
                   const std::vector<TensorInfo>& given) {
    std::map<std::string, const TensorInfo*> expected, actual;
    for (const auto& tensor : said) expected[tensor.name] = &tensor;
    for (const auto& tensor : given) actual[tensor.name] = &tensor;
    std::set<std::string> names;
    for (const auto* tensors : {&expected, &actual})
        for (const auto& each : *tensors) names.insert(each.first);
    for (const auto& name : names) {
        const bool described = expected.count(name) > 0;
        if (described && actual.count(name) > 0) continue;
        const char *has = described ? "the manifest" : "the graph", *lacks = described ? "the graph" : "the manifest";
        throw bundle_error(path + ": " + has + " has the " + kind + " " + shown(name) + ", which " + lacks +
                           " lacks; export the bundle again");
    }
    for (const auto& [name, tensor] : expected) {
        const TensorInfo& other = *actual[name];
        bool fits = tensor->dtype == other.dtype && tensor->shape.size() == other.shape.size();
        for (size_t i = 0; fits && i < tensor->shape.size(); ++i)
            fits = tensor->symbolic[i] || other.symbolic[i] || tensor->shape[i] == other.shape[i];
        if (!fits)
            throw bundle_error(path + ": the " + kind + " " + shown(name) + " is " + other.dtype + " " +
                               shown_shape(other) + " in the graph and " + tensor->dtype + " " + shown_shape(*tensor) +
                               " in the manifest; export the bundle again");
    }
}

}  // namespace

GraphFile read_graph(const std::string& path, std::string_view content) {
    try {
        if (content.empty()) damaged("it is empty");
        return Walk(content).graph_file();
    } catch (const Damaged& error) {
        throw bundle_error(path + " is not an ONNX graph that can be trusted (" + error.what + "); export it again");
    }
}

GraphFile read_graph(const std::string& path) {
    const MappedFile file(path);
    return read_graph(path, file.bytes());
}

std::vector<std::string> check_graph(const std::string& path, const PartInfo& part, const Manifest& manifest) {
    const GraphFile graph = read_graph(path);
    if (graph.rearranged)
        throw bundle_error(path + " contains weights prepacked for one machine; export the bundle again");
    std::vector<std::string> files = {part.file};
    for (const auto& each : graph.external) {
        const std::string name = listed(path, part.file, each.location, manifest);
        const int64_t bytes = manifest.file(name)->bytes;
        if (each.stop > static_cast<uint64_t>(bytes))
            throw bundle_error(path + " takes weights from " + name + " up to byte " + std::to_string(each.stop) +
                               ", but it has " + std::to_string(bytes) + " bytes; export the bundle again");
        if (std::find(files.begin(), files.end(), name) == files.end()) files.push_back(name);
    }
    check_tensors(path, "input", part.inputs, graph.inputs);
    check_tensors(path, "output", part.outputs, graph.outputs);
    return files;
}

}  // namespace editar
