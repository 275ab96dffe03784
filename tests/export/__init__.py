"""Tests of the `export` package, and of bundles from it end to end."""
