// Inspects an ONNX file before an engine opens it: its inputs, outputs and external data files, without reading the
// weights (editar_rt/bundle/graph_file.py).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bundle.h"

namespace editar {

struct ExternalData {
    std::string location;  // as written in the graph
    uint64_t stop;         // the first byte after the values
};

struct GraphFile {
    std::vector<TensorInfo> inputs;  // without those that have initializers
    std::vector<TensorInfo> outputs;
    std::vector<ExternalData> external;
    bool rearranged = false;  // whether it contains weights prepacked for one machine
};

// Throws EDITAR_BAD_BUNDLE where a file is not an ONNX graph or no engine should read it; std::system_error.
GraphFile read_graph(const std::string& path);
// The same of a file's content; `path` is for messages.
GraphFile read_graph(const std::string& path, std::string_view content);
// Read a part's graph and compare it with the manifest. Returns the names of the graph and of the files with its
// weights.
std::vector<std::string> check_graph(const std::string& path, const PartInfo& part, const Manifest& manifest);

}  // namespace editar
