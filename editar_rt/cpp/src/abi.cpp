// The C ABI.
#include "editar/editar.h"

extern "C" {

const char* editar_version(void) {
    return "0.1.0";
}
}
