// Built engines on disk: a folder inside the bundle, with a `build.json` that says where they run.
// As editar_rt/backends/engines/folder.py: what does not match is refused with the command that builds it again.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "bundle.h"
#include "engines/device.h"
#include "engines/plan.h"

namespace editar {

struct EngineInfo {
    std::string file;
    int profile = 0;            // index of the file's profile, if several engines share a file
    int64_t scratch_bytes = 0;  // device memory that a run needs besides weights, inputs and outputs
};

struct BuildInfo {
    std::string bundle;  // SHA-256 of the bundle.json that the engines were built from
    std::string target, library, tensorrt, gpu, compute_capability;
    std::vector<std::string> capabilities;  // of the GPUs that they are for, if they were built without one
    Plan plan;
    std::map<std::string, EngineInfo, std::less<>> engines;  // by the shape's name
    std::map<std::string, FileInfo, std::less<>> files;
    std::vector<std::string> hashes;  // of the files, in the order of build.json
    bool tried = true;  // whether they ran and passed the gate; otherwise the first load on each machine compares them

    std::string title() const;  // name and version of the library for users
};

// All throw EDITAR_BACKEND_FAILED.

// The folders of engines in a bundle, sorted by name, without links that leave it.
std::vector<std::string> find_engine_folders(const Bundle& bundle);
// Those to try: all, or the one that the caller named, which must be inside the bundle, or EDITAR_BAD_ARGUMENT.
std::vector<std::string> choose_engine_folders(const Bundle& bundle, const std::string& named);
BuildInfo read_build(const std::string& folder);
// Reject engines that were built from another bundle or for another machine.
void check_build(const BuildInfo& info, const std::string& folder, const Bundle& bundle, const Device& here);
// Read an engine's file, and compare its size and hash.
std::string read_engine(const std::string& folder, const BuildInfo& info, const std::string& name,
                        const Bundle& bundle);
// The command that builds a bundle's engines again.
std::string rebuild_command(const Bundle& bundle, const std::string& target);

}  // namespace editar
