// The parity gate: engines are used only if they pass the bundle's self-test. As editar_rt/measure/gate.py.
#pragma once

#include <memory>
#include <vector>

#include "engines/engines.h"
#include "selftest.h"

namespace editar {

// Compare the engines of a folder that were not tried on this machine yet, and keep the result beside them.
// Throws EDITAR_BACKEND_FAILED where an engine's outputs are wrong: it is refused from now on.
void try_engines(const std::shared_ptr<Engines>& engines);

}  // namespace editar
