"""Pictures and texts of data sets turned into tokens and states once, so that VQ and T5 need not run while training.

A shard is one `.npz`, as `training.data.tokens` writes them for the procedural world, here with K = 1:

    condition     uint16 [G, N]          tokens of the condition picture
    target        uint16 [G, K, N]       tokens of the target
    text, task    str [G, K]
    source        str [G]                name of the data set, by which shares are held
    text_states   float16 [G, K, T, C]   only with a text encoder
    features      float16 [G, K, h, w, F]  only with a vision encoder: the target's patch features
    features_from str                    only with a vision encoder: its type of model, such as dinov2
    features_view str                    only with a vision encoder: `reference`, `whole`, or `both` where they are one
    bad           str                    the records that were left out, one sentence each

Shards are written beside and renamed, those that are there are kept: a run that was stopped goes on where it was. One
in which every record is bad is called `empty-…` and holds `bad` alone. Several processes share the shards by their
number, so they need not know of each other, and any number of them goes on with what another number left.
"""

from __future__ import annotations

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
from training.data.shards import SETTINGS_FILE, holds_shards, opening, read_settings
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
    """What turns samples into arrays; text and features are optional.

    Attributes:
        bfloat16: the models, by their names here, whose products are rounded to bfloat16; weights and results stay as
            they are.
    """

    vq: VQModel
    text: TextStates | None = None
    features: PatchFeatures | None = None
    bfloat16: frozenset[str] = frozenset()

    def __call__(self, samples: list[Sample]) -> dict[str, NDArray[Any]]:
        """Arrays of a batch by their name in a shard; all but the condition with K = 1."""
        targets = np.stack([s.target for s in samples])
        pictures = np.concatenate([np.stack([s.condition for s in samples]), targets])
        dtype = torch.bfloat16 if "vq" in self.bfloat16 else None
        condition, target = np.split(encode_pictures(self.vq, pictures, dtype=dtype).astype(np.uint16), 2)
        arrays: dict[str, NDArray[Any]] = {"condition": condition, "target": target[:, None]}
        if self.text is not None:
            with self._rounding("text"):
                arrays["text_states"] = self.text([build_prompt(s.task, s.text) for s in samples])[:, None]
        if self.features is not None:
            with self._rounding("features"):
                arrays["features"] = self.features(targets)[:, None]
        return arrays

    def _rounding(self, model: str) -> torch.autocast:
        device = next(self.vq.parameters()).device
        return torch.autocast(device.type, torch.bfloat16, enabled=model in self.bfloat16)


@dataclass(frozen=True)
class Piece:
    """The records of one shard, and where they go."""

    dataset: Dataset
    indices: range
    path: Path
    empty: Path  # in its place where no record is good

    @property
    def written(self) -> Path | None:
        return next((path for path in (self.path, self.empty) if path.exists()), None)


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
    rank: int = 0,
    processes: int = 1,
) -> tuple[int, BadRecords]:
    """Write every record of a plan's data sets to token shards `shard-NAME-00000.npz` in `folder`.

    Args:
        size: side of the pictures in pixels.
        settings: more that the shards depend on, to be compared when they are added to.
        groups: records a shard; batch: records encoded at once; workers: threads that read pictures.
        limit: records of each data set at most.
        rank, processes: which of how many processes this is; each writes its share of the shards.

    Returns:
        how many records this process's shards have (those of earlier runs, too), and which were bad.

    Raises:
        DataError: a size that does not fit the tokens, or a folder of shards made in another way; or as `Plan.open`.
    """
    if size % (cell := encoders.vq.config.downsampling):
        raise DataError(f"the size must be a multiple of {cell} pixels, which a token spans; got {size}")
    datasets = plan.open(size, in_order=True)
    counts = {d.name: min(len(d), limit or len(d)) for d in datasets}
    made = {"size": size, "groups": groups, "records": counts, **(settings or {})}
    shares = {d.name: source.share for d, source in zip(datasets, plan.sources, strict=True)}
    _agree(folder, made, {"shares": shares}, rank)
    pieces = [piece for d in datasets for piece in _pieces(d, counts[d.name], groups, folder)][rank::processes]
    bad, written, done, total = BadRecords(), 0, 0, sum(len(piece.indices) for piece in pieces)
    with ThreadPoolExecutor(workers) as pool:
        for piece in pieces:
            if piece.written is None:
                arrays = _encode(piece, encoders, batch, pool, lambda n, d=done: on_progress(d + n, total))
                _write_shard(piece.path if "condition" in arrays else piece.empty, arrays)
            written += _count(piece, bad)
            done += len(piece.indices)
            on_progress(done, total)
    return written, bad


def _pieces(dataset: Dataset, count: int, groups: int, folder: Path) -> list[Piece]:
    """The shards of a data set's first `count` records."""
    pieces = []
    for number, first in enumerate(range(0, count, groups)):
        ending = f"{dataset.name}-{number:05d}.npz"
        indices = range(first, min(first + groups, count))
        pieces.append(Piece(dataset, indices, folder / f"shard-{ending}", folder / f"empty-{ending}"))
    return pieces


def _count(piece: Piece, bad: BadRecords) -> int:
    """Records in a shard that is there; its bad ones are added to `bad`."""
    path = piece.written
    assert path is not None
    with opening(path), np.load(path) as shard:
        left_out = shard["bad"].tolist()
    for sentence in left_out:
        bad.add(piece.dataset.name, BadRecord(sentence))
    return len(piece.indices) - len(left_out)


def _encode(
    piece: Piece, encoders: Encoders, batch: int, pool: ThreadPoolExecutor, tell: Callable[[int], None]
) -> dict[str, NDArray[Any]]:
    """The arrays of one shard; `bad` alone where no record is good."""
    dataset, indices = piece.dataset, piece.indices

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
            arrays |= encoders.features.described
    return {**arrays, "bad": np.asarray(bad, np.str_)}


def _write_shard(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as f:
        np.savez(f, **arrays)
    partial.replace(path)


def _agree(folder: Path, settings: dict[str, Any], mixture: dict[str, Any], rank: int) -> None:
    """Note how a folder's shards are made and mixed; refuse to add to shards that were made in another way."""
    folder.mkdir(parents=True, exist_ok=True)
    begun = holds_shards(folder)  # before the note is read: another process writes that before any shard
    path = folder / SETTINGS_FILE
    settings = json.loads(json.dumps(settings))
    if (found := read_settings(folder)) is not None:
        # Mixtures had a seed once, which decided nothing.
        earlier = {k: v for k, v in found.items() if k not in (*mixture, "seed")}
        differ = [k for k in {**earlier, **settings} if earlier.get(k) != settings.get(k)]
        if differ:
            told = "; ".join(f"{k} {earlier.get(k)} instead of {settings.get(k)}" for k in sorted(differ))
            raise DataError(f"{folder} holds shards made in another way ({told}); choose another folder or remove it")
    elif begun:
        raise DataError(f"{folder} holds shards that were not made by this command; choose another folder")
    partial = path.with_suffix(f".{rank}.partial")
    partial.write_text(json.dumps({**settings, **mixture}, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
