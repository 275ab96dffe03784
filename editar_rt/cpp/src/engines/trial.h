// The first run of engines that were built without a GPU: its result is kept beside them, for each machine. As
// editar_rt/backends/engines/trial.py, whose files this reads and writes.
#pragma once

#include <string>
#include <vector>

#include "engines/device.h"
#include "engines/folder.h"
#include "selftest.h"

namespace editar {

class Trial {
public:
    // Throws EDITAR_BACKEND_FAILED where the engines failed here before.
    Trial(const Bundle& bundle, const std::string& folder, const BuildInfo& info, const Device& here);
    bool is_needed() const { return is_needed_; }  // whether the engines have not run on this machine
    void keep(const std::vector<Comparison>& compared);

private:
    std::vector<std::pair<std::string, std::string>> machine_;  // facts that a result holds for
    std::string path_, build_;                                  // build_: SHA-256 of build.json
    bool is_needed_;
};

}  // namespace editar
