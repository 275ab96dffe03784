"""The PyTorch modules, with the parameter names of the official checkpoints."""
