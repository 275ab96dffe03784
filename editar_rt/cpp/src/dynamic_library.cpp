#include "dynamic_library.h"

#include "error.h"

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace editar {

namespace {

#if defined(_WIN32)
std::wstring wide(const std::string& text) {
    int length = MultiByteToWideChar(CP_UTF8, 0, text.c_str(), -1, nullptr, 0);
    std::wstring result(length > 0 ? length - 1 : 0, L'\0');
    if (length > 1) MultiByteToWideChar(CP_UTF8, 0, text.c_str(), -1, &result[0], length);
    return result;
}

void* open_one(const std::string& path, std::string& reason) {
    // By full path: System32 holds an old onnxruntime.dll, which a bare name would find first.
    std::wstring name = wide(path);
    wchar_t full[32768];
    DWORD length = GetFullPathNameW(name.c_str(), 32768, full, nullptr);
    HMODULE library =
        length > 0 && length < 32768 ? LoadLibraryExW(full, nullptr, LOAD_WITH_ALTERED_SEARCH_PATH) : nullptr;
    if (library == nullptr) reason = path + ": error " + std::to_string(GetLastError());
    return reinterpret_cast<void*>(library);
}
#else
void* open_one(const std::string& path, std::string& reason) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        const char* said = dlerror();
        reason = said == nullptr ? path : said;
    }
    return library;
}
#endif

// Keep the code that calls this in memory, whoever closes its library: what is opened below is never closed, and calls
// back, as ONNX Runtime does for its messages.
void stay_loaded() {
#if defined(_WIN32)
    HMODULE module = nullptr;
    GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_PIN,
                       reinterpret_cast<LPCWSTR>(&own_folder), &module);
#else
    Dl_info info;  // the program itself, if this is linked statically
    if (dladdr(reinterpret_cast<void*>(&own_folder), &info) != 0 && info.dli_fname != nullptr)
        dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
#endif
}

}  // namespace

void* open_library(const std::vector<std::string>& candidates, const std::string& what, const std::string& advice) {
    std::string reasons;
    for (const std::string& path : candidates) {
        std::string reason;
        if (void* library = open_one(path, reason)) {
            stay_loaded();
            return library;
        }
        reasons += (reasons.empty() ? "" : "; ") + reason;
    }
    throw backend_error(what + " cannot be opened (" + reasons + "); " + advice);
}

bool is_library_at(void* library, const std::string& path) {
#if defined(_WIN32)
    return reinterpret_cast<void*>(GetModuleHandleW(wide(path).c_str())) == library;
#else
    void* found = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    if (found != nullptr) dlclose(found);  // counted once more by dlopen
    return found == library;
#endif
}

void* library_function(void* library, const char* name) {
#if defined(_WIN32)
    return reinterpret_cast<void*>(GetProcAddress(reinterpret_cast<HMODULE>(library), name));
#else
    return dlsym(library, name);
#endif
}

std::string own_folder() {
#if defined(_WIN32)
    HMODULE module = nullptr;
    wchar_t path[32768];
    if (!GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT,
                            reinterpret_cast<LPCWSTR>(&own_folder), &module))
        return "";
    DWORD length = GetModuleFileNameW(module, path, 32768);
    int bytes = WideCharToMultiByte(CP_UTF8, 0, path, static_cast<int>(length), nullptr, 0, nullptr, nullptr);
    std::string file(bytes, '\0');
    if (bytes > 0) WideCharToMultiByte(CP_UTF8, 0, path, static_cast<int>(length), &file[0], bytes, nullptr, nullptr);
#else
    Dl_info info;
    if (dladdr(reinterpret_cast<void*>(&own_folder), &info) == 0 || info.dli_fname == nullptr) return "";
    std::string file = info.dli_fname;
#endif
    size_t slash = file.find_last_of("/\\");
    return slash == std::string::npos ? "" : file.substr(0, slash + 1);
}

}  // namespace editar
