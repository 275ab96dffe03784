// Folders of a disk cache that are either complete or absent: those of editar_rt/backends/kept_folder.py.
//
// A folder is sealed with the hash of every file, synced, and only then renamed to its name. Before use, the times of
// its files and a sample of their pages are compared; if the times differ, the complete file is hashed. Not on Windows.
#pragma once

#include <string>

namespace editar::kept_folder {

// The cache folder: the named one, otherwise (null) $EDITAR_CACHE, or editar_rt in the user's folder for caches. ""
// where the name is "" or "off", or the user has no home folder.
std::string cache_folder(const char* named);

// Whether a folder's files are unchanged since it was sealed.
bool is_as_sealed(const std::string& folder);

// Remove the temporary folders of killed processes.
void remove_abandoned(const std::string& root);

// A temporary folder to write files to: sealed and renamed by `finish`, and removed with this object otherwise.
class Making {
public:
    explicit Making(std::string folder);  // throws std::system_error, as `finish`
    ~Making();
    Making(const Making&) = delete;
    Making& operator=(const Making&) = delete;

    const std::string& partial() const { return partial_; }
    // If another process was faster, its folder stays.
    void finish();

private:
    std::string folder_, partial_;
    int lock_ = -1;  // released when the process ends, even if it is killed
};

}  // namespace editar::kept_folder
