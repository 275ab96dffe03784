"""Recipes: what a run learns. Dataclasses, the TOML files that fill them, and how a single field is set."""
