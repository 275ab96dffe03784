// In place of CUDA's header, for tests without CUDA: the one type that TensorRT's functions take.
#pragma once

struct CUstream_st;
using cudaStream_t = CUstream_st*;
