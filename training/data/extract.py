"""Pictures and texts of data sets turned into tokens and states once, so that VQ and T5 need not run while training.

A shard is one `.npz`, as `training.data.tokens` writes them for the procedural world, here with K = 1:

    condition     uint16 [G, N]          tokens of the condition picture
    target        uint16 [G, K, N]       tokens of the target
    text, task    str [G, K]
    source        str [G]                name of the data set, by which shares are held
    text_states   float16 [G, K, T, C]   only with a text encoder
    features      float16 [G, K, h, w, F]  only with a vision encoder: the target's patch features
    features_from str                    only with a vision encoder: its type of model, such as dinov2
    bad           str                    the records that were left out, one sentence each

Shards are written beside and renamed, those that are there are kept: a run that was stopped goes on where it was. One
in which every record is bad is called `empty-…` and holds `bad` alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from editar_rt.text.prompts import build_prompt
from editar_rt.text.tokenizer import TextTokenizer
from training.data.features import PatchFeatures
from training.data.records import BadRecord, BadRecords, DataError, Dataset, Sample
from training.data.shards import SETTINGS_FILE, opening, read_settings
from training.data.sources import Plan
from training.data.tokens import encode_pictures
from training.models.text_encoder import encode, load_text_encoder
from training.models.vq import VQModel

NOTHING = np.zeros((0, 0, 3), np.uint8)  # in place of pictures that are not needed any more
Progress = Callable[[int, int], None]  # (records done, records in all)


class TextStates:
    """Prompts → a frozen text encoder's states, float16 [B, T, C].

    Args:
        folder: a T5 in Hugging Face layout, with its `tokenizer.json`.

    Raises:
        CheckpointError, BundleError: no text encoder, or no tokenizer there.
    """

    def __init__(self, folder: Path, length: int, device: str = "cpu") -> None:
        self._tokenizer = TextTokenizer.read(folder / "tokenizer.json", length)
        self._model = load_text_encoder(folder).to(device)
        self.device = device

    @torch.inference_mode()
    def __call__(self, prompts: list[str]) -> NDArray[np.float16]:
        encoded = self._tokenizer.encode(prompts)
        ids, mask = (torch.from_numpy(a).long().to(self.device) for a in (encoded.ids, encoded.mask))
        return encode(self._model, ids, mask).to(torch.float16).cpu().numpy()


@dataclass(frozen=True)
class Encoders:
    """What turns samples into arrays; text and features are optional."""

    vq: VQModel
    text: TextStates | None = None
    features: PatchFeatures | None = None

    def __call__(self, samples: list[Sample]) -> dict[str, NDArray[Any]]:
        """Arrays of a batch by their name in a shard; all but the condition with K = 1."""
        targets = np.stack([s.target for s in samples])
        arrays: dict[str, NDArray[Any]] = {
            "condition": encode_pictures(self.vq, np.stack([s.condition for s in samples])).astype(np.uint16),
            "target": encode_pictures(self.vq, targets).astype(np.uint16)[:, None],
        }
        if self.text is not None:
            arrays["text_states"] = self.text([build_prompt(s.task, s.text) for s in samples])[:, None]
        if self.features is not None:
            arrays["features"] = self.features(targets)[:, None]
        return arrays


def extract(
    plan: Plan,
    folder: Path,
    encoders: Encoders,
    size: int,
    settings: dict[str, Any] | None = None,
    groups: int = 500,
    batch: int = 16,
    workers: int = 2,
    limit: int | None = None,
    on_progress: Progress = lambda done, total: None,
) -> tuple[int, BadRecords]:
    """Write every record of a plan's data sets to token shards `shard-NAME-00000.npz` in `folder`.

    Args:
        size: side of the pictures in pixels.
        settings: more that the shards depend on, to be compared when they are added to.
        groups: records a shard; batch: records encoded at once; workers: threads that read pictures.
        limit: records of each data set at most.

    Returns:
        how many records were written (those of earlier runs, too), and which were bad.

    Raises:
        DataError: a size that does not fit the tokens, or a folder of shards made in another way; or as `Plan.open`.
    """
    if size % (cell := encoders.vq.config.downsampling):
        raise DataError(f"the size must be a multiple of {cell} pixels, which a token spans; got {size}")
    datasets = plan.open(size)
    names = [d.name for d in datasets]
    counts = [min(len(d), limit or len(d)) for d in datasets]
    records = dict(zip(names, counts, strict=True))
    shares = {name: source.share for name, source in zip(names, plan.sources, strict=True)}
    _agree(
        folder,
        {"size": size, "groups": groups, "records": records, **(settings or {})},
        {"shares": shares},
    )
    bad, written, done, total = BadRecords(), 0, 0, sum(counts)
    with ThreadPoolExecutor(workers) as pool:
        for dataset, count in zip(datasets, counts, strict=True):
            for number, first in enumerate(range(0, count, groups)):
                ending = f"{dataset.name}-{number:05d}.npz"
                paths = (folder / f"shard-{ending}", folder / f"empty-{ending}")
                indices = range(first, min(first + groups, count))
                if not any(path.exists() for path in paths):
                    arrays = _encode(
                        dataset, indices, encoders, batch, pool, lambda n, d=done: on_progress(d + n, total)
                    )
                    _write_shard(paths["condition" not in arrays], arrays)
                path = next(path for path in paths if path.exists())
                with opening(path), np.load(path) as shard:
                    written += len(shard["condition"]) if "condition" in shard.files else 0
                    for sentence in shard["bad"].tolist():
                        bad.add(dataset.name, BadRecord(sentence))
                done += len(indices)
                on_progress(done, total)
    return written, bad


def _encode(
    dataset: Dataset,
    indices: range,
    encoders: Encoders,
    batch: int,
    pool: ThreadPoolExecutor,
    tell: Callable[[int], None],
) -> dict[str, NDArray[Any]]:
    """The arrays of one shard; `bad` alone where no record is good."""

    def read(index: int) -> Sample | BadRecord:
        try:
            return dataset[index]
        except BadRecord as error:
            return error

    parts: dict[str, list[NDArray[Any]]] = {}
    kept: list[Sample] = []
    bad: list[str] = []
    reading = [pool.submit(read, i) for i in indices[:batch]]
    for start in range(0, len(indices), batch):
        found = [future.result() for future in reading]
        # The next batch is read while this one is encoded.
        reading = [pool.submit(read, i) for i in indices[start + batch : start + 2 * batch]]
        samples = [s for s in found if isinstance(s, Sample)]
        bad += [str(s) for s in found if isinstance(s, BadRecord)]
        if samples:
            for name, array in encoders(samples).items():
                parts.setdefault(name, []).append(array)
            kept += [replace(s, condition=NOTHING, target=NOTHING) for s in samples]
        tell(start + len(found))
    arrays = {name: np.concatenate(pieces) for name, pieces in parts.items()}
    if kept:
        arrays["text"] = np.asarray([[s.text] for s in kept], np.str_)
        arrays["task"] = np.asarray([[s.task] for s in kept], np.str_)
        arrays["source"] = np.asarray([dataset.name] * len(kept), np.str_)
        if encoders.features is not None:
            arrays["features_from"] = np.asarray(encoders.features.kind)
    return {**arrays, "bad": np.asarray(bad, np.str_)}


def _write_shard(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as f:
        np.savez(f, **arrays)
    partial.replace(path)


def _agree(folder: Path, settings: dict[str, Any], mixture: dict[str, Any]) -> None:
    """Note how a folder's shards are made and mixed; refuse to add to shards that were made in another way."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS_FILE
    settings = json.loads(json.dumps(settings))
    if (found := read_settings(folder)) is not None:
        # Mixtures had a seed once, which decided nothing.
        earlier = {k: v for k, v in found.items() if k not in (*mixture, "seed")}
        differ = [k for k in {**earlier, **settings} if earlier.get(k) != settings.get(k)]
        if differ:
            told = "; ".join(f"{k} {earlier.get(k)} instead of {settings.get(k)}" for k in sorted(differ))
            raise DataError(f"{folder} holds shards made in another way ({told}); choose another folder or remove it")
    elif any(folder.glob("shard-*.npz")):
        raise DataError(f"{folder} holds shards that were not made by this command; choose another folder")
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({**settings, **mixture}, indent=1) + "\n")
    partial.replace(path)


def fingerprint(path: Path) -> str:
    """First half of the sha256 of a file, or of a model folder's weights and settings."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*")) if path.is_dir() else [path]:
        if file.is_file() and (not path.is_dir() or file.suffix in (".safetensors", ".bin", ".json")):
            with open(file, "rb") as content:
                while block := content.read(2**20):
                    digest.update(block)
    return digest.hexdigest()[:32]
