// Engines that a plug-in library runs, so that this library needs nothing of NVIDIA's: see editar_plugin.h.
#pragma once

#include <memory>
#include <string>

#include "backend.h"
#include "bundle.h"

namespace editar {

// The backend of a bundle of fixed shapes. `path`: of the plug-in; "" tries beside this library, and the system's.
// Throws EDITAR_BACKEND_FAILED where the plug-in is missing or does not run here.
std::unique_ptr<Backend> open_plugin(const Bundle& bundle, const std::string& path);

}  // namespace editar
