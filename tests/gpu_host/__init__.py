"""Carries the project to a GPU host without a network and measures it there; `pack.sh` and `run.sh` are the commands."""
