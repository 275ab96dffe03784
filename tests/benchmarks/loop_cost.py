"""The loop's own time a step: everything but ONNX Runtime's run of the decoder.

OMP_NUM_THREADS=1 python -m tests.benchmarks.loop_cost engines/demo
"""

from __future__ import annotations

import json
import time
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np

import editar_rt
from editar_rt.machine import description
from tests.benchmarks.batching import ready


class Timed:
    """A session of ONNX Runtime whose runs are counted.

    Attributes:
        seconds: CPU seconds of this thread, of all runs so far.
    """

    def __init__(self, session: Any) -> None:
        self._session, self.seconds = session, 0.0

    def run_with_iobinding(self, *arguments: Any) -> None:
        begun = time.thread_time()
        self._session.run_with_iobinding(*arguments)
        self.seconds += time.thread_time() - begun

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--pictures", type=click.IntRange(1), default=1, show_default=True)
@click.option("--steps", type=click.IntRange(2), default=48, show_default=True)
def main(bundle: Path, pictures: int, steps: int) -> None:
    """Print the loop's microseconds a step, and their share of the whole step; medians over steps."""
    editor = editar_rt.load(bundle, "cpu", 1)
    scheduler, sequences = ready(editor, pictures, steps)
    decoder: Any = scheduler.decoder
    session = decoder._session = Timed(decoder._session)
    whole, own = [], []
    for _ in range(steps):
        before, begun = session.seconds, time.thread_time()
        scheduler.step(sequences)
        whole.append(time.thread_time() - begun)
        own.append(whole[-1] - (session.seconds - before))
    document = {
        "date": date.today().isoformat(),
        "machine": description(),
        "backend": editor.backend.name,
        "bundle": bundle.name,
        "layers": editor.model.layers,
        "vocabulary": editor.model.vocab_size,
        "pictures": pictures,
        "loop_us": 1e6 * float(np.median(own)),
        "step_us": 1e6 * float(np.median(whole)),
        "percent": 100 * float(np.median(own) / np.median(whole)),
    }
    click.echo(json.dumps(document))


if __name__ == "__main__":
    main()
