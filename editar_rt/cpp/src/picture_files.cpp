#include "picture_files.h"
