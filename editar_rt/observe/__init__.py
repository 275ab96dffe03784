"""Observers of the decoding loop, and the files that they write: traces, previews, animations, contact sheets."""
