// In place of the header of TensorRT for RTX, whose classes have the same names.
#pragma once

#include "NvInferVersion.h"  // before the other header of this name
//
#include "../NvInfer.h"
