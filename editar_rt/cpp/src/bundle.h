// The bundle: a folder of graphs with a manifest that describes them. The same checks as editar_rt/bundle: bundles are
// untrusted, nothing outside the folder is opened, sizes and hashes are compared before a graph is loaded.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "facts.h"
#include "files.h"
#include "json.h"

namespace editar {

struct TensorInfo {
    std::string name, dtype;           // NumPy's name of the type
    std::vector<int64_t> shape;        // -1 where the dimension is a symbol
    std::vector<std::string> symbols;  // as long as shape; "" where the dimension is a number
    std::vector<bool> symbolic;        // as long as shape
};

struct PartInfo {
    std::string file;
    std::vector<TensorInfo> inputs, outputs;
    const TensorInfo* input(std::string_view name) const;  // null if there is none
    const TensorInfo* output(std::string_view name) const;
};

struct FileInfo {
    std::string sha256;
    int64_t bytes = 0;
};

// Sizes of the models; 0 where the part that has them is missing.
struct ModelInfo {
#define EDITAR_SIZE(name, largest) int name = 0;
    EDITAR_MODEL_SIZES(EDITAR_SIZE)
#undef EDITAR_SIZE
    std::map<std::string, int64_t> parameters, activations, step_weight_bytes;

    int size(std::string_view name) const;  // by its name in the manifest
    void check() const;                     // out of range, or contradicting each other: EDITAR_BAD_BUNDLE
};

struct Manifest {
    ModelInfo model;
    std::vector<std::pair<std::string, PartInfo>> parts;  // in the manifest's order
    std::map<std::string, FileInfo, std::less<>> files;   // by path inside the bundle; all but the manifest
    std::string precision{facts::DEFAULT_PRECISION};
    std::string dialect{facts::DEFAULT_DIALECT};
    std::string kv_cache{facts::DEFAULT_KV_CACHE};
    int sampler_top_k = 0;
    std::vector<std::string> providers;  // of ONNX Runtime, that run the decoder
    std::string tokenizer, samples;      // "" if there is none
    Json sampling;                       // an object of numbers: defaults that differ from EditAR's
    Json self_test;                      // null if there is none
    std::vector<std::pair<std::string, std::string>> made_by;
    int64_t format_version = 1;

    const PartInfo* part(std::string_view name) const;  // null if there is none
    const FileInfo* file(std::string_view name) const;
    const facts::Dialect& operators() const;
    // Throws Error (EDITAR_BAD_BUNDLE).
    static Manifest parse(std::string_view text);
};

class Bundle {
public:
    // Read the manifest, and compare every file's size and the hashes of files up to 64 MiB, or of all.
    static Bundle open(const std::string& folder, bool hash_all = false);

    const std::string& folder() const { return folder_; }  // absolute
    const Manifest& manifest() const { return manifest_; }
    const std::string& fingerprint() const { return fingerprint_; }  // SHA-256 of bundle.json

    // The path of a listed file, after checking that it has not changed since the bundle was opened.
    std::string path(const std::string& name) const;
    // The graph of a part, after checking it and the files with its weights.
    std::string part_path(const std::string& part) const;
    // Names of a part's files: its graph, and the files with its weights.
    std::vector<std::string> part_files(const std::string& part) const;
    // Hash every file and read every graph.
    void check() const;

private:
    std::string inside(const std::string& name) const;
    FileIdentity check_file(const std::string& name, const FileInfo& expected, int64_t hash_up_to) const;

    std::string folder_, fingerprint_;
    Manifest manifest_;
    std::map<std::string, FileIdentity, std::less<>> opened_;
    mutable std::map<std::string, std::vector<std::string>> part_files_;
};

// A shape for messages, as Python writes a list: [1, 'rows'], of at most 80 characters.
std::string shown_shape(const TensorInfo& tensor);
// Reject a path that could leave the bundle: EDITAR_BAD_BUNDLE.
void check_relative(std::string_view path);
// Whether a bundle's file is in the bundle's folder or among the blobs of the cache that contains the folder.
bool is_kept_inside(const std::string& path, const std::string& folder);
// Compare a value with its type: EDITAR_BAD_BUNDLE.
void check_schema(const facts::schema::Type& type, const Json& value, const std::string& where);

}  // namespace editar
