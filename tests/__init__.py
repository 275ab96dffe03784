"""Tests, one file a module; shared numbers lie in `golden/`."""
