"""Answers of the reference implementation and the weights they belong to; see README.md."""
