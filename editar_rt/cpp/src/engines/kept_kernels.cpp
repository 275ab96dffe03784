#include "engines/kept_kernels.h"

#include "error.h"
#include "facts.h"
#include "files.h"
#include "json.h"
#include "kept_folder.h"
#include "ort/library.h"
#include "sha256.h"

namespace editar {

namespace fs = std::filesystem;

KeptKernels::KeptKernels(const std::string& root, const std::vector<std::string>& identity) : root_(root) {
    if (root.empty()) return;
    std::string list;  // the same text as Python's json.dumps
    for (const std::string& each : identity) list += (list.empty() ? "" : ", ") + json_quoted(each);
    list = "[" + list + "]";
    Sha256 digest;
    digest.add(list.data(), list.size());
    folder_ = root + "/kernels-" + digest.hex().substr(0, 32);
}

std::string KeptKernels::read() {
    try {
        if (folder_.empty() || !kept_folder::is_as_sealed(folder_)) return "";
        std::string kernels =
            read_file(folder_ + "/" + facts::engines::KERNELS_FILE, facts::engines::KERNELS_MAX_BYTES);
        known_ = kernels.size();
        return kernels;
    } catch (const std::exception& e) {
        log_message(EDITAR_LOG_INFO, "the compiled kernels in " + folder_ + " cannot be read (" + e.what() + ")");
        return "";
    }
}

void KeptKernels::keep(std::string_view kernels) {
    if (folder_.empty() || kernels.size() <= known_ || kernels.size() > facts::engines::KERNELS_MAX_BYTES) return;
    try {
        fs::create_directories(as_path(root_));
        kept_folder::remove_abandoned(root_);
        fs::remove_all(as_path(folder_));
        kept_folder::Making making(folder_);
        place_file(making.partial() + "/" + facts::engines::KERNELS_FILE, kernels);
        making.finish();
        known_ = kernels.size();
    } catch (const std::exception& e) {
        log_message(EDITAR_LOG_INFO,
                    "compiled kernels cannot be stored in " + folder_ + " (" + e.what() + "); continuing without them");
    }
}

}  // namespace editar
