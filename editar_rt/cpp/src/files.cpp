#include "files.h"

#include <cerrno>
#include <cstdio>
#include <memory>
#include <random>
#include <system_error>

#include "sha256.h"

#ifdef _WIN32
#ifndef NOMINMAX
#define NOMINMAX
#endif
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>
#else
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#endif

namespace editar {

namespace fs = std::filesystem;

namespace {

[[noreturn]] void fail_by_errno(int error) {
    throw std::system_error(error, std::generic_category());
}

struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

File open_file(const std::string& path, [[maybe_unused]] const wchar_t* wide_mode, [[maybe_unused]] const char* mode) {
#ifdef _WIN32
    File file(_wfopen(as_path(path).c_str(), wide_mode));
#else
    File file(std::fopen(path.c_str(), mode));
#endif
    if (!file) fail_by_errno(errno);
    return file;
}

void write_content(File file, std::string_view content) {
    const bool written = std::fwrite(content.data(), 1, content.size(), file.get()) == content.size();
    if (!written || std::fflush(file.get()) != 0) fail_by_errno(errno ? errno : EIO);
}

// A pipe whose reader has left is an error while this lives, and does not end the program by a signal.
class BrokenPipesFail {
public:
#ifndef _WIN32
    BrokenPipesFail() {
        sigemptyset(&pipe_);
        sigaddset(&pipe_, SIGPIPE);
        was_pending_ = is_pending();
        pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
    }
    ~BrokenPipesFail() {
        int taken = 0;
        if (!was_pending_ && is_pending()) sigwait(&pipe_, &taken);
        pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    }
    BrokenPipesFail(const BrokenPipesFail&) = delete;
    BrokenPipesFail& operator=(const BrokenPipesFail&) = delete;

private:
    static bool is_pending() {
        sigset_t pending;
        return sigpending(&pending) == 0 && sigismember(&pending, SIGPIPE) == 1;
    }
    sigset_t pipe_, before_;
    bool was_pending_ = false;
#else
    BrokenPipesFail() {}
#endif
};

// A name beside a file's, not longer than names may be.
fs::path partial_name(std::string name) {
    static constexpr char digits[] = "0123456789abcdef";
    constexpr size_t kept = 40;  // bytes
    if (name.size() > kept) {
        size_t end = kept;
        while (end > 0 && (static_cast<uint8_t>(name[end]) & 0xC0) == 0x80) --end;
        name.resize(end);
    }
    name += ".partial-";
    std::random_device random;
    for (int i = 0; i < 12; ++i) name.push_back(digits[random() & 15]);
    return as_path(name);
}

#ifdef _WIN32
class Handle {
public:
    explicit Handle(const std::string& path, bool folders_too = false)
        : handle_(CreateFileW(as_path(path).c_str(), GENERIC_READ,
                              FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, nullptr, OPEN_EXISTING,
                              folders_too ? FILE_FLAG_BACKUP_SEMANTICS : FILE_ATTRIBUTE_NORMAL, nullptr)) {}
    ~Handle() {
        if (good()) CloseHandle(handle_);
    }
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    bool good() const { return handle_ != INVALID_HANDLE_VALUE; }
    HANDLE get() const { return handle_; }

private:
    HANDLE handle_;
};

[[noreturn]] void fail_by_windows() {
    throw std::system_error(static_cast<int>(GetLastError()), std::system_category());
}
#endif

}  // namespace

fs::path as_path(const std::string& utf8) {
    return fs::u8path(utf8);
}

std::string as_utf8(const fs::path& path) {
    return path.u8string();
}

bool FileIdentity::operator==(const FileIdentity& other) const {
    return device == other.device && inode == other.inode && size == other.size && modified == other.modified;
}

#ifdef _WIN32

FileIdentity FileIdentity::of(const std::string& path) {
    const Handle file(path);
    BY_HANDLE_FILE_INFORMATION info;
    if (!file.good() || !GetFileInformationByHandle(file.get(), &info)) fail_by_windows();
    if (GetFileType(file.get()) != FILE_TYPE_DISK) fail_by_errno(EINVAL);
    const auto wide = [](DWORD high, DWORD low) { return static_cast<uint64_t>(high) << 32 | low; };
    return {info.dwVolumeSerialNumber, wide(info.nFileIndexHigh, info.nFileIndexLow),
            static_cast<int64_t>(wide(info.nFileSizeHigh, info.nFileSizeLow)),
            static_cast<int64_t>(wide(info.ftLastWriteTime.dwHighDateTime, info.ftLastWriteTime.dwLowDateTime))};
}

std::optional<std::string> resolved(const std::string& path) {
    const Handle file(path, true);
    if (!file.good()) {
        std::error_code error;
        const fs::path given = as_path(path);
        if (fs::is_symlink(given, error) || !given.has_parent_path() || given.parent_path() == given) return {};
        const auto parent = resolved(as_utf8(given.parent_path()));
        return parent ? std::optional(*parent + "\\" + as_utf8(given.filename())) : std::nullopt;
    }
    std::wstring name(32768, L'\0');
    const DWORD size = GetFinalPathNameByHandleW(file.get(), name.data(), static_cast<DWORD>(name.size()), 0);
    if (size == 0 || size >= name.size()) return {};
    name.resize(size);
    return as_utf8(fs::path(name));
}

MappedFile::MappedFile(const std::string& path) {
    const Handle file(path);
    LARGE_INTEGER size;
    if (!file.good() || !GetFileSizeEx(file.get(), &size)) fail_by_windows();
    size_ = static_cast<size_t>(size.QuadPart);
    if (size_ == 0) return;
    HANDLE mapping = CreateFileMappingW(file.get(), nullptr, PAGE_READONLY, 0, 0, nullptr);
    if (!mapping) fail_by_windows();
    data_ = MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0);
    CloseHandle(mapping);
    if (!data_) fail_by_windows();
}

MappedFile::~MappedFile() {
    if (data_) UnmapViewOfFile(data_);
}

#else

FileIdentity FileIdentity::of(const std::string& path) {
    struct stat status;
    if (stat(path.c_str(), &status) != 0) fail_by_errno(errno);
    if (!S_ISREG(status.st_mode)) fail_by_errno(S_ISDIR(status.st_mode) ? EISDIR : EINVAL);
#ifdef __APPLE__
    const auto& modified = status.st_mtimespec;
#else
    const auto& modified = status.st_mtim;
#endif
    return {static_cast<uint64_t>(status.st_dev), static_cast<uint64_t>(status.st_ino),
            static_cast<int64_t>(status.st_size),
            static_cast<int64_t>(modified.tv_sec) * 1000000000 + static_cast<int64_t>(modified.tv_nsec)};
}

std::optional<std::string> resolved(const std::string& path) {
    if (char* real = realpath(path.c_str(), nullptr)) {
        std::string found(real);
        std::free(real);
        return found;
    }
    std::error_code error;
    const fs::path given(path);
    if (errno != ENOENT || fs::is_symlink(given, error)) return {};
    const fs::path parent = given.has_parent_path() ? given.parent_path() : fs::path(".");
    if (parent == given) return {};
    const auto home = resolved(parent.string());
    return home ? std::optional(*home + "/" + given.filename().string()) : std::nullopt;
}

MappedFile::MappedFile(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) fail_by_errno(errno);
    struct stat status;
    int error = fstat(file, &status) != 0 ? errno : 0;
    if (error == 0 && status.st_size > 0) {
        size_ = static_cast<size_t>(status.st_size);
        data_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
        if (data_ == MAP_FAILED) {
            error = errno;
            data_ = nullptr;
        }
    }
    close(file);
    if (error != 0) fail_by_errno(error);
}

MappedFile::~MappedFile() {
    if (data_) munmap(data_, size_);
}

#endif

std::string read_file(const std::string& path, size_t most) {
    const File file = open_file(path, L"rb", "rb");
    std::string content;
    constexpr size_t block = 1 << 20;
    while (content.size() < most) {
        const size_t before = content.size(), wanted = most - before < block ? most - before : block;
        content.resize(before + wanted);
        const size_t got = std::fread(&content[before], 1, wanted, file.get());
        content.resize(before + got);
        if (got < wanted) break;
    }
    if (std::ferror(file.get())) fail_by_errno(errno ? errno : EIO);
    return content;
}

std::string file_sha256(const std::string& path) {
    const File file = open_file(path, L"rb", "rb");
    Sha256 digest;
    std::string block(1 << 20, '\0');
    while (const size_t got = std::fread(&block[0], 1, block.size(), file.get())) digest.add(block.data(), got);
    if (std::ferror(file.get())) fail_by_errno(errno ? errno : EIO);
    return digest.hex();
}

void place_file(const std::string& path, std::string_view content) {
    std::error_code error;
    const fs::path given = as_path(path);
    const fs::file_status status = fs::status(given, error);
    if (fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status)) {
        const BrokenPipesFail without_signal;
        write_content(open_file(path, L"wb", "wb"), content);  // a device or FIFO is not replaced
        return;
    }
    // A link stays, and what it leads to is replaced.
    const fs::path target = fs::is_symlink(given, error) ? fs::weakly_canonical(given) : given;
    const fs::path partial = target.parent_path() / partial_name(as_utf8(target.filename()));
    try {
        write_content(open_file(as_utf8(partial), L"wbx", "wbx"), content);
        if (fs::exists(status)) fs::permissions(partial, status.permissions(), error);
        fs::rename(partial, target);
    } catch (...) {
        fs::remove(partial, error);
        throw;
    }
}

}  // namespace editar
