#include "engines/trial.h"

#include <ctime>
#include <system_error>

#include "error.h"
#include "facts.h"
#include "files.h"
#include "json_text.h"
#include "ort/library.h"

namespace editar {

namespace {

// Each run of other characters becomes one dash.
std::string plain(const std::string& text) {
    std::string made;
    bool dashed = false;
    for (char c : text) {
        const bool good = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.';
        if (good || !dashed) made += good ? c : '-';
        dashed = !good;
    }
    return made;
}

// Whether the engines passed, from a result of this machine and these engines; null without one.
const Json* result_of(const Json& found, const std::string& build,
                      const std::vector<std::pair<std::string, std::string>>& machine) {
    auto is = [&](const std::string& name, const std::string& value) {
        const Json* given = found.find(name);
        return given != nullptr && given->kind == Json::Kind::string && given->text == value;
    };
    bool same = is("format", facts::engines::TRIAL_FORMAT) && is("build", build);
    for (const auto& [name, value] : machine) same = same && is(name, value);
    const Json* holds = found.find("holds");
    return same && holds != nullptr && holds->kind == Json::Kind::boolean ? holds : nullptr;
}

std::string now() {
    const std::time_t seconds = std::time(nullptr);
    std::tm parts{};
#if defined(_WIN32)
    gmtime_s(&parts, &seconds);
#else
    gmtime_r(&seconds, &parts);
#endif
    char text[40];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S+00:00", &parts);
    return text;
}

}  // namespace

Trial::Trial(const Bundle& bundle, const std::string& folder, const BuildInfo& info, const Device& here)
    : machine_{{"gpu", here.facts().gpu},
               {"compute_capability", here.facts().capability},
               {"driver", here.facts().driver},
               {"tensorrt", here.facts().version}},
      is_needed_(!info.tried) {
    const std::string name = "tried-" + plain(here.facts().gpu) + "-" + plain(here.facts().driver) + "-" +
                             plain(here.facts().version) + ".json";
    path_ = folder + "/" + name;
    try {
        build_ = file_sha256(folder + "/" + facts::engines::BUILD_NAME);
        FileIdentity::of(path_);  // a regular file
        const Json found = Json::parse(read_file(path_, facts::engines::TRIAL_MAX_BYTES), name);
        const Json* holds = result_of(found, build_, machine_);
        if (holds == nullptr) return;
        is_needed_ = false;
        if (holds->boolean) return;
    } catch (const std::exception&) {  // there is no result, or no valid one
        return;
    }
    throw backend_error("the engines in " + folder + " failed the comparison with the exporting machine on " +
                        here.facts().gpu + " (" + name + "); run: " + rebuild_command(bundle, info.target) +
                        ", or delete that file to try again");
}

void Trial::keep(const std::vector<Comparison>& compared) {
    is_needed_ = false;
    bool holds = true;
    JsonText parity = JsonText::list();
    for (const Comparison& each : compared) {
        holds = holds && each.holds();
        parity.add(as_json(each, "engine"));
    }
    JsonText document = JsonText::object();
    document.set("format", facts::engines::TRIAL_FORMAT).set("build", build_);
    for (const auto& [name, value] : machine_) document.set(name, value);
    document.set("date", now()).set("holds", holds).set("parity", parity);
    try {
        place_file(path_, document.text() + "\n");
    } catch (const std::exception& error) {
        log_message(EDITAR_LOG_WARNING,
                    path_ + " cannot be written (" + error.what() + "), so the engines are compared at every load");
    }
}

}  // namespace editar
