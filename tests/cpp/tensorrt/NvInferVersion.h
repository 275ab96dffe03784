// In place of TensorRT's header, for tests without it. With RTX_STAND_IN it is that of TensorRT for RTX.
#pragma once

#if defined(RTX_STAND_IN)
#define TRT_MAJOR_RTX 1
#define TRT_MINOR_RTX 7
#define NV_TENSORRT_MAJOR TRT_MAJOR_RTX
#define NV_TENSORRT_MINOR TRT_MINOR_RTX
#else
#define NV_TENSORRT_MAJOR 11
#define NV_TENSORRT_MINOR 4
#endif
#define NV_TENSORRT_PATCH 0
