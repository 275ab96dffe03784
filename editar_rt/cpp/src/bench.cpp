// The time of every stage of a picture, and a decode step compared with the memory bandwidth:
// editar_rt/measure/bench.py.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>

#include "error.h"
#include "facts.h"
#include "json_text.h"
#include "machine.h"
#include "reports.h"
#include "scheduler.h"

namespace editar {

namespace {

constexpr size_t READ_BYTES = size_t{512} << 20;  // far larger than any CPU cache
constexpr int PASSES = 5;

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Joined even if the system refuses the next one.
struct Threads {
    std::vector<std::thread> all;
    void join() {
        for (std::thread& each : all) each.join();
        all.clear();
    }
    Threads() = default;
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;
    ~Threads() { join(); }
};

// Bytes per second that the CPU reads from memory: the best of several passes over a large array.
double read_bandwidth(int threads) {
    std::vector<float> numbers(READ_BYTES / sizeof(float), 1.0F);
    const size_t part = numbers.size() / threads;
    double best = 1e9;
    std::vector<float> largest(threads);  // so that nothing is left out
    for (int pass = 0; pass < PASSES; ++pass) {
        const double begun = now();
        Threads readers;
        for (int n = 0; n < threads; ++n)
            readers.all.emplace_back([&, n] {
                const float* from = numbers.data() + n * part;
                float most[16] = {};
                for (size_t at = 0; at + 16 <= part; at += 16)
                    for (int lane = 0; lane < 16; ++lane) most[lane] = std::max(most[lane], from[at + lane]);
                largest[n] = *std::max_element(most, most + 16);
            });
        readers.join();
        best = std::min(best, now() - begun);
    }
    if (largest[0] != 1.0F) best = 1e9;
    return static_cast<double>(READ_BYTES) / best;
}

double percentile(std::vector<double> values, double share) {
    std::sort(values.begin(), values.end());
    const double place = share * static_cast<double>(values.size() - 1);
    const auto below = static_cast<size_t>(place);
    const size_t above = std::min(below + 1, values.size() - 1);
    return values[below] + (values[above] - values[below]) * (place - static_cast<double>(below));
}

// The seconds of one stage, one number for each repeat.
struct Stage {
    const char* name;
    std::vector<double> seconds;
    double median_ms() const { return 1e3 * percentile(seconds, 0.5); }
};

class Stages {
public:
    void add(const char* name, double seconds) {
        for (Stage& stage : all_)
            if (std::string_view(stage.name) == name) {
                stage.seconds.push_back(seconds);
                return;
            }
        all_.push_back({name, {seconds}});
    }
    const std::vector<Stage>& all() const { return all_; }

private:
    std::vector<Stage> all_;
};

// Numbers that look random; the content does not affect the time.
class Numbers {
public:
    uint32_t next() {
        state_ = state_ * 6364136223846793005U + 1442695040888963407U;
        return static_cast<uint32_t>(state_ >> 33);
    }
    std::vector<int32_t> tokens(int count, int size) {
        std::vector<int32_t> made(count);
        for (int32_t& each : made) each = static_cast<int32_t>(next() % static_cast<uint32_t>(size));
        return made;
    }
    std::vector<float> floats(size_t count) {
        std::vector<float> made(count);
        for (float& each : made) each = static_cast<float>(next() % 2001) / 1000.0F - 1.0F;
        return made;
    }

private:
    uint64_t state_ = 1;
};

}  // namespace

std::string bench(Model& model, const BenchPlan& plan, const Sampling& sampling) {
    const Manifest& manifest = model.bundle().manifest();
    const ModelInfo& sizes = model.sizes();
    const int count = model.picture_tokens(), prefix = model.prefix_length();
    if (plan.repeats < 1 || plan.warmup < 0 || plan.steps < 0)
        throw option_error("repeats and steps must be 1 or more and warmup 0 or more, got " +
                           std::to_string(plan.repeats) + ", " + std::to_string(plan.steps) + " and " +
                           std::to_string(plan.warmup));
    const int at = plan.at == 0 ? prefix : plan.at, least = std::max(plan.steps, 1);
    if (at < prefix || at > prefix + count - 1 - least)
        throw option_error("with " + std::to_string(least) + " steps, at must be " + std::to_string(prefix) + " to " +
                           std::to_string(prefix + count - 1 - least) + " positions, got " + std::to_string(at));
    const int end = prefix + count - 1, stop = plan.steps == 0 ? end : std::min(at + plan.steps, end);
    const bool guided = sampling.guided();
    auto has = [&](const char* part) { return manifest.part(part) != nullptr; };
    Numbers numbers;
    Stages stages;
    std::vector<double> steps;        // seconds, of all repeats
    double in_engine = 0;             // of `steps`
    std::vector<double> of_pictures;  // all steps of a picture, extrapolated if only some were measured
    int64_t twice = 0;
    for (int repeat = 0; repeat < plan.warmup + plan.repeats; ++repeat) {
        const bool counts = repeat >= plan.warmup;
        auto timed = [&](const char* name, auto&& body) {
            const double begun = now();
            body();
            if (counts) stages.add(name, now() - begun);
        };
        std::vector<float> states = numbers.floats(static_cast<size_t>(sizes.text_tokens) * sizes.text_dim);
        std::vector<int32_t> picture = numbers.tokens(count, std::max({sizes.codebook_size, sizes.vocab_size, 1}));
        if (has(facts::TEXT_ENCODER) && !manifest.tokenizer.empty())
            timed("text", [&] { states = model.encode_text(model.padded(model.tokenize(facts::self_test::PROMPT))); });
        if (has(facts::VQ_ENCODER)) {
            const std::vector<float> pixels =
                numbers.floats(3 * static_cast<size_t>(model.image_size()) * model.image_size());
            timed("encode", [&] { picture = model.encode_pixels(pixels); });
        }
        if (has(facts::DECODER)) {
            std::vector<float> negated = states;
            for (float& each : negated) each = -each;
            std::unique_ptr<Scheduler> scheduler;
            Inputs other;
            timed("prefill", [&] {
                const Inputs inputs = model.inputs(states.data(), picture.data());
                other = model.inputs(negated.data(), picture.data());
                scheduler = std::make_unique<Scheduler>(model.backend(), 1, guided, prefix, count, model.vocabulary(),
                                                        sizes.dim);
                Sequence sequence(scheduler->context(0), inputs, sampling, sampling.seed,
                                  std::vector<int32_t>(count, -1));
                scheduler->prefill(sequence);
            });
            std::vector<int32_t> known = numbers.tokens(count, model.vocabulary());
            const int first = at - prefix;
            std::fill(known.begin() + first, known.begin() + std::min(first + 1 + stop - at, count), -1);
            Sequence sequence(scheduler->context(0), other, sampling, sampling.seed, known);
            timed("next_prefill", [&] { scheduler->prefill(sequence); });
            double sum = 0;
            int taken = 0;
            while (!sequence.finished()) {
                const int before = sequence.position;
                const double begun = now(), engine = scheduler->engine_seconds;
                scheduler->step({&sequence});
                if (before == first || sequence.position == before) continue;  // the first token comes from a chunk
                const double seconds = now() - begun;
                sum += seconds;
                ++taken;
                if (counts) steps.push_back(seconds);
                if (counts) in_engine += scheduler->engine_seconds - engine;
            }
            if (counts && taken > 0) of_pictures.push_back((count - 1) * sum / taken);
            twice = std::max(twice, model.backend().shared_bytes());
        }
        if (has(facts::VQ_DECODER)) timed("pixels", [&] { model.decode_pixels(picture.data()); });
    }
    // Before the bandwidth is measured, which also takes memory.
    const int64_t peak = peak_memory_bytes(twice), resident = peak_resident_bytes();
    Backend& backend = model.backend();
    const bool on_cpu = backend.device() == "cpu";
    const int64_t in_use = backend.memory_in_use();
    const double measured = on_cpu ? read_bandwidth(thread_count()) : backend.read_bandwidth();
    const double bandwidth = measured > 0 ? measured : std::nan("");
    const std::string folder = model.bundle().folder();
    JsonText report = JsonText::object();
    report.set("version", editar_version())
        .set("machine", machine_description())
        .set("name", folder.substr(folder.find_last_of("/\\") + 1))
        .set("backend", model.backend().name())
        .set("bundle", model.bundle().fingerprint())
        .set("precision", manifest.precision)
        .set("kv_cache", manifest.kv_cache)
        .set("dialect", manifest.dialect)
        .set("rows", guided ? 2 : 1)
        .set("device_memory", JsonText::raw(in_use == 0 ? "null" : std::to_string(in_use)))
        .set("sampling_head", !backend.samplers().empty())
        .set("speculate", JsonText::raw("null"))
        .set("repeats", plan.repeats)
        .set("warmup", plan.warmup)
        .set("picture_tokens", count);
    double first_token = 0, whole = 0;
    for (const Stage& stage : stages.all()) {
        const std::string_view name = stage.name;
        if (name == "text" || name == "encode" || name == "prefill") first_token += stage.median_ms();
    }
    if (!steps.empty()) {
        double sum = 0;
        std::vector<double> milliseconds;
        for (double each : steps) {
            sum += each;
            milliseconds.push_back(1e3 * each);
        }
        for (int share : {50, 95, 99}) report.set("p" + std::to_string(share), percentile(milliseconds, share / 100.0));
        report.set("steps", static_cast<int64_t>(steps.size() / plan.repeats));
        report.set("at", plan.at == 0 ? JsonText::raw("null") : JsonText::raw(std::to_string(plan.at)));
        report.set("tokens_per_second", static_cast<double>(steps.size()) / sum);
        report.set("time_to_first_token_ms", first_token);
        report.set("tokens_per_pass", 1.0);
        report.set("percent_outside_engine", 100 * (sum - in_engine) / sum);
        const auto weights = manifest.model.step_weight_bytes.find(model.backend().device());
        const bool known = weights != manifest.model.step_weight_bytes.end();
        const double filled = at + (stop - at) / 2.0;
        const int64_t read =
            known ? weights->second + static_cast<int64_t>((guided ? 2 : 1) * filled *
                                                           static_cast<double>(cache_bytes_per_position(manifest)))
                  : 0;
        report.set("bytes_per_step", known ? JsonText::raw(std::to_string(read)) : JsonText::raw("null"));
        report.set("read_bandwidth", bandwidth);
        report.set(
            "percent_of_bandwidth",
            known ? 100 * static_cast<double>(read) / (percentile(milliseconds, 0.5) / 1e3) / bandwidth : std::nan(""));
        for (double each : of_pictures) stages.add("decode", each);
    }
    JsonText listed = JsonText::object();
    for (const Stage& stage : stages.all()) {
        const auto [low, high] = std::minmax_element(stage.seconds.begin(), stage.seconds.end());
        listed.set(stage.name, JsonText::object()
                                   .set("median_ms", stage.median_ms())
                                   .set("min_ms", 1e3 * *low)
                                   .set("max_ms", 1e3 * *high));
        if (std::string_view(stage.name) != "next_prefill") whole += stage.median_ms();
    }
    return report.set("stages", listed)
        .set("seconds_per_picture", whole / 1e3)
        .set("peak_memory", peak)
        .set("peak_resident", resident)
        .text();
}

}  // namespace editar
