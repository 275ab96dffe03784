// Weights prepacked for a CPU's kernels and stored on disk, so that a large decoder opens in seconds and its weights
// are mapped: editar_rt/backends/ort/prepacked.py, whose graphs these are.
#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "error.h"
#include "facts.h"
#include "files.h"
#include "graph_file.h"
#include "kept_folder.h"
#include "machine.h"
#include "ort/ort_backend.h"
#include "sha256.h"

#if !defined(_WIN32)
#include <sys/stat.h>
#endif

namespace editar {

namespace fs = std::filesystem;

#if defined(_WIN32)

std::string prepacked(OrtBackend&, const std::string&, const std::string&) {
    return "";
}

#else

namespace {

// Options of a session that writes its graph and its prepacked weights to a folder.
SessionOptionsPtr writing_to(const std::string& folder, const OrtBackend& backend) {
    const OnnxRuntime& ort = backend.ort();
    SessionOptionsPtr options = backend.make_options();
    const std::string graph = folder + "/" + facts::CACHE_GRAPH, data = fs::path(prepacked_weights(graph)).filename();
    ort.check(ort.api().SetOptimizedModelFilePath(options.get(), ort_path(graph).c_str()), "options");
    const std::pair<const char*, const char*> entries[] = {
        {"session.optimized_model_external_initializers_file_name", data.c_str()},
        {"session.optimized_model_external_initializers_min_size_in_bytes", "1024"},
        {"session.save_external_prepacked_constant_initializers", "1"},
    };
    for (const auto& [name, value] : entries)
        ort.check(ort.api().AddSessionConfigEntry(options.get(), name, value), "options");
    return options;
}

void check_written(const std::string& folder) {
    for (const ExternalData& each : read_graph(folder + "/" + facts::CACHE_GRAPH).external)
        if (each.stop > fs::file_size(folder + "/" + each.location))
            throw backend_error(each.location + " is truncated");
}

// Of the folder of a part's graph: what its content depends on, as the text of Python's json.dumps.
std::string identity_of(std::vector<std::string> hashes, const std::string& version) {
    std::sort(hashes.begin(), hashes.end());
    std::string list;
    for (const std::string& hash : hashes) list += (list.empty() ? "" : ", ") + json_quoted(hash);
    const std::string text = "[[" + list + "], " + json_quoted(version) + ", " + json_quoted(machine_name()) + ", " +
                             json_quoted(processor_features()) + "]";
    Sha256 digest;
    digest.add(text.data(), text.size());
    return digest.hex().substr(0, 32);
}

// The folder of all kept graphs, which only its user may enter.
void make_root(const std::string& root) {
    fs::create_directories(fs::path(root).parent_path());
    if (mkdir(root.c_str(), 0700) != 0 && errno != EEXIST)
        throw std::system_error(errno, std::generic_category(), root);
}

}  // namespace

std::string prepacked(OrtBackend& backend, const std::string& root, const std::string& part) {
    const Bundle& bundle = backend.bundle();
    std::vector<std::string> hashes;
    int64_t size = 0;
    for (const std::string& name : bundle.part_files(part)) {
        const FileInfo* file = bundle.manifest().file(name);
        if (file == nullptr) return "";
        hashes.push_back(file->sha256);
        size += file->bytes;
    }
    // Where the system does not tell the processor's instruction sets, another one might read the same folder.
    if (root.empty() || size < facts::PAYS_FROM || processor_features().empty()) return "";
    const std::string folder = root + "/" + identity_of(std::move(hashes), backend.ort().version());
    kept_folder::remove_abandoned(root);
    if (kept_folder::is_as_sealed(folder)) return folder + "/" + facts::CACHE_GRAPH;
    try {
        make_root(root);
        if (static_cast<int64_t>(fs::space(root).available) < facts::ROOM * size) {
            log_message(EDITAR_LOG_INFO, root + " has no room for prepacked weights (" +
                                             std::to_string(2 * size / 1000000) + " MB); continuing without them");
            return "";
        }
        log_message(EDITAR_LOG_INFO, "prepacking the weights of " + part + " for this machine, once (" + folder + ")");
        kept_folder::Making making(folder);
        backend.open(bundle.part_path(part), writing_to(making.partial(), backend));
        check_written(making.partial());
        making.finish();
    } catch (const std::exception& e) {  // a full disk is ONNX Runtime's own error
        log_message(EDITAR_LOG_INFO,
                    "prepacked weights cannot be stored in " + root + " (" + e.what() + "); continuing without them");
        return "";
    }
    return folder + "/" + facts::CACHE_GRAPH;
}

#endif

std::string prepacked_weights(const std::string& graph) {
    return graph + ".data";
}

void forget_prepacked(const std::string& graph) {
    const fs::path folder = fs::path(graph).parent_path();
    log_message(EDITAR_LOG_INFO,
                "the prepacked weights in " + folder.string() + " cannot be opened; continuing without them");
    std::error_code ignored;
    fs::remove_all(folder, ignored);
}

}  // namespace editar
