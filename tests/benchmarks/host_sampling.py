"""What sampling costs the host, where it samples itself and where a sampling head on the device does.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.host_sampling

For a guided picture's two rows of random logits, by positions of a pass and kind of noise: milliseconds to sample every
position, and to make the inputs with which a head samples them. Takes turns; medians. Not a test: pytest does not
collect it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import date

import click
import numpy as np

from editar_rt.backends.sampler import SamplerInputs
from editar_rt.generation.noise import NOISES
from editar_rt.generation.sampling import Draw, Sampling
from editar_rt.machine import description

ROWS = 2
MOST = 1024  # the largest top-k of EditAR's sampling head
SPREAD = 3.0  # deviation of the logits


def milliseconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return 1e3 * (time.process_time() - begun)


@click.command()
@click.option("--vocabulary", type=click.IntRange(MOST), default=16384, show_default=True)
@click.option("--size", "sizes", type=click.IntRange(1), multiple=True, default=(1, 8), show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=50, show_default=True)
def main(vocabulary: int, sizes: tuple[int, ...], repeats: int) -> None:
    """Print CPU milliseconds by size, noise and way."""
    found: list[dict[str, object]] = []
    rng = np.random.default_rng(0)
    for size in sizes:
        logits = (SPREAD * rng.standard_normal((ROWS, size, vocabulary))).astype(np.float32)
        for noise in NOISES:
            settings = (Sampling(seed=1, noise=noise),)
            places = np.arange(ROWS, dtype=np.int32)
            draw = Draw(places[:1], places[1:], settings, np.full((1, size), settings[0].cfg_scale), (1,), (5,))
            timed = [
                (
                    milliseconds(lambda draw=draw, logits=logits: draw.on_host(logits)),
                    milliseconds(lambda draw=draw: SamplerInputs.of(draw, ROWS, MOST, vocabulary)),
                )
                for _ in range(repeats)
            ]
            host, inputs = (round(float(np.median(each)), 3) for each in zip(*timed))
            found.append({"positions": size, "noise": noise, "host_ms": host, "head_inputs_ms": inputs})
    document = {
        "date": date.today().isoformat(),
        "machine": description(),
        "vocabulary": vocabulary,
        "repeats": repeats,
        "found": found,
    }
    click.echo(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
