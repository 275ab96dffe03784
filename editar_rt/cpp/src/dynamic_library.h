// Libraries that are opened at run time. A linked ONNX Runtime would bind this library to one release: its symbols are
// versioned by release.
#pragma once

#include <string>
#include <vector>

namespace editar {

// Open the first of several libraries, and never close it. Throws EDITAR_BACKEND_FAILED with the reasons of all.
void* open_library(const std::vector<std::string>& candidates, const std::string& what, const std::string& advice);
// Whether a path leads to a library that is open, by whatever name it was opened.
bool is_library_at(void* library, const std::string& path);
// A function of a library; null if it has none of that name.
void* library_function(void* library, const char* name);
// The folder of the library that this code is in, with a slash at its end; "" if the system does not say.
std::string own_folder();

}  // namespace editar
