"""ONNX Runtime, on a CPU or a CUDA device."""
