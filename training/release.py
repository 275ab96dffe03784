"""What a run hands on when it ends: its weights as safetensors, which cannot hold code, and a card about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from training.config import TransformerConfig
from training.loop import RunFolder, log_lines, settle
from training.provenance import made_with
from training.recipes.fields import flat

WEIGHTS, CARD = "transformer.safetensors", "README.md"
CARD_TEXT = """\
---
library_name: editar-rt
pipeline_tag: image-to-image
---

# {name}

A transformer of the EditAR kind ({preset}: width {dim}, {layers} layers, {parameters:.0f} M parameters) that edits
pictures of {side} x {side} tokens from a picture and a text, after {step} steps.

`{weights}` holds the {which} under the official names, with the configuration in its header.

```sh
python -m export onnx --transformer {weights} --vq VQ --text-encoder TEXT_ENCODER -o BUNDLE
```

## Trained on

{inputs}

## Recipe

{recipe}

## Measured

{measured}

## Made with

{versions}
"""


def write_release(run: RunFolder, published: Path) -> None:
    """Write the weights that a run has published, and their card, into its folder; the average's where it keeps one.

    Args:
        published: `transformer.pt`, as `training.train_transformer` writes it.
    """
    content = torch.load(published, weights_only=True, map_location="cpu", mmap=True)
    kind = "ema" if "ema" in content else "model"
    weights, config, step = content[kind], TransformerConfig.from_dict(content["config"]), content["step"]
    about = {"format": "pt", "config": json.dumps(config.to_dict()), "step": str(step), "weights": kind}
    partial = run.folder / f"{WEIGHTS}.partial"
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial, about)
    settle(partial, run.folder / WEIGHTS)
    last: dict[str, Any] = {}
    for line in log_lines(run.folder / "log.jsonl") if (run.folder / "log.jsonl").exists() else []:
        last |= line
    text = CARD_TEXT.format(
        name=run.folder.resolve().name,
        preset=run.recipe["model"]["preset"],
        dim=config.dim,
        layers=config.n_layer,
        parameters=sum(tensor.numel() for tensor in weights.values()) / 1e6,
        side=config.grid,
        step=step,
        weights=WEIGHTS,
        which="averaged weights" if kind == "ema" else "weights of the last step",
        inputs=_table(run.inputs),
        recipe=_table(flat(run.recipe)),
        measured=_table({name: value for name, value in last.items() if "loss" in name or "right" in name}),
        versions=_table(made_with()),
    )
    partial = run.folder / f"{CARD}.partial"
    partial.write_text(text, encoding="utf-8")
    settle(partial, run.folder / CARD)


def _table(values: dict[str, Any]) -> str:
    told = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in values.items()}
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in told.items())])
