"""Writes `canny.npz`, what kornia's Canny makes of photographs and scenes; needs kornia, which nothing else here does.

pip install kornia==0.7.3
python -m tests.golden.make_canny
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from kornia.filters import canny
from skimage import data

from training.data.scenes import random_scene, render

SIDE = 128


def main() -> None:
    photographs = [data.astronaut()[40:, 160:], data.chelsea()[80:, 120:], data.coffee()[100:, 180:]]
    scenes = [render(random_scene(np.random.default_rng(seed), 3)) for seed in range(8)]
    pictures = np.stack([picture[:SIDE, :SIDE] for picture in (*photographs, *scenes)])
    values = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    edges = np.concatenate([canny(one[None], 0.1, 0.2)[1][:, 0].numpy() > 0.5 for one in values])
    np.savez_compressed(Path(__file__).with_name("canny.npz"), pictures=pictures, edges=np.packbits(edges, axis=-1))


if __name__ == "__main__":
    main()
