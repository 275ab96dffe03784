"""Measurements of a bundle on this machine: speed, memory, and whether it answers as where it was exported."""
