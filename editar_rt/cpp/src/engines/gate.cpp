#include "engines/gate.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "engines/engine_backend.h"
#include "error.h"
#include "facts.h"
#include "ort/library.h"

namespace editar {

namespace {

using Checks = std::vector<Comparison>;

Model limited(const std::shared_ptr<Engines>& engines, Plan plan) {
    return {engines->bundle(), std::make_unique<EngineBackend>(engines, std::move(plan))};
}

// Compare the decoder with the engines of one plan. pieces: of the prefill, to test a chunk engine; 0 tests a step.
void add_decoder(Checks& checks, const std::shared_ptr<Engines>& engines, const Plan& plan, int row,
                 const std::string& label, int pieces) {
    const EngineShape shape =
        pieces == 0 ? EngineShape{facts::DECODER, plan.rows[0], 1} : EngineShape{facts::DECODER, 1, plan.chunks[0]};
    const Way way = pieces == 0 ? Way{plan.rows[0], row, 1} : Way{1, 0, pieces};
    Model model = limited(engines, plan);
    for (Comparison& check : self_test(model, {facts::PREFIX_GRAPH, facts::DECODER}, way)) {
        if (check.part != facts::DECODER) continue;
        check.part = shape.name();
        check.output += ", " + label;
        checks.push_back(std::move(check));
    }
}

// Compare an engine of drafts, its rows at different positions, with the plan's steps on the same tokens.
void add_drafts(Checks& checks, const std::shared_ptr<Engines>& engines, const Plan& plan) {
    const int rows = plan.rows[0], count = plan.drafts[0];
    const Manifest& manifest = engines->bundle().manifest();
    const int size = std::max(manifest.model.vocab_size, 1);
    EngineBackend backend(engines, plan);
    const int room = backend.capacity() - plan.unused_positions();
    if (room <= count) throw backend_error("the decoder's cache has no room for drafts; build the engines again");
    const std::unique_ptr<Decoder> decoder = backend.make_decoder(rows, room);
    const std::vector<int32_t> tokens = spread(static_cast<int64_t>(rows) * room, size);
    auto begin = [&](int row) { return row % (room - count) + 1; };
    auto taken = [&](int row, int start, int positions) {
        const auto first = tokens.begin() + static_cast<std::ptrdiff_t>(row) * room + start;
        return std::vector<int32_t>(first, first + positions);
    };
    std::vector<float> answers[2];  // [R, count, V]: of steps, of drafts
    for (const int positions : {1, count}) {
        for (int row = 0; row < rows; ++row) {
            Batch batch;
            batch.rows = {row};
            batch.past = {0};
            batch.positions = begin(row);
            batch.tokens = taken(row, 0, begin(row));
            decoder->run(batch);
        }
        std::vector<float>& found = answers[positions == 1 ? 0 : 1];
        found.resize(static_cast<size_t>(rows) * count * size);
        for (int start = 0; start < count; start += positions) {
            Batch batch;
            batch.positions = batch.outputs = positions;
            for (int row = 0; row < rows; ++row) {
                batch.rows.push_back(row);
                batch.past.push_back(begin(row) + start);
                for (int32_t token : taken(row, begin(row) + start, positions)) batch.tokens.push_back(token);
            }
            const float* logits = decoder->run(batch);
            const size_t width = static_cast<size_t>(positions) * size;
            for (int row = 0; row < rows; ++row)
                std::copy_n(logits + row * width, width,
                            found.data() + (static_cast<size_t>(row) * count + start) * size);
        }
    }
    double difference = 0, largest = 0;
    for (size_t n = 0; n < answers[0].size(); ++n) {
        const double own = std::fabs(static_cast<double>(answers[1][n]) - static_cast<double>(answers[0][n]));
        difference = std::isnan(own) || std::isnan(difference) ? std::nan("") : std::max(difference, own);
        largest = std::max(largest, std::fabs(static_cast<double>(answers[0][n])));
    }
    checks.push_back({EngineShape{facts::DECODER, rows, count}.name(), facts::LOGITS + std::string(" of drafts"),
                      difference, relative_error(difference, largest), bound_of(manifest, facts::DECODER),
                      answers[0] == answers[1]});
}

// Run every engine; the part of each comparison is the engine's name.
Checks compare(const std::shared_ptr<Engines>& engines) {
    const Bundle& bundle = engines->bundle();
    const Plan& plan = engines->info().plan;
    std::vector<std::string> parts;
    std::string missing;
    for (const auto& [part, described] : bundle.manifest().parts) {
        if (bundle.manifest().self_test.find(part) == nullptr) missing += (missing.empty() ? "" : ", ") + part;
        if (part != facts::SAMPLER) parts.push_back(part);
    }
    if (!missing.empty())
        throw bundle_error("the self-test of the bundle " + bundle.folder() + " lacks " + missing +
                           ", with which engines are compared; export it on a machine that can run them");
    Checks checks;
    Model model = limited(engines, plan);
    for (Comparison& check : self_test(model, parts))
        if (check.part != facts::DECODER) checks.push_back(std::move(check));  // engine by engine below
    if (bundle.manifest().part(facts::DECODER) == nullptr) return checks;
    if (bundle.manifest().part(facts::SAMPLER) != nullptr) {
        for (const auto& [rows, positions] : plan.sampled()) {
            const std::vector<int> drafts = positions > 1 ? std::vector<int>{positions} : std::vector<int>();
            Model own = limited(engines, {{rows}, plan.chunks, drafts});
            for (Comparison& check : self_test(own, {facts::SAMPLER})) {
                check.part = EngineShape{facts::SAMPLER, rows, positions}.name();
                checks.push_back(std::move(check));
            }
        }
    }
    for (int rows : plan.rows) {
        const Plan own{{rows}, plan.chunks, {}};
        add_decoder(checks, engines, own, 0, "row 0", 0);
        if (rows > 1) add_decoder(checks, engines, own, rows - 1, "row " + std::to_string(rows - 1), 0);
    }
    for (int chunk : plan.chunks)
        for (int pieces : {1, 2})
            add_decoder(checks, engines, {plan.rows, {chunk}, {}}, 0, pieces == 1 ? "in 1 piece" : "in 2 pieces",
                        pieces);
    for (int rows : plan.rows)
        for (int drafts : plan.drafts) add_drafts(checks, engines, {{rows}, plan.chunks, {drafts}});
    return checks;
}

std::string shown(double number, const char* format) {
    char text[40];
    std::snprintf(text, sizeof text, format, number);
    return text;
}

}  // namespace

void try_engines(const std::shared_ptr<Engines>& engines) {
    log_message(EDITAR_LOG_INFO, "comparing the engines of " + engines->bundle().folder() +
                                     " with the exporting machine, once for this GPU");
    const Checks checks = compare(engines);
    engines->trial().keep(checks);
    for (const Comparison& check : checks)
        if (!check.holds())
            throw backend_error("the outputs of the engine " + check.part +
                                " differ from those of the exporting machine (" + check.output + ": error " +
                                shown(check.error, "%.1e") + ", allowed " + shown(check.bound, "%.0e") +
                                "); they will not be used on this machine");
}

}  // namespace editar
