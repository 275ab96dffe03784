"""Carries the project to a GPU host without a network and measures it there, by `pack.sh` and `run.sh`."""
