// Weights prepacked for a CPU's kernels and stored on disk, so that a large decoder opens in seconds and its weights
// are mapped: editar_rt/backends/ort/prepacked.py and kept_folder.py, whose folders this shares.
//
// A folder is either complete or absent: sealed when written, checked when used. Before use, the times of its files and
// a sample of their pages are compared; if the times differ, the whole file is hashed.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <random>
#include <system_error>

#include "error.h"
#include "facts.h"
#include "files.h"
#include "graph_file.h"
#include "machine.h"
#include "ort/ort_backend.h"
#include "sha256.h"

#if !defined(_WIN32)
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace editar {

namespace fs = std::filesystem;

namespace {

constexpr const char *SEAL = "seal.json", *LOCK = "lock", *PARTIAL = ".partial-";
constexpr int SAMPLED = 64, PAGE = 4096;  // number of sampled pages of a file, and their size

#if defined(_WIN32)

std::string prepacked_on_disk(OrtBackend&, const std::string&, const std::string&) {
    return "";
}

#else

// SHA-256 of pages spread over a file, including the first and the last.
std::string sample_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const int64_t last = std::max<int64_t>(static_cast<int64_t>(fs::file_size(path)) - PAGE, 0);
    Sha256 digest;
    char page[PAGE];
    for (int64_t n = 0; n < SAMPLED; ++n) {
        file.clear();
        file.seekg(last * n / (SAMPLED - 1));
        file.read(page, PAGE);
        digest.add(page, static_cast<size_t>(file.gcount()));
    }
    return digest.hex();
}

// Times that change when a file is written or replaced; programs cannot set the second.
std::pair<int64_t, int64_t> times_of(const std::string& path) {
    struct stat status;
    if (stat(path.c_str(), &status) != 0) throw std::system_error(errno, std::generic_category(), path);
    auto ns = [](const timespec& time) { return static_cast<int64_t>(time.tv_sec) * 1000000000 + time.tv_nsec; };
#if defined(__APPLE__)
    return {ns(status.st_mtimespec), ns(status.st_ctimespec)};
#else
    return {ns(status.st_mtim), ns(status.st_ctim)};
#endif
}

// Wait until a file or folder is on the disk.
void sync(const std::string& path) {
    const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) throw std::system_error(errno, std::generic_category(), path);
    const int failed = fsync(descriptor);
    const int reason = errno;
    close(descriptor);
    if (failed != 0) throw std::system_error(reason, std::generic_category(), path);
}

struct Sealed {
    std::string name, sha256, sample;
    int64_t bytes = 0;
    std::pair<int64_t, int64_t> times;
};

void write_seal(const std::string& folder, const std::vector<Sealed>& files) {
    std::string json = "{";
    for (const Sealed& file : files)
        json += std::string(json.size() > 1 ? "," : "") + "\n " + json_quoted(file.name) +
                ": {\n  \"bytes\": " + std::to_string(file.bytes) + ",\n  \"sha256\": " + json_quoted(file.sha256) +
                ",\n  \"sample\": " + json_quoted(file.sample) + ",\n  \"times\": [\n   " +
                std::to_string(file.times.first) + ",\n   " + std::to_string(file.times.second) + "\n  ]\n }";
    place_file(folder + "/" + SEAL, json + "\n}");
}

void seal(const std::string& folder) {
    std::vector<Sealed> files;
    for (const auto& entry : fs::directory_iterator(folder)) {
        const std::string name = entry.path().filename().string(), path = entry.path().string();
        if (name == LOCK || name == SEAL) continue;
        sync(path);
        files.push_back(
            {name, file_sha256(path), sample_of(path), static_cast<int64_t>(entry.file_size()), times_of(path)});
    }
    std::sort(files.begin(), files.end(), [](const Sealed& a, const Sealed& b) { return a.name < b.name; });
    write_seal(folder, files);
    sync(folder + "/" + SEAL);
    sync(folder);
}

// Whether a folder's files are unchanged since it was sealed.
bool is_as_sealed(const std::string& folder) {
    try {
        const Json seal = Json::parse(read_file(folder + "/" + SEAL, 1 << 20), SEAL);
        bool restamped = false;
        std::vector<Sealed> files;
        for (const auto& [name, given] : seal.members) {
            const std::string path = folder + "/" + name;
            const Json *bytes = given.find("bytes"), *sample = given.find("sample"), *times = given.find("times"),
                       *sha256 = given.find("sha256");
            if (bytes == nullptr || sample == nullptr || times == nullptr || sha256 == nullptr ||
                times->items.size() != 2)
                return false;
            Sealed file = {name,
                           sha256->text,
                           sample->text,
                           bytes->integer(),
                           {times->items[0].integer(), times->items[1].integer()}};
            if (static_cast<int64_t>(fs::file_size(path)) != file.bytes || sample_of(path) != file.sample) return false;
            if (times_of(path) != file.times) {  // copied, or written to
                if (file_sha256(path) != file.sha256) return false;
                file.times = times_of(path);
                restamped = true;
            }
            files.push_back(std::move(file));
        }
        if (restamped) {
            try {
                write_seal(folder, files);
            } catch (const std::exception&) {  // the cache may belong to another user
            }
        }
        return !files.empty();
    } catch (const std::exception&) {  // missing, or damaged
        return false;
    }
}

// A folder to write to: sealed and renamed by `finish`, otherwise removed. If another process was faster, its folder
// stays. A lock on it is released when the process ends, even if it is killed.
class Making {
public:
    explicit Making(std::string folder) : folder_(std::move(folder)) {
        char name[64];
        std::snprintf(name, sizeof name, "%d-%08x", static_cast<int>(getpid()), std::random_device()());
        partial_ = folder_ + PARTIAL + name;
        fs::create_directories(partial_);
        fs::permissions(partial_, fs::perms::owner_all);
        lock_ = open((partial_ + "/" + LOCK).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (lock_ >= 0) flock(lock_, LOCK_EX | LOCK_NB);
    }
    ~Making() {
        if (lock_ >= 0) close(lock_);
        std::error_code ignored;
        fs::remove_all(partial_, ignored);
    }
    Making(const Making&) = delete;
    Making& operator=(const Making&) = delete;

    const std::string& partial() const { return partial_; }
    void finish() {
        seal(partial_);
        std::error_code failed;
        if (fs::exists(folder_) && !is_as_sealed(folder_)) fs::remove_all(folder_, failed);
        fs::rename(partial_, folder_, failed);
        if (failed && !is_as_sealed(folder_)) throw std::system_error(failed, folder_);
        sync(fs::path(folder_).parent_path().string());
    }

private:
    std::string folder_, partial_;
    int lock_ = -1;
};

// Remove the folders that killed processes left half-written.
void remove_abandoned(const std::string& root) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(root, ignored)) {
        if (entry.path().filename().string().find(PARTIAL) == std::string::npos) continue;
        const int lock = open((entry.path() / LOCK).c_str(), O_RDONLY | O_CLOEXEC);
        if (lock < 0) continue;
        const bool abandoned = flock(lock, LOCK_EX | LOCK_NB) == 0;
        close(lock);
        if (abandoned) fs::remove_all(entry.path(), ignored);
    }
}

std::string prepacked_on_disk(OrtBackend& backend, const std::string& root, const std::string& part) {
    const Bundle& bundle = backend.bundle();
    const OnnxRuntime& ort = backend.ort();
    std::vector<std::string> hashes;
    int64_t size = 0;
    for (const std::string& name : bundle.part_files(part)) {
        const FileInfo* file = bundle.manifest().file(name);
        if (file == nullptr) return "";
        hashes.push_back(file->sha256);
        size += file->bytes;
    }
    if (size < facts::PAYS_FROM) return "";
    std::sort(hashes.begin(), hashes.end());
    std::string list;
    for (const std::string& hash : hashes) list += (list.empty() ? "" : ", ") + json_quoted(hash);
    // The same text as Python's json.dumps of the same list.
    const std::string identity = "[[" + list + "], " + json_quoted(ort.version()) + ", " + json_quoted(machine_name()) +
                                 ", " + json_quoted(processor_features()) + "]";
    Sha256 digest;
    digest.add(identity.data(), identity.size());
    const std::string folder = root + "/" + digest.hex().substr(0, 32), graph = folder + "/" + facts::CACHE_GRAPH;
    try {
        remove_abandoned(root);
        if (is_as_sealed(folder)) return graph;
        fs::create_directories(root);
        if (static_cast<int64_t>(fs::space(root).available) < facts::ROOM * size) {
            log_message(EDITAR_LOG_INFO, root + " has no room for prepacked weights; continuing without them");
            return "";
        }
        log_message(EDITAR_LOG_INFO,
                    "prepacking the weights of " + bundle.part_path(part) + " for this machine, once (" + folder + ")");
        Making making(folder);
        const OrtApi& api = ort.api();
        SessionOptionsPtr options = backend.make_options();
        const std::string made = making.partial() + "/" + facts::CACHE_GRAPH;
        ort.check(api.SetOptimizedModelFilePath(options.get(), ort_path(made).c_str()), part);
        const std::string data = std::string(facts::CACHE_GRAPH) + ".data";
        const std::pair<const char*, const char*> entries[] = {
            {"session.optimized_model_external_initializers_file_name", data.c_str()},
            {"session.optimized_model_external_initializers_min_size_in_bytes", "1024"},
            {"session.save_external_prepacked_constant_initializers", "1"},
        };
        for (const auto& [name, value] : entries)
            ort.check(api.AddSessionConfigEntry(options.get(), name, value), part);
        backend.open(bundle.part_path(part), std::move(options));
        for (const ExternalData& each : read_graph(made).external)
            if (each.stop > fs::file_size(making.partial() + "/" + each.location))
                throw backend_error(each.location + " is truncated");
        making.finish();
    } catch (const std::exception& e) {  // a full disk is ONNX Runtime's own error
        log_message(EDITAR_LOG_INFO,
                    "prepacked weights cannot be stored in " + root + " (" + e.what() + "); continuing without them");
        return "";
    }
    return graph;
}

#endif

}  // namespace

std::string prepacked(OrtBackend& backend, const std::string& root, const std::string& part) {
    return prepacked_on_disk(backend, root, part);
}

void forget_prepacked(const std::string& graph) {
    const fs::path folder = fs::path(graph).parent_path();
    log_message(EDITAR_LOG_INFO,
                "the prepacked weights in " + folder.string() + " cannot be opened; continuing without them");
    std::error_code ignored;
    fs::remove_all(folder, ignored);
}

}  // namespace editar
