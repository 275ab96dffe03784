// Files by paths in UTF-8, on Windows too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace editar {

std::filesystem::path as_path(const std::string& utf8);
std::string as_utf8(const std::filesystem::path& path);

// Tells whether a file was replaced or modified.
struct FileIdentity {
    uint64_t device = 0, inode = 0;
    int64_t size = 0, modified = 0;
    bool operator==(const FileIdentity& other) const;
    // Throws std::system_error where the file cannot be examined, or is not a regular file.
    static FileIdentity of(const std::string& path);
};

// Where a path leads after all links; nothing where a link leads nowhere or in a circle. The last component need not
// exist.
std::optional<std::string> resolved(const std::string& path);

// A whole file, mapped for reading. Throws std::system_error.
class MappedFile {
public:
    explicit MappedFile(const std::string& path);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;
    std::string_view bytes() const { return {static_cast<const char*>(data_), size_}; }

private:
    void* data_ = nullptr;
    size_t size_ = 0;
};

// The first bytes of a file, at most `most`. Throws std::system_error.
std::string read_file(const std::string& path, size_t most);
// SHA-256 of a file, 64 hexadecimal digits. Throws std::system_error.
std::string file_sha256(const std::string& path);
// Write a file beside `path` and rename it into place; nothing is left behind on failure. Throws std::system_error.
void place_file(const std::string& path, std::string_view content);

}  // namespace editar
