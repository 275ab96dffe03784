"""Measurements and checks that are run by hand: on a GPU host, at full size, or for a figure of the docs."""
