"""A bundle: the folder of graphs, its manifest, and the rules for both."""
