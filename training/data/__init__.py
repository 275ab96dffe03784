"""What the models learn from: the procedural world and its instructions, public data sets, and their mixtures."""
