#include "machine.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <sstream>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <malloc.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#endif
#if !defined(_WIN32)
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace editar {

namespace {

constexpr int64_t WORTH = 16 << 20;  // file size below which searching its pages is not worthwhile

std::atomic<int64_t> peak_before_sharing{0};  // of all models
std::shared_mutex mappings_change;            // of files of weights, held while they are opened or closed

std::vector<int> allowed_cores() {
    std::vector<int> cores;
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        for (int core = 0; core < CPU_SETSIZE; ++core)
            if (CPU_ISSET(core, &set)) cores.push_back(core);
    }
#endif
    if (cores.empty()) {
        int count = std::max(1U, std::thread::hardware_concurrency());
        for (int core = 0; core < count; ++core) cores.push_back(core);
    }
    return cores;
}

std::string stripped(const std::string& text) {
    size_t first = text.find_first_not_of(" \t\n"), last = text.find_last_not_of(" \t\n");
    return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

// A limit of CPU time in cores; 0 if there is none.
double ratio(const std::string& quota, const std::string& period) {
    char *quota_end = nullptr, *period_end = nullptr;
    long long q = std::strtoll(quota.c_str(), &quota_end, 10), p = std::strtoll(period.c_str(), &period_end, 10);
    if (quota_end == quota.c_str() || period_end == period.c_str() || q <= 0 || p <= 0) return 0;
    return static_cast<double>(q) / static_cast<double>(p);
}

bool is_folder(const std::string& path) {
#if defined(_WIN32)
    (void)path;
    return false;
#else
    struct stat status;
    return stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
#endif
}

// CPU time that cgroups grant this process, in cores; 0 if they do not limit it. The smallest limit of the process's
// groups and their parents applies.
double cpu_quota() {
    const std::string root = "/sys/fs/cgroup";
    double least = 0;
    std::istringstream lines(read_text("/proc/self/cgroup"));
    for (std::string line; std::getline(lines, line);) {
        size_t first = line.find(':'), second = first == std::string::npos ? first : line.find(':', first + 1);
        if (second == std::string::npos) continue;
        std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
        bool version_2 = controllers.empty();
        if (!version_2 && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
        std::string mount = root;
        if (!version_2) mount += is_folder(root + "/cpu") ? "/cpu" : "/" + controllers;
        while (true) {
            std::string group = mount + path;
            double limit = 0;
            if (version_2) {
                std::string text = read_text(group + "/cpu.max");
                size_t space = text.find(' ');
                if (space != std::string::npos) limit = ratio(text.substr(0, space), text.substr(space + 1));
            } else {
                limit = ratio(read_text(group + "/cpu.cfs_quota_us"), read_text(group + "/cpu.cfs_period_us"));
            }
            if (limit > 0 && (least == 0 || limit < least)) least = limit;
            size_t slash = path.rfind('/');
            if (path.empty() || slash == std::string::npos) break;
            path.resize(slash);
        }
    }
    return least;
}

int core_count() {
    int cores = static_cast<int>(allowed_cores().size());
    double quota = cpu_quota();
    return quota > 0 ? std::max(1, std::min(cores, static_cast<int>(quota))) : cores;
}

struct Mapping {
    uint64_t start = 0, size = 0;
    std::string file;
    int64_t resident = 0, share = 0, own = 0;
};

// The process's mappings as reported by the system; none if it does not report them.
void each_mapping(const std::function<void(const Mapping&)>& take) {
    std::ifstream lines("/proc/self/smaps");
    Mapping mapping;
    for (std::string line; std::getline(lines, line);) {
        size_t colon = line.find(':');
        std::string name = line.substr(0, colon);
        if (name.find(' ') != std::string::npos) {  // "begin-end permissions offset device inode file"
            mapping = Mapping();
            char* end = nullptr;
            mapping.start = std::strtoull(line.c_str(), &end, 16);
            mapping.size = std::strtoull(end + 1, &end, 16) - mapping.start;
            std::istringstream words(end);
            std::string word;
            for (int n = 0; n < 4; ++n) words >> word;
            std::getline(words, mapping.file);
            mapping.file = stripped(mapping.file);
        } else if (name == "VmFlags") {  // the last line of each
            take(mapping);
        } else if (colon != std::string::npos) {
            int64_t bytes = std::strtoll(line.c_str() + colon + 1, nullptr, 10) * 1024;
            if (name == "Rss") mapping.resident = bytes;
            if (name == "Pss") mapping.share = bytes;
            if (name == "Anonymous") mapping.own = bytes;
        }
    }
}

}  // namespace

std::string read_text(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    if (file) text << file.rdbuf();
    return text.str();
}

int thread_count() {
    std::set<std::string> siblings;
    for (int core : allowed_cores()) {
        std::string number = std::to_string(core);
        std::string own =
            stripped(read_text("/sys/devices/system/cpu/cpu" + number + "/topology/thread_siblings_list"));
        siblings.insert(own.empty() ? number : own);
    }
    return std::min(static_cast<int>(siblings.size()), core_count());
}

int thread_limit() {
#if defined(_WIN32)
    const int online = static_cast<int>(std::thread::hardware_concurrency());
#else
    const int online = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
#endif
    return std::max(online, core_count());
}

int64_t process_number() {
#if defined(_WIN32)
    return 0;
#else
    return getpid();
#endif
}

bool is_limited() {
#if defined(_WIN32)
    return false;
#else
    return core_count() < sysconf(_SC_NPROCESSORS_ONLN);
#endif
}

std::string machine_name() {
#if defined(__linux__)
    utsname names;
    if (uname(&names) == 0) return names.machine;
#endif
    return "";
}

std::string machine_description() {
#if defined(__linux__)
    const char* system = "Linux";
#elif defined(__APPLE__)
    const char* system = "Darwin";
#else
    const char* system = "Windows";
#endif
    return machine_name() + " " + system + ", " + std::to_string(core_count()) + " cores";
}

std::string processor_features() {
    std::ifstream lines("/proc/cpuinfo");
    for (std::string line; std::getline(lines, line);)
        if (line.rfind("flags", 0) == 0 || line.rfind("Features", 0) == 0) return line;
    return "";
}

int64_t peak_resident_bytes() {
#if defined(_WIN32)
    return 0;
#else
    rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
#if defined(__APPLE__)
    return usage.ru_maxrss;
#else
    return static_cast<int64_t>(usage.ru_maxrss) * 1024;
#endif
#endif
}

void note_sharing() {
    int64_t none = 0;
    peak_before_sharing.compare_exchange_strong(none, peak_resident_bytes());
}

int64_t peak_memory_bytes(int64_t counted_twice) {
    int64_t peak = peak_resident_bytes();
    return std::max(peak - counted_twice, std::min(peak, peak_before_sharing.load()));
}

std::shared_lock<std::shared_mutex> mapping_weights() {
    return std::shared_lock<std::shared_mutex>(mappings_change);
}

void drop_file_pages(const std::vector<std::string>& weights) {
#if defined(__linux__)
    // If a mapping went away after it was listed, its addresses could hold somebody's memory by now.
    const std::unique_lock<std::shared_mutex> alone(mappings_change, std::try_to_lock);
    if (!alone.owns_lock()) return;  // the next call drops them
    std::set<std::string> files;
    int64_t largest = 0;
    for (const std::string& file : weights) {
        char resolved[PATH_MAX];
        struct stat status;
        if (realpath(file.c_str(), resolved) == nullptr || stat(resolved, &status) != 0) continue;
        files.insert(resolved);
        largest = std::max<int64_t>(largest, status.st_size);
    }
    if (largest < WORTH) return;
    each_mapping([&](const Mapping& mapping) {
        if (files.count(mapping.file) != 0 && mapping.own == 0)
            madvise(reinterpret_cast<void*>(mapping.start), mapping.size, MADV_DONTNEED);
    });
#else
    (void)weights;
#endif
}

void trim_heap() {
#if defined(__GLIBC__)
    // In a program with a malloc of its own, the first call sets up glibc's unused heap. Where two threads do that at
    // once, both count as its one user, and glibc aborts when the second of them ends.
    static std::mutex lock;
    const std::lock_guard<std::mutex> held(lock);
    malloc_trim(0);
#endif
}

int64_t bytes_counted_twice(const std::string& memory) {
    int64_t twice = 0;
    each_mapping([&](const Mapping& mapping) {
        if (mapping.file.rfind("/memfd:" + memory, 0) == 0) twice += mapping.resident - mapping.share;
    });
    return twice;
}

}  // namespace editar
