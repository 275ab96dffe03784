#include "engines/folder.h"

#include <algorithm>
#include <system_error>

#include "error.h"
#include "facts.h"
#include "files.h"
#include "sha256.h"

namespace editar {

namespace fs = std::filesystem;
using facts::engines::BUILD_NAME;

namespace {

constexpr int64_t MOST = 1 << 20;                 // of rows and positions
constexpr int64_t MOST_BYTES = int64_t{1} << 46;  // of a file, and of scratch memory

// A word as a shell reads it: shlex.quote.
std::string quoted(const std::string& word) {
    const char* plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-";
    if (!word.empty() && word.find_first_not_of(plain) == std::string::npos) return word;
    std::string text = "'";
    for (char c : word) text += c == '\'' ? std::string("'\"'\"'") : std::string(1, c);
    return text + "'";
}

std::string build_command(const Bundle& bundle) {
    return "python -m export tensorrt " + quoted(bundle.folder()) + " --target";
}

std::string without_engines(const Bundle& bundle) {
    return "the bundle " + bundle.folder() +
           " has no engines; build them on this device with: " + build_command(bundle) +
           " TARGET, where TARGET is a recipe in engines/; to check the bundle on the CPU, slowly and without "
           "TensorRT, run Python's runtime with --device emulated";
}

std::string joined(const std::vector<std::string>& words) {
    std::string text;
    for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
    return text;
}

bool contains(const std::vector<std::string>& words, const std::string& word) {
    return std::find(words.begin(), words.end(), word) != words.end();
}

std::vector<std::string> words_of(const std::string& text) {
    std::vector<std::string> words;
    for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find(' ', at), text.size());
        if (end > at) words.push_back(text.substr(at, end - at));
        at = end + 1;
    }
    return words;
}

const char* title_of(const std::string& library) {
    return library == facts::engines::RTX ? facts::engines::RTX_TITLE : facts::engines::TENSORRT_TITLE;
}

Error damaged(const std::string& path, const std::string& why) {
    return backend_error(path + " is damaged (" + why + "); build the engines again");
}

std::vector<int> counts_of(const Json* value, const std::string& path) {
    std::vector<int> counts;
    if (value != nullptr)
        for (const Json& each : value->items) {
            const int64_t count = each.integer();
            if (count < 1) throw damaged(path, "it has no rows or chunks");
            if (count > MOST) throw damaged(path, "it has " + each.text.substr(0, 40) + " rows or positions");
            counts.push_back(static_cast<int>(count));
        }
    std::sort(counts.begin(), counts.end());
    return counts;
}

BuildInfo decoded(const Json& raw, const std::string& path) {
    auto text = [&](const char* name, const char* usual) {
        const Json* value = raw.find(name);
        return value == nullptr ? std::string(usual) : value->text;
    };
    BuildInfo info;
    info.bundle = text("bundle", "");
    info.target = text("target", "");
    info.library = text("library", facts::engines::TENSORRT);
    info.tensorrt = text("tensorrt", "");
    info.gpu = text("gpu", "");
    info.compute_capability = text("compute_capability", "");
    if (const Json* listed = raw.find("capabilities"))
        for (const Json& each : listed->items) info.capabilities.push_back(each.text);
    info.plan = {counts_of(raw.find("rows"), path), counts_of(raw.find("chunks"), path),
                 counts_of(raw.find("drafts"), path)};
    for (const auto& [name, value] : raw.find("engines")->members) {
        const Json *profile = value.find("profile"), *scratch = value.find("scratch_bytes");
        const int64_t numbers[] = {profile == nullptr ? 0 : profile->integer(),
                                   scratch == nullptr ? 0 : scratch->integer()};
        if (numbers[0] < 0 || numbers[0] > MOST || numbers[1] < 0 || numbers[1] > MOST_BYTES)
            throw damaged(path, "an engine has an impossible number");
        info.engines[name] = {value.find("file")->text, static_cast<int>(numbers[0]), numbers[1]};
    }
    for (const auto& [name, value] : raw.find("files")->members) {
        check_relative(name);
        const int64_t bytes = value.find("bytes")->integer();
        if (bytes < 0 || bytes > MOST_BYTES) throw damaged(path, name + " has an impossible size");
        info.files[name] = {value.find("sha256")->text, bytes};
        info.hashes.push_back(info.files[name].sha256);
    }
    if (const Json* tried = raw.find("tried")) info.tried = tried->boolean;
    return info;
}

}  // namespace

std::string BuildInfo::title() const {
    return std::string(title_of(library)) + " " + tensorrt;
}

std::string rebuild_command(const Bundle& bundle, const std::string& target) {
    return build_command(bundle) + " " + quoted(target) + " --force";
}

std::vector<std::string> find_engine_folders(const Bundle& bundle) {
    std::error_code error;
    std::vector<std::string> folders;
    for (const auto& entry : fs::directory_iterator(as_path(bundle.folder()), error)) {
        const fs::path build = entry.path() / BUILD_NAME;
        if (fs::exists(build, error) && is_kept_inside(as_utf8(build), bundle.folder()))
            folders.push_back(as_utf8(entry.path()));
    }
    std::sort(folders.begin(), folders.end());
    return folders;
}

std::vector<std::string> choose_engine_folders(const Bundle& bundle, const std::string& named) {
    if (named.empty()) {
        std::vector<std::string> folders = find_engine_folders(bundle);
        if (folders.empty()) throw backend_error(without_engines(bundle));
        return folders;
    }
    std::error_code error;
    const std::string folder = as_utf8(as_path(bundle.folder()) / as_path(named));  // an absolute path stays
    const std::string inside = "engine_folder must be a folder inside the bundle " + bundle.folder();
    if (!is_kept_inside(folder, bundle.folder())) throw option_error(inside + ", got " + named);
    if (!fs::is_regular_file(as_path(folder + "/" + BUILD_NAME), error))
        throw backend_error("the folder " + folder + " has no engines (it lacks " + BUILD_NAME +
                            "); build them with: " + build_command(bundle) +
                            " TARGET, where TARGET is a recipe in engines/");
    if (!is_kept_inside(folder + "/" + BUILD_NAME, bundle.folder()))
        throw option_error(inside + ", but " + BUILD_NAME + " in " + named + " is a link that leaves it");
    return {folder};
}

BuildInfo read_build(const std::string& folder) {
    const std::string path = folder + "/" + BUILD_NAME;
    std::string content;
    try {
        FileIdentity::of(path);  // a regular file
        content = read_file(path, facts::engines::MAX_BYTES + 1);
    } catch (const std::system_error& error) {
        throw backend_error(path + " cannot be read: " + error.code().message());
    }
    if (content.size() > facts::engines::MAX_BYTES)
        throw backend_error(path + " cannot be read: it is larger than " +
                            std::to_string(facts::engines::MAX_BYTES >> 20) + " MiB");
    Json raw;
    try {
        raw = Json::parse(content, BUILD_NAME);
    } catch (const Error& error) {
        throw backend_error(path + " is not JSON (" + error.what() + "); build the engines again");
    }
    const Json *format = raw.find("format"), *version = raw.find("format_version");
    if (format == nullptr || format->text != facts::engines::FORMAT || version == nullptr || !version->is_integer() ||
        version->integer() != facts::engines::FORMAT_VERSION)
        throw backend_error(path + " does not say \"format\": \"" + facts::engines::FORMAT + "\" of version " +
                            std::to_string(facts::engines::FORMAT_VERSION) + "; build the engines again");
    BuildInfo info;
    try {
        check_strings(raw, BUILD_NAME);
        check_schema(facts::schema::build_info, raw, BUILD_NAME);
        info = decoded(raw, path);
    } catch (const Error& error) {
        if (error.status() != EDITAR_BAD_BUNDLE) throw;
        throw damaged(path, error.what());
    }
    if (info.plan.rows.empty() || info.plan.chunks.empty()) throw damaged(path, "it has no rows or chunks");
    if (info.library != facts::engines::TENSORRT && info.library != facts::engines::RTX)
        throw damaged(path, "there is no library '" + info.library.substr(0, 38) + "'");
    return info;
}

void check_build(const BuildInfo& info, const std::string& folder, const Bundle& bundle, const Device& here) {
    const std::string command = rebuild_command(bundle, info.target), engines = "the engines in " + folder;
    if (info.bundle != bundle.fingerprint())
        throw backend_error(engines + " were built from another bundle than this one; run: " + command);
    const editar_device_facts& facts = here.facts();
    if (info.title() != here.title()) {
        const std::string found = info.library == facts.library ? facts.version : here.title();
        throw backend_error(engines + " are for " + info.title() + ", but this machine has " + found +
                            "; run: " + command);
    }
    const std::string machine = std::string(facts.gpu) + " (" + facts.capability + ")";
    const std::string wanted = info.gpu + " (" + info.compute_capability + ")";
    if (info.library == facts::engines::TENSORRT && machine != wanted)
        throw backend_error(engines + " are for GPU " + wanted + ", but this machine has " + machine +
                            "; run: " + command);
    if (info.library == facts::engines::RTX && !contains(info.capabilities, facts.capability)) {
        const bool named = contains(words_of(facts.capabilities), facts.capability);
        throw backend_error(engines + " are for GPUs of compute capability " + joined(info.capabilities) +
                            ", but this machine has " + machine + "; " +
                            (named ? "name it in the recipe, and run: " + command
                                   : "run: " + build_command(bundle) +
                                         " TARGET, where TARGET is a recipe in engines/ for this device"));
    }
}

std::string read_engine(const std::string& folder, const BuildInfo& info, const std::string& name,
                        const Bundle& bundle) {
    const std::string path = folder + "/" + name, command = rebuild_command(bundle, info.target);
    const auto expected = info.files.find(name);
    std::error_code error;
    if (expected == info.files.end() || !fs::is_regular_file(as_path(path), error))
        throw backend_error(folder + " lacks the engine " + name + "; run: " + command);
    if (!is_kept_inside(path, bundle.folder()))
        throw backend_error("the engine " + path +
                            " is a link that leaves the bundle; do not trust it, or run: " + command);
    std::string content;
    try {
        const int64_t size = FileIdentity::of(path).size, wanted = expected->second.bytes;
        if (size != wanted)
            throw backend_error("the engine " + path + " has " + std::to_string(size) + " bytes, but " + BUILD_NAME +
                                " says " + std::to_string(wanted) + ": it was truncated or altered; run: " + command);
        content = read_file(path, static_cast<size_t>(wanted));
    } catch (const std::system_error& failed) {
        throw backend_error("the engine " + path + " cannot be read: " + failed.code().message());
    }
    Sha256 digest;  // of the content that is loaded
    digest.add(content.data(), content.size());
    if (digest.hex() != expected->second.sha256)
        throw backend_error("the engine " + path + " was altered (its SHA-256 differs); run: " + command);
    return content;
}

}  // namespace editar
