"""From trained weights to what a device runs: ONNX graphs in a bundle."""
