"""Scores a bundle on held-out scenes, through the runtime that users run, and makes a contact sheet to look at."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import editar_rt
from editar_rt.files import placing
from editar_rt.images.masks import composite, dilate, feather, touched_cells
from editar_rt.images.pixels import to_pictures, to_pixels
from training.data.edits import EDIT_KINDS, KINDS, TRANSLATION_TASKS, Example, held_out
from training.data.scenes import render
from training.errors import TrainingError
from training.evaluation.intervals import bounds, interval, resampled
from training.evaluation.results import seeds_from
from training.scoring import Score, score

BRUSH = 3  # pixels: the seam of what is put back lies in the mask, so a mask that hugs an object shows its outline

Pictures = NDArray[np.uint8]  # [B, H, W, 3]


def run_examples(
    editor: editar_rt.Editor, examples: list[Example], sampling: editar_rt.Sampling | None, batch: int, masked: bool
) -> tuple[Pictures, Pictures]:
    """(condition pictures, pictures that came out), in batches; each picture has the tokens it has alone.

    Args:
        masked: let only what lies in `painted_mask` change, as `Editor.edit` does with a mask.
    """
    size = editor.image_size
    given = np.stack([e.condition(size) for e in examples])
    made = []
    for i in range(0, len(examples), batch):
        part = examples[i : i + batch]
        states = editor.encode_text([e.text for e in part], tasks=[e.task for e in part])
        tokens = editor.encode_pixels(to_pixels(given[i : i + batch]))
        masks = [painted_mask(e, size) if masked else np.ones((size, size), bool) for e in part]
        free = np.stack([dilate(touched_cells(mask, editor.grid), 1).ravel() for mask in masks])
        found = editor.generate(states, tokens, sampling, known_tokens=np.where(free, -1, tokens))
        shares = np.stack([feather(mask, editor.grid) for mask in masks])
        made.append(composite(to_pictures(editor.decode_tokens(found)), given[i : i + batch], shares))
    return given, np.concatenate(made)


def painted_mask(example: Example, size: int) -> NDArray[np.bool_]:
    """The mask that a person would paint for an edit, [size, size]: what it truly changes, and BRUSH pixels around."""
    return dilate((render(example.source, size) != render(example.target, size)).any(axis=2), BRUSH)


def evaluate(
    editor: editar_rt.Editor,
    count: int = 200,
    sampling: editar_rt.Sampling | None = None,
    seed: int = 0,
    seeds: int = 1,
    batch: int = 50,
    kinds: tuple[str, ...] = KINDS,
    masked: bool = False,
    on_kind: Callable[[str, dict[str, Any]], None] = lambda kind, result: None,
) -> tuple[dict[str, Any], dict[str, list[tuple[Example, NDArray[np.uint8], NDArray[np.uint8], Score]]]]:
    """Scores `count` held-out examples of every kind with the bundle's own defaults, or `sampling`.

    Args:
        seed: which scenes.
        seeds: pictures of every scene, each by a sampling seed of its own; the sampling's is the first.
        masked: edits alone, each under `painted_mask`.

    Returns:
        what `python -m training evaluate` prints, and the first examples of every kind with their pictures by the
        first seed.
    """
    sampling = editar_rt.Sampling.checked(sampling, editor.default_sampling)
    drawn = seeds_from(sampling, seeds)
    results: dict[str, Any] = {}
    verdicts: dict[str, list[list[Score]]] = {}
    shown = {}
    for kind in kinds if not masked else [kind for kind in kinds if kind in EDIT_KINDS]:
        examples = held_out(kind, count, seed)
        by_seed = []
        for one in drawn:
            given, made = run_examples(editor, examples, dataclasses.replace(sampling, seed=one), batch, masked)
            by_seed.append(made)
        # By scene, the scores of its pictures.
        verdicts[kind] = [[score(e, made[i]) for made in by_seed] for i, e in enumerate(examples)]
        results[kind] = summary(verdicts[kind])
        if masked:
            outside = [~painted_mask(e, editor.image_size) for e in examples]
            same = [(m[o] == g[o]).all() for made in by_seed for m, g, o in zip(made, given, outside, strict=True)]
            results[kind]["outside_identical"] = float(np.mean(same))
        on_kind(kind, results[kind])
        firsts = [scores[0] for scores in verdicts[kind][:6]]
        shown[kind] = list(zip(examples[:6], given[:6], by_seed[0][:6], firsts, strict=True))
    settings = dataclasses.asdict(sampling)
    del settings["seed"]
    report: dict[str, Any] = {
        "bundle": editor.bundle.folder.name,
        "examples_a_kind": count,
        "seed": seed,
        "sampling": settings,
        "sampling_seeds": drawn,
        "picture_size": editor.image_size,
        "masked": masked,
        "kinds": results,
    }
    for name, group in (("edits", EDIT_KINDS), ("translations", TRANSLATION_TASKS)):
        if members := [kind for kind in group if kind in results]:
            report[f"{name}_success"] = float(np.mean([results[kind]["success"] for kind in members]))
            again = [resampled(_rates(verdicts[kind], "success"), stream=i) for i, kind in enumerate(members)]
            report[f"{name}_success_interval"] = bounds(np.mean(again, axis=0))
    return report, shown


def guidance_sweep(
    bundle: Path,
    scales: tuple[float, ...],
    count: int,
    sampling: editar_rt.Sampling | None = None,
    seed: int = 0,
    seeds: int = 1,
    kinds: tuple[str, ...] = KINDS,
    on_scale: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """What `evaluate` measures at each of several guidance scales, all else alike: the same scenes, the same seeds."""
    editor = editar_rt.load(bundle)
    sampling = editar_rt.Sampling.checked(sampling, editor.default_sampling)
    results = []
    for scale in scales:
        one = dataclasses.replace(sampling, cfg_scale=scale)
        report, _ = evaluate(editor, count, one, seed, seeds, kinds=kinds)
        measured = {k: v for k, v in report.items() if k == "kinds" or "_success" in k}
        results.append({"cfg_scale": scale, **measured})
        on_scale(results[-1])
    same = ("bundle", "examples_a_kind", "seed", "picture_size", "sampling", "sampling_seeds")
    settings = {name: report[name] for name in same}
    del settings["sampling"]["cfg_scale"]
    return {**settings, "scales": results}


def _rates(verdicts: list[list[Score]], name: str) -> NDArray[np.float64]:
    """By scene, the mean over its pictures of one field of their scores."""
    return np.asarray([np.mean([getattr(s, name) for s in scores]) for scores in verdicts], np.float64)


def summary(verdicts: list[list[Score]]) -> dict[str, Any]:
    """One kind's means with their confidence intervals, and its commonest faults.

    Args:
        verdicts: by scene, the scores of its pictures, one a sampling seed.
    """
    found: dict[str, Any] = {}
    for name in ("success", "exact", "outside_psnr"):
        each = _rates(verdicts, name)
        measured = not np.isnan(each).any()
        found[name] = float(each.mean()) if measured else None
        found[f"{name}_interval"] = interval(each) if measured else None
    faults = Counter(f for scores in verdicts for s in scores for f in s.faults)
    return {**found, "faults": dict(faults.most_common(8))}


def tokenizer_ceiling(editor: editar_rt.Editor, count: int = 50) -> dict[str, float]:
    """The success that perfect tokens would have: the true pictures, encoded and decoded, by kind."""
    rates = {}
    for kind in KINDS:
        examples = held_out(kind, count)
        truth = np.stack([render(e.target, editor.image_size) for e in examples])
        made = to_pictures(editor.decode_tokens(editor.encode_pixels(to_pixels(truth))))
        rates[kind] = float(np.mean([score(e, m).success for e, m in zip(examples, made, strict=True)]))
    return rates


def contact_sheet(shown: dict[str, list[tuple[Example, Any, Any, Score]]], path: Path, side: int = 128) -> None:
    """The first held-out examples of every kind, not chosen: given | made | true, the verdict and the words."""
    columns, text_height, gap = 3, 34, 10
    font, small = ImageFont.load_default(size=12), ImageFont.load_default(size=11)
    cell_width, cell_height = 3 * side + gap, side + text_height + gap
    cells = [(kind, entry) for kind, entries in shown.items() for entry in entries]
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * cell_width + gap, rows * cell_height + gap + 18), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, 4), "given | made | true   (first held-out examples, not chosen)", fill="black", font=font)
    for n, (kind, (example, given, made, verdict)) in enumerate(cells):
        x, y = gap + n % columns * cell_width, gap + 18 + n // columns * cell_height
        for i, picture in enumerate((given, made, render(example.target, len(made)))):
            sheet.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC), (x + i * side, y))
        colour = (0, 120, 40) if verdict.success else (190, 30, 30)
        mark = "passes" if verdict.success else "fails: " + "; ".join(verdict.faults[:2])
        draw.text((x, y + side + 2), f"{kind}: {mark}", fill=colour, font=small)
        words = example.text if len(example.text) < 72 else example.text[:70] + "…"
        draw.text((x, y + side + 16), words, fill="black", font=small)
    with placing(path, TrainingError) as partial:
        sheet.save(partial, format="PNG")


def write_report(report: dict[str, Any], path: Path) -> None:
    with placing(path, TrainingError) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
