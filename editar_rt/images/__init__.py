"""Pictures: files and arrays to the pixels that the model reads, and back; masks."""
