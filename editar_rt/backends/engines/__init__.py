"""Engines of fixed shapes: TensorRT on a GPU, or its emulation."""
