// The bundle: a folder of graphs with a manifest that describes them. The same checks as editar_rt/bundle: bundles are
// untrusted, nothing outside the folder is opened, sizes and hashes are compared before a graph is loaded.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "json.h"

namespace editar {

struct TensorInfo {
    std::string name, dtype;           // NumPy's name of the type
    std::vector<int64_t> shape;        // negative where the dimension is a symbol
    std::vector<std::string> symbols;  // as long as shape; "" where the dimension is a number
};

struct PartInfo {
    std::string file;
    std::vector<TensorInfo> inputs, outputs;
    const TensorInfo* input(const std::string& name) const;  // null if there is none
    const TensorInfo* output(const std::string& name) const;
};

struct FileInfo {
    std::string sha256;
    int64_t bytes = 0;
};

// Sizes of the models; 0 where the part that has them is missing.
struct ModelInfo {
    int image_size = 0, downsampling = 0, grid = 0, picture_tokens = 0, codebook_size = 0, codebook_dim = 0;
    int vocab_size = 0, dim = 0, layers = 0, heads = 0, head_dim = 0, text_tokens = 0, text_dim = 0;
    std::map<std::string, int64_t> parameters, activations, step_weight_bytes;
};

struct Manifest {
    ModelInfo model;
    std::vector<std::pair<std::string, PartInfo>> parts;  // in the manifest's order
    std::map<std::string, FileInfo> files;
    std::string precision = "fp32", dialect = "ort", kv_cache = "same";
    int sampler_top_k = 0;
    std::vector<std::string> providers;  // of ONNX Runtime, that run the decoder
    std::string tokenizer, samples;      // "" if there is none
    Json sampling;                       // an object of numbers: defaults that differ from EditAR's
    Json self_test;                      // null if there is none
    std::vector<std::pair<std::string, std::string>> made_by;
    int64_t format_version = 1;

    const PartInfo* part(const std::string& name) const;  // null if there is none
    // Throws Error (EDITAR_BAD_BUNDLE).
    static Manifest parse(std::string_view text);
};

class Bundle {
public:
    // Read the manifest, and compare every file's size and the hashes of files up to 64 MiB, or of all.
    static Bundle open(const std::string& folder, bool hash_all = false);

    const std::string& folder() const { return folder_; }  // absolute
    const Manifest& manifest() const { return manifest_; }
    const std::string& fingerprint() const { return fingerprint_; }

    // The path of a listed file, after checking that it has not changed since the bundle was opened.
    std::string path(const std::string& name) const;
    // The graph of a part, after checking it and the files with its weights.
    std::string part_path(const std::string& part) const;
    std::vector<std::string> part_files(const std::string& part) const;

private:
    struct Identity {
        uint64_t device = 0, inode = 0;
        int64_t size = 0, modified = 0;
        bool operator==(const Identity& other) const;
    };
    std::string folder_, fingerprint_;
    Manifest manifest_;
    std::map<std::string, Identity> opened_;
};

}  // namespace editar
