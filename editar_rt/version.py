"""The version, kept apart so that any module can read it."""

__version__ = "0.2.0"
