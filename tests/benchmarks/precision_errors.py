"""How far precisions move the logits of the demo: python -m tests.benchmarks.precision_errors BUNDLE…

Each BUNDLE is `python -m export convert engines/demo --dialect native --precision … -o BUNDLE`. Six edits of the sample
images by the fp32 bundle are scored by every bundle, on ONNX Runtime. Printed are the root mean square error of the
logits as a share of their deviation, and how often the most likely token is another. Not a test.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

import editar_rt
from editar_rt.backends import host_device

DEMO = Path(__file__).parents[2] / "engines/demo"
EDITS = {
    "add-0": "on the left, add a cyan cube",
    "background-0": "make the background blue",
    "recolour-0": "make the ball green",
    "remove-0": "remove the cube",
    "replace-0": "replace the ball with a cone",
    "retexture-0": "make it striped",
}


@click.command()
@click.argument("bundles", type=click.Path(path_type=Path), nargs=-1, required=True)
def main(bundles: tuple[Path, ...]) -> None:
    """Compare every bundle with fp32."""
    full = editar_rt.load(DEMO, device="cpu", threads=1)
    pictures = [path for name in EDITS if (path := DEMO / f"samples/{name}.png").exists()]
    results = [full.edit(path, EDITS[path.stem], seed=1) for path in pictures]
    tokens = np.stack([np.asarray(result.tokens, np.int32).reshape(-1) for result in results])
    states = full.encode_text([EDITS[path.stem] for path in pictures])
    expected = full.score(states, tokens, tokens)
    for folder in bundles:
        device = host_device(editar_rt.Bundle.open(folder).manifest)
        found = editar_rt.load(folder, device=device, threads=1).score(states, tokens, tokens)
        errors = [np.sqrt(np.square(b - a).mean()) / a.std() for a, b in zip(expected, found)]
        other = [(a.argmax(-1) != b.argmax(-1)).mean() for a, b in zip(expected, found)]
        click.echo(f"{folder}: error {max(errors):.1e}, another most likely token {max(other):.1%}")


if __name__ == "__main__":
    main()
