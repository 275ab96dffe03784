"""How far precisions move the logits of the demo: python -m tests.benchmarks.precision_errors BUNDLE…

Each BUNDLE is `python -m export convert engines/demo --dialect native --precision … -o BUNDLE`. Six edits of the sample
images by the fp32 bundle are scored by every bundle, on ONNX Runtime. Printed are the root mean square error of the
logits as a share of their deviation, and how often the most likely token is another. With `--bf16`, also those of the
PyTorch model in bfloat16, because no CPU runs the graph in it. Not a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch

import editar_rt
from editar_rt.backends import host_device
from export.checkpoint_reader import build_transformer, read_transformer

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
@click.argument("bundles", type=click.Path(path_type=Path), nargs=-1)
@click.option("--bf16", is_flag=True, help="Also the PyTorch model in bfloat16.")
def main(bundles: tuple[Path, ...], bf16: bool) -> None:
    """Compare every bundle with fp32."""
    full = editar_rt.load(DEMO, device="cpu", threads=1)
    pictures = [path for name in EDITS if (path := DEMO / f"samples/{name}.png").exists()]
    results = [full.edit(path, EDITS[path.stem], seed=1) for path in pictures]
    tokens = np.stack([np.asarray(result.tokens, np.int32).reshape(-1) for result in results])
    states = full.encode_text([EDITS[path.stem] for path in pictures])
    expected = full.score(states, tokens, tokens)
    for folder in bundles:
        device = host_device(editar_rt.Bundle.open(folder).manifest)
        report(str(folder), expected, editar_rt.load(folder, device=device, threads=1).score(states, tokens, tokens))
    if bf16:
        model = build_transformer(read_transformer(DEMO)).bfloat16()
        with torch.no_grad():
            text, given = torch.from_numpy(states).bfloat16(), torch.from_numpy(tokens).long()
            found = [logits.float().numpy() for logits in model.score(text, given, given)]
        report("PyTorch in bfloat16", expected, found)


def report(name: str, expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> None:
    errors = [np.sqrt(np.square(b - a).mean()) / a.std() for a, b in zip(expected, found)]
    other = [(a.argmax(-1) != b.argmax(-1)).mean() for a, b in zip(expected, found)]
    click.echo(f"{name}: error {max(errors):.1e}, another most likely token {max(other):.1%}")


if __name__ == "__main__":
    main()
