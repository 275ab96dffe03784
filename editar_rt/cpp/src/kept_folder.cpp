#include "kept_folder.h"

#if !defined(_WIN32)

#include <fcntl.h>
#include <pwd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <random>
#include <system_error>
#include <utility>
#include <vector>

#include "facts.h"
#include "files.h"
#include "json.h"
#include "sha256.h"

namespace editar::kept_folder {

namespace fs = std::filesystem;

namespace {

using facts::kept_folder::LOCK;
using facts::kept_folder::PARTIAL;
using facts::kept_folder::SEAL;
constexpr int SAMPLED = facts::kept_folder::SAMPLED, PAGE = facts::kept_folder::PAGE;
constexpr size_t MOST_SEAL = 1 << 20;  // bytes

[[noreturn]] void fail(const std::string& path, int error = errno) {
    throw std::system_error(error, std::generic_category(), path);
}

struct stat status_of(const std::string& path) {
    struct stat status;
    if (stat(path.c_str(), &status) != 0) fail(path);
    return status;
}

int64_t nanoseconds(const timespec& time) {
    return static_cast<int64_t>(time.tv_sec) * 1000000000 + time.tv_nsec;
}

using Times = std::pair<int64_t, int64_t>;

// Times that change when a file is written or replaced; the second cannot be set by programs.
Times times_of(const std::string& path) {
    const struct stat status = status_of(path);
#if defined(__APPLE__)
    return {nanoseconds(status.st_mtimespec), nanoseconds(status.st_ctimespec)};
#else
    return {nanoseconds(status.st_mtim), nanoseconds(status.st_ctim)};
#endif
}

int64_t size_of(const std::string& path) {
    return status_of(path).st_size;
}

// SHA-256 of pages spread over a file, including the first and the last.
std::string sample_of(const std::string& path) {
    const int64_t last = std::max<int64_t>(size_of(path) - PAGE, 0);
    std::ifstream file(path, std::ios::binary);
    if (!file) fail(path, EIO);
    Sha256 digest;
    char page[PAGE];
    for (int64_t n = 0; n < SAMPLED; ++n) {
        file.clear();
        file.seekg(last * n / (SAMPLED - 1));
        file.read(page, PAGE);
        if (file.bad()) fail(path, EIO);
        digest.add(page, static_cast<size_t>(file.gcount()));
    }
    return digest.hex();
}

// Wait until a file or folder is on the disk.
void sync(const std::string& path) {
    const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) fail(path);
    const int error = fsync(descriptor) != 0 ? errno : 0;
    close(descriptor);
    if (error != 0) fail(path, error);
}

struct Sealed {
    std::string name;
    int64_t bytes;
    std::string sha256, sample;
    Times times;
};

// The text of Python's json.dumps(seal, indent=1).
void write_seal(const std::string& folder, const std::vector<Sealed>& files) {
    std::string text = "{";
    for (const Sealed& file : files)
        text += std::string(text.size() > 1 ? "," : "") + "\n " + json_quoted(file.name) +
                ": {\n  \"bytes\": " + std::to_string(file.bytes) + ",\n  \"sha256\": " + json_quoted(file.sha256) +
                ",\n  \"sample\": " + json_quoted(file.sample) + ",\n  \"times\": [\n   " +
                std::to_string(file.times.first) + ",\n   " + std::to_string(file.times.second) + "\n  ]\n }";
    place_file(folder + "/" + SEAL, text + "\n}");
}

void seal(const std::string& folder) {
    std::vector<Sealed> files;
    for (const auto& entry : fs::directory_iterator(folder)) {
        const std::string name = entry.path().filename().string(), path = entry.path().string();
        if (name == LOCK || name == SEAL) continue;
        sync(path);
        files.push_back({name, size_of(path), file_sha256(path), sample_of(path), times_of(path)});
    }
    std::sort(files.begin(), files.end(), [](const Sealed& a, const Sealed& b) { return a.name < b.name; });
    write_seal(folder, files);
    sync(folder + "/" + SEAL);
    sync(folder);
}

// What a seal says about a file. Throws where it says it in another form.
Sealed sealed_of(const std::string& name, const Json& given) {
    const auto member = [&given](const char* key, Json::Kind kind) -> const Json& {
        const Json* found = given.find(key);
        if (found == nullptr || found->kind != kind) throw std::system_error(EINVAL, std::generic_category());
        return *found;
    };
    const auto& times = member("times", Json::Kind::list).items;
    if (times.size() != 2 || !times[0].is_integer() || !times[1].is_integer()) fail(name, EINVAL);
    return {name,
            member("bytes", Json::Kind::number).integer(),
            member("sha256", Json::Kind::string).text,
            member("sample", Json::Kind::string).text,
            {times[0].integer(), times[1].integer()}};
}

std::string home_folder() {
    if (const char* home = std::getenv("HOME")) return home;
    passwd entry, *found = nullptr;
    std::vector<char> texts(1 << 14);
    return getpwuid_r(getuid(), &entry, texts.data(), texts.size(), &found) == 0 && found ? found->pw_dir : "";
}

bool is_abandoned(const std::string& partial) {
    const std::string lock = partial + "/" + LOCK;
    const int file = open(lock.c_str(), O_WRONLY | O_CLOEXEC);
    if (file >= 0) {
        const bool taken = flock(file, LOCK_EX | LOCK_NB) == 0;
        close(file);
        return taken;
    }
    if (errno != ENOENT) return false;
    int64_t newest = times_of(partial).first;
    for (const auto& entry : fs::directory_iterator(partial))
        newest = std::max(newest, times_of(entry.path().string()).first);
    timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return nanoseconds(now) - newest > int64_t{facts::kept_folder::ABANDONED_SECONDS} * 1000000000;
}

}  // namespace

std::string cache_folder(const char* named) {
    const auto given = [](const char* text) { return text != nullptr && *text != '\0'; };
    const char* folder = named != nullptr ? named : std::getenv(facts::kept_folder::VARIABLE);
    const char* caches = std::getenv("XDG_CACHE_HOME");
    if (named != nullptr && !given(named)) return "";
    if (given(folder) && std::string(folder) == facts::kept_folder::OFF) return "";
    std::error_code failed;
    fs::path path;
    if (given(folder)) {
        path = folder;
    } else if (given(caches)) {
        path = fs::path(caches) / facts::kept_folder::NAME;
    } else {
        const std::string home = home_folder();
        if (home.empty()) return "";
        path = fs::path(home) / ".cache" / facts::kept_folder::NAME;
    }
    path = fs::absolute(path, failed);
    return failed ? "" : path.string();
}

bool is_as_sealed(const std::string& folder) {
    try {
        const Json seal = Json::parse(read_file(folder + "/" + SEAL, MOST_SEAL), SEAL);
        bool restamped = false;
        std::vector<Sealed> files;
        for (const auto& [name, given] : seal.members) {
            const std::string path = folder + "/" + name;
            Sealed file = sealed_of(name, given);
            if (size_of(path) != file.bytes || sample_of(path) != file.sample) return false;
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

void remove_abandoned(const std::string& root) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(root, ignored)) {
        if (entry.path().filename().string().find(PARTIAL) == std::string::npos) continue;
        try {
            if (is_abandoned(entry.path().string())) fs::remove_all(entry.path(), ignored);
        } catch (const std::exception&) {  // gone
        }
    }
}

Making::Making(std::string folder) : folder_(std::move(folder)) {
    char name[64];
    std::snprintf(name, sizeof name, "%s%d-%08x", PARTIAL, static_cast<int>(getpid()), std::random_device()());
    partial_ = folder_ + name;
    if (mkdir(partial_.c_str(), 0700) != 0) fail(partial_);
    lock_ = open((partial_ + "/" + LOCK).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (lock_ >= 0) flock(lock_, LOCK_EX | LOCK_NB);  // not every network file system has locks
}

Making::~Making() {
    if (lock_ >= 0) close(lock_);
    std::error_code ignored;
    fs::remove_all(partial_, ignored);
}

void Making::finish() {
    seal(partial_);
    std::error_code failed;
    if (fs::exists(folder_, failed) && !is_as_sealed(folder_)) fs::remove_all(folder_, failed);
    fs::rename(partial_, folder_, failed);
    if (failed && !is_as_sealed(folder_)) throw std::system_error(failed, folder_);
    sync(fs::path(folder_).parent_path().string());
}

}  // namespace editar::kept_folder

#else  // nothing is kept

#include <system_error>

namespace editar::kept_folder {

std::string cache_folder(const char*) {
    return "";
}

bool is_as_sealed(const std::string&) {
    return false;
}

void remove_abandoned(const std::string&) {}

Making::Making(std::string) {
    throw std::system_error(std::make_error_code(std::errc::not_supported));
}

Making::~Making() = default;

void Making::finish() {}

}  // namespace editar::kept_folder

#endif
