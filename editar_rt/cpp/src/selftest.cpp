// A bundle's self-test: fixed inputs for every part, and the outputs of the exporting machine.
// editar_rt/measure/selftest.py.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "error.h"
#include "facts.h"
#include "json_text.h"
#include "machine.h"
#include "reports.h"
#include "scheduler.h"
#include "selftest.h"
#include "sha256.h"

namespace editar {

namespace {

constexpr const char* NOT_COMPLETE = "the bundle's self-test is not complete; export it again";

// Some values of an output of floats.
struct Values {
    std::string sha256;
    std::vector<double> values;
    double largest = 0;
};

Values values_of(const std::vector<float>& floats) {
    Values found;
    Sha256 digest;
    digest.add(floats.data(), floats.size() * sizeof(float));
    found.sha256 = digest.hex();
    const auto last = static_cast<double>(floats.size() - 1);
    const double step = last / (facts::self_test::SAMPLES - 1);
    for (int n = 0; n < facts::self_test::SAMPLES; ++n) {
        const double place = n == facts::self_test::SAMPLES - 1 ? last : n * step;
        found.values.push_back(floats[static_cast<size_t>(place)]);
    }
    for (float value : floats) {
        const double magnitude = std::fabs(value);
        if (std::isnan(magnitude)) {
            found.largest = magnitude;
            break;
        }
        found.largest = std::max(found.largest, magnitude);
    }
    return found;
}

const Json& member(const Json& object, std::string_view name) {
    const Json* found = object.find(name);
    if (found == nullptr) throw bundle_error("the bundle's self-test lacks " + std::string(name) + "; export it again");
    return *found;
}

Comparison compare(const std::string& part, const std::string& output, const Values& found, const Values& expected,
                   double bound) {
    double difference = 0;
    for (size_t n = 0; n < found.values.size() && n < expected.values.size(); ++n) {
        const double own = std::fabs(found.values[n] - expected.values[n]);
        difference = std::isnan(own) || std::isnan(difference) ? std::nan("") : std::max(difference, own);
    }
    if (found.values.size() != expected.values.size() || !std::isfinite(found.largest)) difference = std::nan("");
    const bool identical = expected.sha256 == found.sha256;
    double error = relative_error(difference, expected.largest);
    if (bound == 0 && !identical)  // the values that differ are not among those that are stored
        error = std::isnan(error) ? error : std::max<double>(error, std::numeric_limits<float>::epsilon());
    return {part, output, difference, error, bound, identical};
}

Comparison compare_values(const std::string& part, const std::string& output, const Values& found, const Json& expected,
                          double bound) {
    Values there;
    there.sha256 = member(expected, "sha256").text;
    for (const Json& value : member(expected, "values").items) there.values.push_back(value.number());
    there.largest = member(expected, "largest").number();
    return compare(part, output, found, there, bound);
}

Comparison compare_tokens(const std::string& part, const std::string& output, const std::vector<int32_t>& found,
                          const Json& expected, double bound) {
    const auto& there = member(expected, "tokens").items;
    if (there.size() != found.size()) throw bundle_error(NOT_COMPLETE);
    int differ = 0;
    for (size_t n = 0; n < found.size(); ++n) differ += there[n].integer() != found[n] ? 1 : 0;
    return {
        part,  output,     static_cast<double>(differ), static_cast<double>(differ) / static_cast<double>(found.size()),
        bound, differ == 0};
}

// What the decoder gave for a row among `rows` that all have the same sequence.
struct Transformer {
    std::vector<Array> prefix;
    Values first, after;
    std::vector<int32_t> greedy;
};

Transformer run_transformer(Model& model, const Way& way) {
    const ModelInfo& sizes = model.sizes();
    const int text = std::max(sizes.text_tokens, 1), width = std::max(sizes.text_dim, 1), dim = sizes.dim;
    const int vocabulary = model.vocabulary();
    std::vector<float> states(static_cast<size_t>(text) * width);
    for (size_t n = 0; n < states.size(); ++n) states[n] = static_cast<float>(std::sin(static_cast<double>(n) * 0.37));
    Transformer found;
    found.prefix = model.backend().run(facts::PREFIX_GRAPH,
                                       {{facts::TEXT_STATES, Type::float32, {1, text, width}, states.data()}});
    const std::vector<float>* prefix = nullptr;
    for (const Array& each : found.prefix)
        if (each.name == facts::TEXT_PREFIX) prefix = &each.floats;
    if (prefix == nullptr) throw bundle_error("the part prefix does not return text_prefix; export the bundle again");
    // Tokens first, then some states of the text: the two kinds of the decoder's input.
    const int positions = 2 * model.picture_tokens() + text;
    const int length = std::min(facts::self_test::TEXT_POSITIONS, text);
    const int steps = std::min(facts::self_test::STEPS, (positions - length) / 2);
    const int count = std::min(facts::self_test::CHUNK, positions - length - steps);
    auto first = std::make_shared<Chunk>(), second = std::make_shared<Chunk>();
    first->tokens = spread(count, vocabulary);
    if (way.pieces == 1) {
        first->tokens.resize(count + length, -1);
        first->states.assign(static_cast<size_t>(count) * dim, 0.0F);
        first->states.insert(first->states.end(), prefix->begin(), prefix->begin() + static_cast<size_t>(length) * dim);
    } else {
        second->tokens.assign(length, -1);
        second->states.assign(prefix->begin(), prefix->begin() + static_cast<size_t>(length) * dim);
    }
    const Inputs inputs = {first, second, second};
    Scheduler scheduler(model.backend(), way.rows, false, count + length, steps + 1, vocabulary, dim);
    Sampling greedy;
    greedy.greedy = true;
    greedy.cfg_scale = 1;
    std::vector<std::unique_ptr<Sequence>> sequences;
    std::vector<Sequence*> all;
    for (int n = 0; n < way.rows; ++n) {
        sequences.push_back(
            std::make_unique<Sequence>(scheduler.context(n), inputs, greedy, 0, std::vector<int32_t>(steps + 1, -1)));
        all.push_back(sequences.back().get());
    }
    std::vector<std::vector<float>> logits;
    scheduler.watch = [&](const Sequence& sequence, const float* values) {
        if (sequence.context.cond.slot == way.row) logits.emplace_back(values, values + vocabulary);
    };
    try {
        while (!all[0]->finished()) scheduler.step(all);
    } catch (const NotFinite&) {  // an answer too, which differs from the expected one
        logits.resize(steps + 1, std::vector<float>(vocabulary, std::numeric_limits<float>::quiet_NaN()));
    }
    for (int n = 0; n < steps; ++n)
        found.greedy.push_back(
            static_cast<int32_t>(std::max_element(logits[n].begin(), logits[n].end()) - logits[n].begin()));
    found.first = values_of(logits.front());
    found.after = values_of(logits.back());
    return found;
}

// A smooth, colourful picture, [3, side, side] in -1 to 1.
std::vector<float> smooth_picture(int side) {
    std::vector<float> pixels(3 * static_cast<size_t>(side) * side);
    const size_t area = static_cast<size_t>(side) * side;
    for (int line = 0; line < side; ++line)
        for (int column = 0; column < side; ++column) {
            const double y = static_cast<double>(line) / side, x = static_cast<double>(column) / side;
            const size_t at = static_cast<size_t>(line) * side + column;
            pixels[at] = static_cast<float>(std::sin(7 * x + 3 * y));
            pixels[area + at] = static_cast<float>(std::cos(9 * y - 2 * x));
            pixels[2 * area + at] = static_cast<float>(std::sin(5 * ((x + y) * (x + y))));
        }
    return pixels;
}

// The exporter's version of ONNX Runtime, if its answers must be repeated to the bit and this one is another; ""
// otherwise. A decoder that rounds activations to integers gives other tokens after the smallest other error.
std::string other_version(const Model& model, const std::string& engine) {
    const Manifest& manifest = model.bundle().manifest();
    bool quantized = false;
    for (const auto& each : facts::PRECISIONS)
        if (manifest.precision == each.name) quantized = each.is_quantized;
    const bool rounds = (quantized && !manifest.operators().stores_weight_only) || manifest.kv_cache == facts::INT8;
    std::string there, machine = machine_name();
    for (const auto& [name, value] : manifest.made_by) {
        if (name == "onnxruntime") there = value;
        if (name == "machine") machine = value;
    }
    const bool apart = machine == machine_name() && engine != "ONNX Runtime " + there + " (CPU)";
    return rounds && apart ? there : "";
}

// Logits, greedy tokens, and logits after them.
void add_decoder(std::vector<Comparison>& checks, const Transformer& found, const Json& expected, double bound) {
    const std::string part = facts::DECODER;
    checks.push_back(compare_values(part, facts::LOGITS, found.first, member(expected, facts::LOGITS), bound));
    const Json& greedy = member(expected, facts::self_test::GREEDY);
    Comparison tokens = compare_tokens(part, facts::self_test::GREEDY, found.greedy, greedy, bound);
    const auto& there = member(greedy, "tokens").items;
    for (size_t n = 0; n < there.size(); ++n) {
        if (there[n].integer() == found.greedy[n]) continue;
        // Two tokens were about equally likely at the first difference; another text follows.
        const auto& margins = member(greedy, "margins").items;
        if (n >= margins.size()) throw bundle_error(NOT_COMPLETE);
        if (margins[n].number() <= bound) tokens.bound = 1.0;
        break;
    }
    checks.push_back(tokens);
    if (tokens.identical)
        checks.push_back(compare_values(part, facts::self_test::LOGITS_AFTER, found.after,
                                        member(expected, facts::self_test::LOGITS_AFTER), bound));
}

// `found` gets what the decoder gave.
std::vector<Comparison> compare_parts(Model& model, const std::vector<std::string>& parts, const Way& way,
                                      bool exact_decoder, Transformer& found) {
    const Manifest& manifest = model.bundle().manifest();
    const Json& test = manifest.self_test;
    if (test.kind != Json::Kind::object || test.members.empty())
        throw bundle_error("the bundle " + model.bundle().folder() + " has no self-test; export it again");
    auto wanted = [&](const char* part) {
        return manifest.part(part) != nullptr && std::find(parts.begin(), parts.end(), part) != parts.end();
    };
    std::vector<Comparison> checks;
    const bool transformer = wanted(facts::DECODER) && wanted(facts::PREFIX_GRAPH);
    if (transformer) found = run_transformer(model, way);
    for (const Json::Member& tested : test.members) {
        const std::string& part = tested.first;
        const Json& expected = tested.second;
        if (!wanted(part.c_str())) continue;
        const bool exact = part == facts::DECODER && exact_decoder;
        const double bound = exact ? 0.0 : bound_of(manifest, part);
        auto output_of = [&](const std::string& name) -> const Json& { return member(expected, name); };
        auto floats = [&](const std::string& name, const std::vector<float>& values) {
            checks.push_back(compare_values(part, name, values_of(values), output_of(name), bound));
        };
        if (part == facts::TEXT_ENCODER) {
            floats(facts::TEXT_STATES, model.encode_text(model.padded(model.tokenize(facts::self_test::PROMPT))));
        } else if (part == facts::VQ_ENCODER) {
            const std::vector<float> pixels = smooth_picture(model.image_size());
            checks.push_back(compare_tokens(part, facts::TOKENS, model.encode_pixels(pixels), output_of(facts::TOKENS),
                                            facts::self_test::TIES));
        } else if (part == facts::VQ_DECODER) {
            const auto tokens = spread(model.picture_tokens(), std::max(model.sizes().codebook_size, 1));
            floats(facts::PIXELS, model.decode_pixels(tokens.data()));
        } else if (part == facts::PREFIX_GRAPH && transformer) {
            for (const Array& each : found.prefix) floats(each.name, each.floats);
        } else if (part == facts::DECODER && transformer) {
            add_decoder(checks, found, expected, bound);
        } else if (part == facts::SAMPLER) {
            for (const auto& [label, tokens] : sampler_answers(model.backend(), manifest))
                checks.push_back(compare_tokens(part, label, tokens, output_of(label), facts::self_test::TIES));
        }
    }
    return checks;
}

// The whole self-test, and that a row's outputs do not depend on the rows that run with it.
std::vector<Comparison> comparisons(Model& model, bool exact_decoder) {
    model.bundle().check();
    const Manifest& manifest = model.bundle().manifest();
    std::vector<std::string> parts;
    for (const auto& each : manifest.parts) parts.push_back(each.first);
    Transformer alone;
    std::vector<Comparison> checks = compare_parts(model, parts, {}, exact_decoder, alone);
    const bool transformer = manifest.part(facts::DECODER) != nullptr && manifest.part(facts::PREFIX_GRAPH) != nullptr;
    for (int rows = 2; transformer && rows <= 4; ++rows) {
        const Transformer among = run_transformer(model, {rows, rows - 1});
        const double bound = model.backend().device() == "cpu" ? 0.0 : bound_of(manifest, facts::DECODER);
        const std::string label = ", a row among " + std::to_string(rows);
        checks.push_back(compare(facts::DECODER, facts::LOGITS + label, among.first, alone.first, bound));
        checks.push_back(
            compare(facts::DECODER, facts::self_test::LOGITS_AFTER + label, among.after, alone.after, bound));
    }
    return checks;
}

// What differs, in a sentence; "" where all holds.
std::string fault_of(Model& model, const std::vector<Comparison>& checks, const std::string& exporters) {
    std::string failed;
    for (const Comparison& check : checks)
        if (!check.holds()) failed += (failed.empty() ? "" : ", ") + check.part + ": " + check.output;
    if (failed.empty()) return "";
    const std::string engine = model.backend().name();
    if (exporters.empty())
        return "the outputs of " + engine + " differ from those of the exporting machine (" + failed +
               "); try another device, or export the bundle again on this machine";
    return engine + " rounds the integers of this " + model.bundle().manifest().precision +
           " bundle differently from the exporter's version, " + exporters + " (" + failed +
           "), so that edits get other tokens; use ONNX Runtime " + exporters +
           ", or export the bundle again with this version";
}

}  // namespace

double relative_error(double difference, double largest) {
    return difference / std::max(largest, 1e-12);  // an output of zeros
}

std::vector<int32_t> spread(int64_t count, int64_t size) {
    std::vector<int32_t> numbers(count);  // 7919 is a prime
    for (int64_t n = 0; n < count; ++n) numbers[n] = static_cast<int32_t>((n * 7919 + 17) % size);
    return numbers;
}

double bound_of(const Manifest& manifest, const std::string& part) {
    auto named = [](std::string_view name) {
        for (const auto& each : facts::PRECISIONS)
            if (name == each.name) return each;
        return facts::PRECISIONS[0];
    };
    facts::Precision own = named(manifest.precision);
    if (own.is_quantized && manifest.operators().stores_weight_only) own = facts::WEIGHT_ONLY;
    if (part == facts::DECODER)
        return std::max(own.bound, manifest.kv_cache == facts::INT8 ? facts::INT8_CACHE_BOUND : 0.0);
    if (part == facts::TEXT_ENCODER && std::string_view(own.stored) != "float32") return named("fp16").bound;
    return facts::PRECISIONS[0].bound;
}

JsonText as_json(const Comparison& check, const char* part_name) {
    return JsonText::object()
        .set(part_name, check.part)
        .set("output", check.output)
        .set("identical", check.identical)
        .set("difference", check.difference)
        .set("error", check.error)
        .set("bound", check.bound)
        .set("holds", check.holds());
}

std::vector<Comparison> self_test(Model& model, const std::vector<std::string>& parts, const Way& way) {
    Transformer found;
    const bool exact = !other_version(model, model.backend().name()).empty();
    return compare_parts(model, parts, way, exact, found);
}

std::string verify(Model& model, std::string& fault) {
    const std::string exporters = other_version(model, model.backend().name());
    const std::vector<Comparison> checks = comparisons(model, !exporters.empty());
    fault = fault_of(model, checks, exporters);
    JsonText listed = JsonText::list();
    for (const Comparison& check : checks) listed.add(as_json(check, "part"));
    return JsonText::object()
        .set("backend", model.backend().name())
        .set("holds", fault.empty())
        .set("checks", listed)
        .text();
}

}  // namespace editar
