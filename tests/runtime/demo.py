"""The demo bundle as tests use it: one of its samples, an instruction for it, and their sizes."""

from __future__ import annotations

from pathlib import Path

BUNDLE = Path(__file__).parents[2] / "engines" / "demo"
SAMPLES = BUNDLE / "samples"
PICTURE, WORDS = SAMPLES / "recolour-0.png", "make the ball green"
SIDE, GRID = 128, 8  # in pixels, and in tokens
COUNT, CELL = GRID * GRID, SIDE // GRID
BALL = (68, 16, 56, 56)  # a box around the ball of PICTURE
