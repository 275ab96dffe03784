"""Writes `exact.txt`: bits of `generation.exact` and `generation.noise`, for every runtime that computes them anew.

Each line is a function, its argument and its value, as the 16 hexadecimal digits of a float64's bits. The argument of
`gumbel` is a random word.

    python -m tests.golden.make_exact
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from editar_rt.generation import exact, noise

FILE = Path(__file__).with_name("exact.txt")
EDGES = {
    "exp": [0.0, -0.0, -5e-324, -1e-300, -(2.0**-54), -math.log(2), -700.0, math.nextafter(-700.0, -701.0), -math.inf],
    "log": [2.0**-1022, 2.0**-53, 1 - 2.0**-53, 1.0, 1 + 2.0**-52, math.sqrt(0.5), math.sqrt(2), math.e, 37.0],
}


def arguments(function: str) -> list[float]:
    """Edges, and numbers of every size that the sampler can meet."""
    steps = np.arange(1, 201)
    half = (steps * 0.6180339887498949) % 1.0  # spread evenly, and the same everywhere
    if function == "exp":
        return [*EDGES["exp"], *(-700 * half**3).tolist(), *((steps - 0.5) * -math.log(2)).tolist()]
    return [*EDGES["log"], *half.tolist(), *(37 * half**2).tolist(), *(1 - 2.0 ** -(steps * 0.25)).tolist()]


def lines() -> list[str]:
    made = []
    for name in ("exp", "log"):
        given = np.asarray(arguments(name), np.float64)
        given = given[given > 0] if name == "log" else given
        values = getattr(exact, name)(given)
        made += [f"{name} {x:016x} {y:016x}" for x, y in zip(bits(given), bits(values))]
    given = np.asarray([0, 1, 4095, 4096, 2**63, 2**64 - 1], np.uint64)
    given = np.concatenate([given, noise.words(7, 0, 3, 200)])
    return made + [f"gumbel {x:016x} {y:016x}" for x, y in zip(given.tolist(), bits(noise.gumbel(given)))]


def bits(values: np.ndarray) -> list[int]:
    found: list[int] = values.view(np.uint64).tolist()
    return found


if __name__ == "__main__":
    FILE.write_text("\n".join(lines()) + "\n", encoding="ascii")
