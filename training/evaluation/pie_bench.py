"""PIE-Bench's protocol: what is read, what is masked, what is measured, and what is averaged.

The benchmark (arXiv 2310.01506) has 700 pictures with an instruction, prompts of both pictures and the part that may
change. Its published code decides every detail here: a mask's one-pixel border always counts as edited; the unedited
part is measured on both pictures with the edited part set to zero, over all pixels; brackets are taken out of prompts.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.records import BadRecord, BadRecords, DataError, path_inside, read_picture
from training.evaluation.intervals import interval, means_by_record
from training.evaluation.networks import Networks

MAPPING_FILE, PICTURES = "mapping_file.json", "annotation_images"
MAX_MAPPING = 256 * 2**20  # bytes
EDITING_TYPES = (
    "random",
    "change object",
    "add object",
    "delete object",
    "change content",
    "change pose",
    "change colour",
    "change material",
    "change background",
    "change style",
)


@dataclasses.dataclass(frozen=True)
class Measure:
    """How a measure is shown: its name, the factor the literature shows it with, and which way is better."""

    name: str
    factor: float = 1.0
    better: str = "higher"
    paper: float | None = None  # EditAR's own value (arXiv 2501.04699), already with the factor


# The benchmark's tables show the distance on whole pictures and the four others on the unedited part. Its own distances
# are resized without anti-aliasing, as its pinned torchvision does; EditAR's are of a torchvision that does it with.
MEASURES: dict[str, Measure] = {
    "structure_distance": Measure("structure distance ×10³, resized without anti-aliasing", 1e3, "lower"),
    "structure_distance_antialiased": Measure(
        "structure distance ×10³, resized with anti-aliasing", 1e3, "lower", 39.43
    ),
    "psnr_unedited": Measure("PSNR, unedited part", paper=21.32),
    "lpips_unedited": Measure("LPIPS ×10³, unedited part", 1e3, "lower", 117.15),
    "mse_unedited": Measure("MSE ×10⁴, unedited part", 1e4, "lower"),
    "ssim_unedited": Measure("SSIM ×10², unedited part", 1e2),
    "clip_whole": Measure("CLIP, whole", paper=24.87),
    "clip_edited": Measure("CLIP, edited part", paper=21.87),
    "structure_distance_unedited": Measure(
        "structure distance ×10³, unedited part, resized without anti-aliasing", 1e3, "lower"
    ),
    "structure_distance_antialiased_unedited": Measure(
        "structure distance ×10³, unedited part, resized with anti-aliasing", 1e3, "lower"
    ),
    "psnr": Measure("PSNR, whole"),
    "lpips": Measure("LPIPS ×10³, whole", 1e3, "lower"),
    "mse": Measure("MSE ×10⁴, whole", 1e4, "lower"),
    "ssim": Measure("SSIM ×10², whole", 1e2),
}


@dataclasses.dataclass(frozen=True)
class Item:
    """One entry of the benchmark."""

    key: str
    picture: NDArray[np.uint8]  # [S, S, 3], the middle square of the file
    mask: NDArray[np.bool_]  # [S, S], the part that may change
    instruction: str
    prompt: str  # what the edited picture shows
    editing_type: int  # index into EDITING_TYPES


def decode_mask(runs: Any, height: int, width: int) -> NDArray[np.bool_]:
    """The edited part, bool [height, width], from `start, length` pairs over the pixels in row order; and the border.

    Args:
        runs: a list of whole numbers, or a string of them with spaces between.

    Raises:
        ValueError: anything else.
    """
    numbers = [int(n) for n in runs.split()] if isinstance(runs, str) else runs
    whole = isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)
    if not whole or len(numbers) % 2:
        raise ValueError("a mask must be pairs of whole numbers: start, length, …")
    mask = np.zeros(height * width, bool)
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        mask[start : start + length] = True
    mask = mask.reshape(height, width)
    # Annotations are unreliable at the border, says the benchmark.
    mask[[0, -1], :] = True
    mask[:, [0, -1]] = True
    return mask


def encode_mask(mask: NDArray[np.bool_]) -> list[int]:
    """`start, length` pairs of a mask's runs in row order: what `decode_mask` reads."""
    steps = np.flatnonzero(np.diff(np.concatenate([[False], mask.ravel(), [False]]).astype(np.int8)))
    return [int(n) for start, end in zip(steps[::2], steps[1::2], strict=True) for n in (start, end - start)]


class PieBench:
    """The benchmark on disk: `mapping_file.json` and `annotation_images/`.

    Raises:
        DataError: it is not there, or not the benchmark.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, path = folder, folder / MAPPING_FILE
        if not path.is_file() or not (folder / PICTURES).is_dir():
            raise DataError(
                f"{folder} has no {MAPPING_FILE} and {PICTURES}/ as PIE-Bench has; to make a small one of its kind: "
                f"python -m training evaluate pie-bench --make-example {folder}"
            )
        if path.stat().st_size > MAX_MAPPING:
            raise DataError(f"{path} has {path.stat().st_size} bytes; PIE-Bench's has a few million")
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            raise DataError(f"{path} is not JSON") from None
        if not isinstance(entries, dict) or not entries:
            raise DataError(f"{path} is not an object with an entry a picture")
        self._entries: dict[str, Any] = entries

    def keys(self) -> list[str]:
        return list(self._entries)

    def item(self, key: str) -> Item:
        """One entry.

        Raises:
            BadRecord: it lacks something, or its picture cannot be read.
        """
        entry, name = self._entries[key], f"{MAPPING_FILE}, {key}"
        if not isinstance(entry, dict) or Path(key).name != key:
            raise BadRecord(f"{name} is not an entry of PIE-Bench")
        texts = {field: entry.get(field) for field in ("image_path", "editing_instruction", "editing_prompt")}
        lacking = [field for field, text in texts.items() if not isinstance(text, str) or not text.strip()]
        if lacking:
            raise BadRecord(f"{name} has no {' and no '.join(lacking)}")
        kind = str(entry.get("editing_type_id"))
        if kind not in map(str, range(len(EDITING_TYPES))):
            raise BadRecord(f"{name} has the editing_type_id {kind}; allowed: 0 to {len(EDITING_TYPES) - 1}")
        picture = read_picture(path_inside(self.folder / PICTURES, str(texts["image_path"])), name)
        height, width = picture.shape[:2]
        try:
            mask = decode_mask(entry.get("mask"), height, width)
        except ValueError as error:
            raise BadRecord(f"{name}: {error}") from None
        side = min(height, width)
        rows, columns = ((n - side) // 2 for n in (height, width))
        square = (slice(rows, rows + side), slice(columns, columns + side))
        prompt = str(texts["editing_prompt"]).replace("[", "").replace("]", "")
        return Item(key, picture[square], mask[square], str(texts["editing_instruction"]), prompt, int(kind))

    def items(self, keys: Iterable[str], bad: BadRecords) -> list[Item]:
        """All entries that can be used."""
        found = []
        for key in keys:
            try:
                found.append(self.item(key))
            except BadRecord as error:
                bad.add("PIE-Bench", error)
        return found


def measures_of(networks: Networks) -> tuple[str, ...]:
    """Names of what can be measured."""
    needs = {"structure": networks.structure, "lpips": networks.lpips, "clip": networks.clip}
    return tuple(name for name in MEASURES if needs.get(name.partition("_")[0], True) is not None)


def measure(
    item: Item, result: NDArray[np.uint8], networks: Networks, wanted: Iterable[str]
) -> dict[str, float | None]:
    """Measures of one result (uint8, as large as the item's picture), by name, without the factors.

    None stands for what has no value: of an unedited part where everything may change, of PSNR where nothing differs.
    """
    whole = np.ones_like(item.mask)
    parts = {"": whole, "_unedited": ~item.mask}
    values: dict[str, float | None] = {}
    for name in wanted:
        base, part = (name.removesuffix("_unedited"), parts["_unedited" if name.endswith("_unedited") else ""])
        if base in ("clip_whole", "clip_edited"):
            assert networks.clip is not None
            shown = result if base == "clip_whole" else result * item.mask[..., None]
            values[name] = networks.clip(shown, item.prompt)
        elif not part.any():
            values[name] = None
        else:
            values[name] = _compare(base, item.picture * part[..., None], result * part[..., None], networks)
    return values


def _compare(base: str, source: NDArray[np.uint8], result: NDArray[np.uint8], networks: Networks) -> float | None:
    if base.startswith("structure_distance"):
        assert networks.structure is not None
        return networks.structure(source, result, antialias=base.endswith("_antialiased"))
    one, other = (picture.astype(np.float32) / 255 for picture in (source, result))
    if base == "lpips":
        assert networks.lpips is not None
        return networks.lpips(one, other)
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
    from torchmetrics.functional.regression import mean_squared_error

    a, b = (torch.from_numpy(x).permute(2, 0, 1)[None].contiguous() for x in (one, other))
    if base == "mse":
        return mean_squared_error(a, b).item()
    if base == "ssim":
        return structural_similarity_index_measure(a, b, data_range=1.0).item()
    value = peak_signal_noise_ratio(a, b, data_range=1.0).item()
    return value if math.isfinite(value) else None


def summarize(values: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Means with the literature's factors, and their confidence intervals, over all pictures and by editing type.

    Args:
        values: by record, the measures of each of its pictures, one a sampling seed, each with its `editing_type`.
    """

    def means(records: list[list[dict[str, Any]]]) -> dict[str, Any]:
        out: dict[str, Any] = {"pictures": len(records), "intervals": {}}
        for name, shown in MEASURES.items():
            each = shown.factor * means_by_record(records, name)
            if len(each):
                out[name] = float(each.mean())
                out["intervals"][name] = interval(each)
                if len(each) < len(records):
                    out[f"{name}_pictures"] = len(each)
        return out

    everything = list(values.values())
    by_type: dict[str, Any] = {}
    for kind, name in enumerate(EDITING_TYPES):
        if members := [pictures for pictures in everything if pictures[0]["editing_type"] == kind]:
            by_type[name] = means(members)
    return {"all": means(everything), "by_type": by_type}


def table(summary: dict[str, Any], seeds: list[int], missing: list[str]) -> str:
    """The results beside the paper's, and by editing type, in Markdown."""
    total = summary["all"]
    lines = [
        f"PIE-Bench, {total['pictures']} pictures, sampling seeds {', '.join(map(str, seeds))}",
        "",
        "| measure | better | this bundle | 95 % interval | EditAR, published (700 pictures) |",
        "|---|---|---|---|---|",
    ]
    for name, shown in MEASURES.items():
        if name in total or shown.paper is not None:
            here = f"{total[name]:.2f}" if name in total else "not measured"
            count = total.get(f"{name}_pictures")
            here += f" ({count} pictures)" if count else ""
            spread = "{:.2f} to {:.2f}".format(*total["intervals"][name]) if name in total else "–"
            paper = "–" if shown.paper is None else f"{shown.paper:.2f}"
            lines.append(f"| {shown.name} | {shown.better} | {here} | {spread} | {paper} |")
    columns = [name for name in MEASURES if name in total]
    lines += ["", "| editing type | pictures | " + " | ".join(MEASURES[c].name for c in columns) + " |"]
    lines += ["|---" * (2 + len(columns)) + "|"]
    for kind, values in summary["by_type"].items():
        cells = [f"{values[c]:.2f}" if c in values else "–" for c in columns]
        lines.append(f"| {kind} | {values['pictures']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(["", *missing] if missing else [])])
