#include "plugin.h"

#include "dynamic_library.h"
#include "error.h"

namespace editar {

std::unique_ptr<Backend> open_plugin(const Bundle& bundle, const std::string& path) {
    std::vector<std::string> candidates;
    if (!path.empty()) {
        candidates = {path};
    } else {
        const std::string name = "libeditar_tensorrt.so", folder = own_folder();
        if (!folder.empty()) candidates.push_back(folder + name);
        candidates.push_back(name);
    }
    open_library(candidates, "the library that runs TensorRT's engines, libeditar_tensorrt,",
                 "this library has none yet: run " + bundle.folder() +
                     " with Python's runtime, or convert the bundle "
                     "for ONNX Runtime with: python -m export convert BUNDLE --dialect ort -o OUT");
    throw unsupported("this version runs no engines of TensorRT; use Python's runtime");
}

}  // namespace editar
