// The folder: links, sizes, hashes (editar_rt/bundle/folder.py, links.py).
#include "bundle.h"

#include <system_error>

#include "error.h"
#include "graph_file.h"
#include "sha256.h"
#include "text.h"

namespace editar {

namespace {

namespace fs = std::filesystem;
using facts::MANIFEST_NAME;

std::string joined_path(const std::string& folder, std::string_view name) {
    return folder + "/" + std::string(name);
}

// Turns the system's errors into a sentence about a path.
template <typename Work>
auto reading(const std::string& path, Work work) {
    try {
        return work();
    } catch (const std::system_error& error) {
        throw bundle_error(path + " cannot be read: " + error.code().message());
    }
}

bool is_within(const std::string& path, const std::string& home) {
    const bool beneath = path.size() > home.size() && path.compare(0, home.size(), home) == 0 &&
                         (home.back() == '/' || path[home.size()] == '/' || path[home.size()] == '\\');
    return path == home || beneath;
}

// The blobs of the cached repository that contains a folder; "" outside of a Hugging Face cache, in which all files are
// links: `snapshots` holds a folder of links for every revision, `blobs` files named by their hashes.
std::string blobs_of(const std::string& home) {
    for (fs::path parent = as_path(home).parent_path(); parent.has_relative_path(); parent = parent.parent_path()) {
        if (as_utf8(parent.filename()) != facts::SNAPSHOTS) continue;
        const fs::path blobs = parent.parent_path() / as_path(std::string(facts::BLOBS));
        std::error_code error;
        const bool found = fs::is_directory(blobs, error) && !fs::is_symlink(blobs, error);
        return found ? as_utf8(blobs) : "";
    }
    return "";
}

}  // namespace

bool is_kept_inside(const std::string& path, const std::string& folder) {
    const auto target = resolved(path), home = resolved(folder);
    if (!target || !home) return false;
    if (is_within(*target, *home)) return true;
    const std::string blobs = blobs_of(*home);
    return !blobs.empty() && as_path(*target).parent_path() == as_path(blobs);
}

namespace {

// Whether a file is a link whose target is not named by the expected hash. A cache names large files by their SHA-256;
// any other name says nothing about the content.
bool is_blob_of_another(const std::string& path, const std::string& sha256) {
    const auto target = resolved(path);
    if (!target) return true;
    const std::string name = as_utf8(as_path(*target).filename());
    return name != as_utf8(as_path(path).filename()) && name != sha256;
}

std::string leaves(const std::string& path) {
    return path +
           " is a link that leaves the bundle; do not trust it, or copy the folder with its links followed (cp -rL) "
           "and open the copy";
}

std::string read_manifest(const std::string& folder) {
    const std::string path = joined_path(folder, MANIFEST_NAME);
    std::error_code error;
    if (!fs::is_directory(as_path(folder), error)) {
        if (error && error != std::errc::no_such_file_or_directory && error != std::errc::not_a_directory)
            throw std::system_error(error);
        throw bundle_error(folder + " is not a folder; a bundle is a folder that contains " +
                           std::string(MANIFEST_NAME));
    }
    if (!fs::is_regular_file(as_path(path), error)) {
        if (error && error != std::errc::no_such_file_or_directory && error != std::errc::too_many_symbolic_link_levels)
            throw std::system_error(error);
        throw bundle_error(folder + " contains no " + std::string(MANIFEST_NAME) +
                           "; make a bundle with: python -m export onnx -o BUNDLE");
    }
    if (!is_kept_inside(path, folder)) throw bundle_error(leaves(path));
    std::string content = read_file(path, facts::MAX_MANIFEST_BYTES + 1);
    if (content.size() > facts::MAX_MANIFEST_BYTES)
        throw bundle_error(path + " is larger than " + std::to_string(facts::MAX_MANIFEST_BYTES >> 20) +
                           " MiB, so it is not a manifest");
    return content;
}

}  // namespace

void check_relative(std::string_view path) {
    bool good = !path.empty() && path.find('\0') == std::string_view::npos && path[0] != '/' && path[0] != '\\';
    if (good) {
        size_t second = 0;
        next_code_point(path, second);
        good = second >= path.size() || path[second] != ':';  // a drive
    }
    for (size_t at = 0; good && at < path.size();) {
        const size_t end = std::min(path.find_first_of("/\\", at), path.size());
        good = path.substr(at, end - at) != "..";
        at = end + 1;
    }
    if (!good)
        throw bundle_error(std::string(MANIFEST_NAME) + " names " + shown(path) +
                           ", which is not a path inside the bundle; do not trust it");
}

Bundle Bundle::open(const std::string& folder, bool hash_all) {
    Bundle bundle;
    std::error_code error;
    const fs::path absolute = fs::absolute(as_path(folder), error);  // files are also opened later, after a chdir
    bundle.folder_ = error ? folder : as_utf8(absolute);
    const std::string content = [&bundle] {
        try {
            return read_manifest(bundle.folder_);
        } catch (const std::system_error& e) {
            throw bundle_error("the bundle " + bundle.folder_ + " cannot be read: " + e.code().message());
        }
    }();
    bundle.manifest_ = Manifest::parse(content);
    Sha256 digest;
    digest.add(content.data(), content.size());
    bundle.fingerprint_ = digest.hex();
    const int64_t up_to = hash_all ? INT64_MAX : facts::HASH_AT_LOAD_BYTES;
    for (const auto& [name, info] : bundle.manifest_.files)
        bundle.opened_.emplace(name, bundle.check_file(name, info, up_to));
    return bundle;
}

std::string Bundle::inside(const std::string& name) const {
    check_relative(name);
    std::string path = joined_path(folder_, name);
    if (!is_kept_inside(path, folder_)) throw bundle_error(leaves(path));
    return path;
}

FileIdentity Bundle::check_file(const std::string& name, const FileInfo& expected, int64_t hash_up_to) const {
    const std::string path = inside(name);
    return reading(path, [&] {
        std::error_code error;
        if (!fs::is_regular_file(as_path(path), error)) {
            if (error && error != std::errc::no_such_file_or_directory && error != std::errc::not_a_directory &&
                error != std::errc::too_many_symbolic_link_levels)
                throw std::system_error(error);
            throw bundle_error("the bundle " + folder_ + " lacks " + name +
                               "; copy it again completely, or export it again");
        }
        const FileIdentity identity = FileIdentity::of(path);
        if (identity.size != expected.bytes)
            throw bundle_error(path + " has " + std::to_string(identity.size) + " bytes, but the manifest says " +
                               std::to_string(expected.bytes) + ": it was truncated or altered; copy the bundle again");
        const bool hashed = identity.size <= hash_up_to || is_blob_of_another(path, expected.sha256);
        if (hashed && file_sha256(path) != expected.sha256)
            throw bundle_error(path + " is not the file the manifest describes (its SHA-256 differs); copy it again");
        return identity;
    });
}

std::string Bundle::path(const std::string& name) const {
    std::string path = inside(name);
    const auto opened = opened_.find(name);
    if (opened == opened_.end())
        throw bundle_error(std::string(MANIFEST_NAME) + " has no size and hash of " + name +
                           "; export the bundle again");
    if (!(reading(path, [&] { return FileIdentity::of(path); }) == opened->second))
        throw bundle_error(path + " was replaced or changed after the bundle was opened; open the bundle again");
    return path;
}

std::string Bundle::part_path(const std::string& part) const {
    part_files(part);
    return path(manifest_.part(part)->file);
}

std::vector<std::string> Bundle::part_files(const std::string& part) const {
    const PartInfo* described = manifest_.part(part);
    if (!described) throw missing_part("the bundle " + folder_ + " lacks the part " + part);
    auto found = part_files_.find(part);
    if (found == part_files_.end()) {
        const std::string graph = path(described->file);
        auto files = reading(graph, [&] { return check_graph(graph, *described, manifest_); });
        found = part_files_.emplace(part, std::move(files)).first;
    }
    for (const auto& name : found->second) path(name);
    return found->second;
}

void Bundle::check() const {
    for (const auto& [name, info] : manifest_.files) {
        const FileIdentity identity = check_file(name, info, INT64_MAX);
        if (!(identity == opened_.find(name)->second))
            throw bundle_error(joined_path(folder_, name) +
                               " was replaced or changed after the bundle was opened; open the bundle again");
    }
    for (const auto& part : manifest_.parts) part_files(part.first);
}

}  // namespace editar
