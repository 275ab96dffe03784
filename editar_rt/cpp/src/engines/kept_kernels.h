// The kernels that TensorRT for RTX has compiled for a machine, kept on disk so that engines open faster next time: the
// folders of editar_rt/backends/engines/kept_kernels.py. The library checks that they fit the machine.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace editar {

class KeptKernels {
public:
    // `root`: the folder of the cache; "" keeps nothing. `identity`: what the kernels depend on.
    KeptKernels(const std::string& root, const std::vector<std::string>& identity);
    // What was kept; "" if there is nothing.
    std::string read();
    // Keep kernels if there are more than before; what cannot be written is logged.
    void keep(std::string_view kernels);

private:
    std::string root_, folder_;
    size_t known_ = 0;  // bytes that are kept
};

}  // namespace editar
