"""Translations measured: FID against the true pictures, and how well the condition is shown."""

from __future__ import annotations

import contextlib
import dataclasses
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import editar_rt
from editar_rt.images.fit import fit_square
from editar_rt.observe.sheets import Cell
from training.data.records import BadRecord, BadRecords, DataError, Sample
from training.data.sources import Plan
from training.evaluation import consistency
from training.evaluation.consistency import DepthEstimator, Segmenter
from training.evaluation.frechet import ENOUGH, InceptionFeatures, frechet_distance
from training.evaluation.intervals import bounds, interval, means_by_record, resampled
from training.evaluation.results import CELLS, Progress, ResultFolder, Task, fitted, generate, seeds_from, spread
from training.evaluation.runs import Outcome, describe
from training.provenance import fingerprint

FID_PAPER = {"depth": 15.97, "canny": 13.91, "segmentation": 16.13}  # arXiv 2501.04699
SHOWN = {
    "rmse": ("RMSE of depth (0 … 255)", "lower"),
    "f1": ("F1 of edges", "higher"),
    "edge_ssim": ("SSIM of edges", "higher"),
    "edge_ms_ssim": ("multi-scale SSIM of edges", "higher"),
    "miou": ("mIoU", "higher"),
}
MEASURES = {"depth": ("rmse",), "canny": ("f1", "edge_ssim", "edge_ms_ssim"), "segmentation": ("miou",)}


@dataclasses.dataclass(frozen=True)
class TranslationNetworks:
    """What there is to measure translations with."""

    inception: InceptionFeatures | None = None
    depth: DepthEstimator | None = None
    segmenter: Segmenter | None = None
    palette: NDArray[np.int64] | None = None  # colours by class [classes, 3]
    fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(
        cls, inception: Path | None, depth: Path | None, segmenter: Path | None, palette: Path | None, device: str
    ) -> TranslationNetworks:
        """Raises: DataError."""
        given = {"inception": inception, "depth": depth, "segmenter": segmenter, "palette": palette}
        if (segmenter is None) != (palette is None):
            raise DataError("--segmenter and --palette belong together: the palette says which colour is which class")
        loaded = cls(
            InceptionFeatures(inception, device) if inception else None,
            DepthEstimator(depth, device) if depth else None,
            Segmenter(segmenter, device) if segmenter else None,
            consistency.read_palette(palette) if palette else None,
            {name: fingerprint(path) for name, path in given.items() if path},
        )
        if loaded.segmenter and loaded.palette is not None and loaded.segmenter.classes != len(loaded.palette):
            raise DataError(
                f"{palette} has {len(loaded.palette)} colours, but {segmenter} knows {loaded.segmenter.classes} classes"
            )
        return loaded

    def missing(self, task: str) -> list[str]:
        """A sentence for each measure of a task that is left out."""
        absent = []
        if self.inception is None:
            absent.append("FID is not measured: give --inception FILE (inception-2015-12-05.pt, TorchScript)")
        if task == "depth" and self.depth is None:
            absent.append("RMSE of depth is not measured: give --depth FOLDER (Intel/dpt-large)")
        if task == "segmentation" and self.segmenter is None:
            absent.append("mIoU is not measured: give --segmenter FOLDER and --palette FILE (colours by class)")
        return absent

    def consistency(self, task: str, sample: Sample, made: NDArray[np.uint8]) -> dict[str, Any]:
        """How well a picture [S, S, 3] shows its condition; `overlap` stands for mIoU, which is one of all pictures."""
        if task == "canny":
            return dict(consistency.edge_agreement(sample.condition, made))
        if task == "depth" and self.depth is not None:
            return {"rmse": consistency.depth_error(sample.condition, self.depth(made))}
        if task == "segmentation" and self.segmenter is not None and self.palette is not None:
            wanted = consistency.classes_of(sample.condition, self.palette)
            return {"overlap": consistency.overlap(wanted, self.segmenter(made, len(wanted)))}
        return {}


def evaluate_translation(
    plan: Plan,
    task: str,
    editor: editar_rt.Editor,
    output: Path,
    networks: TranslationNetworks,
    sampling: editar_rt.Sampling | None = None,
    limit: int | None = None,
    batch: int = 1,
    seeds: int = 1,
    on_progress: Progress = lambda done, total: None,
) -> Outcome:
    """Every record of `task` in a data set, made again from its condition and its words, into the folder `output`.

    Pictures are compared at the bundle's size; masks of classes at their own.

    Args:
        task: `depth`, `canny` or `segmentation`; records of other tasks are passed over.
        limit: records read of each data set at most, evenly spread; all when None.
        seeds: pictures of every record, each by a sampling seed of its own; the sampling's is the first.

    Raises:
        DataError: no record of that task, or a folder with other results.
    """
    sampling, side = editar_rt.Sampling.checked(sampling, editor.default_sampling), editor.image_size
    # Nothing may blur the classes of a mask before they are told apart.
    datasets = plan.open(None if task == "segmentation" else side)
    described = {"task": task, "records": {d.name: len(d) for d in datasets}, **describe(editor, sampling)}
    if task == "depth":  # errors of another protocol, as this module had before, do not mix with these
        described["depth_protocol"] = "ControlNet++"
    results = ResultFolder(output, described, networks.fingerprints)
    features = _Features(output / "features.npz", networks.inception)
    drawn, bad = seeds_from(sampling, seeds), BadRecords()
    made_of: dict[str, list[str]] = {}  # keys of a record's pictures, one a seed
    cells: list[Cell] = []
    places = [(d, i) for d in datasets for i in spread(len(d), limit)]
    for start in range(0, len(places), batch):
        samples: dict[str, Sample] = {}
        for dataset, index in places[start : start + batch]:
            try:
                sample = dataset[index]
            except BadRecord as error:
                bad.add(dataset.name, error)
                continue
            if sample.task == task:
                samples[f"{dataset.name}-{index:07d}"] = sample
        tasks = [Task(key, s.condition, s.text, task, seed) for seed in drawn for key, s in samples.items()]
        for done in generate(results, editor, tasks, sampling, batch):
            made = fitted(results.picture(done.key), side)
            made_of.setdefault(done.record, []).append(done.key)
            sample = samples[done.record]
            if not _measured(results.values.get(done.key, {}), task) and (
                found := networks.consistency(task, sample, made)
            ):
                results.record(done.key, found)
            features.add(done.key, sample, made)
            if len(cells) < CELLS and done.seed == sampling.seed:
                shown = (sample.condition, made, sample.target)
                cells.append(Cell([fit_square(Image.fromarray(p), side) for p in shown], sample.text))
        on_progress(min(start + batch, len(places)), len(places))
    if not made_of:
        first = f"; the first bad record: {bad.messages[0]}" if bad.messages else ""
        raise DataError(f"the data set has no record of the task {task}{first}")
    features.save()
    values, intervals = _summary(task, [[results.values.get(key, {}) for key in keys] for keys in made_of.values()])
    # One picture a record at a time, as published distances are: the seeds' own distances are averaged.
    distances = [d for keys in zip(*made_of.values(), strict=True) if (d := features.distance(keys)) is not None]
    values = {"fid": float(np.mean(distances)) if distances else None, **values}
    missing = networks.missing(task)
    if distances and len(made_of) < ENOUGH:
        missing.append(f"FID over {len(made_of)} pictures is only a hint: published ones are over thousands")
    report = {
        "benchmark": f"{task} to picture",
        **described,
        "seeds": drawn,
        "pictures": len(made_of),
        "measures": values,
        "intervals": intervals,
        "fid_of_seeds": distances,
        "paper": {"fid": FID_PAPER[task]},
        "missing": missing,
        "bad_records": bad.messages,
    }
    table = _table(task, report)
    results.write_report(report, table, cells)
    return Outcome(report, table, bad)


def _summary(task: str, records: list[list[dict[str, Any]]]) -> tuple[dict[str, float | None], dict[str, list[float]]]:
    """A task's measures but for the FID, and their intervals; given by record, the values of each of its pictures."""
    values: dict[str, float | None] = {}
    intervals: dict[str, list[float]] = {}
    for name in MEASURES[task]:
        values[name] = None
        if name == "miou":
            overlaps = [[v["overlap"] for v in pictures if v.get("overlap")] for pictures in records]
            if overlaps := [pictures for pictures in overlaps if pictures]:
                counts = consistency.overlap_counts(overlaps)
                values[name] = consistency.mean_iou(counts.sum(axis=0))
                intervals[name] = bounds(resampled(counts, lambda total, _: consistency.mean_iou(total)))
        elif len(each := means_by_record(records, name)):
            values[name], intervals[name] = float(each.mean()), interval(each)
    return values, intervals


def _measured(values: dict[str, Any], task: str) -> bool:
    return any(name in values for name in (*MEASURES[task], "overlap"))


class _Features:
    """Inception's features of true and made pictures, kept in a file between passes."""

    def __init__(self, path: Path, network: InceptionFeatures | None) -> None:
        self.path, self.network = path, network
        self.found: dict[str, NDArray[np.float32]] = {}  # [2, F] by key: of the true picture, of the one made
        if network is not None and path.exists():
            # Features are quickly taken again, so a damaged file is passed over.
            damage = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
            with contextlib.suppress(*damage), np.load(path) as kept:
                self.found = dict(zip(kept["keys"].tolist(), kept["features"], strict=True))

    def add(self, key: str, sample: Sample, made: NDArray[np.uint8]) -> None:
        if self.network is not None and key not in self.found:
            true = np.asarray(fit_square(Image.fromarray(sample.target), len(made)))
            self.found[key] = np.stack([self.network(true), self.network(made)])
            if len(self.found) % 200 == 0:
                self.save()

    def save(self) -> None:
        if self.found:
            partial = self.path.with_suffix(".partial")
            with open(partial, "wb") as f:
                np.savez(f, keys=np.asarray(list(self.found)), features=np.stack(list(self.found.values())))
            partial.replace(self.path)

    def distance(self, keys: Sequence[str]) -> float | None:
        pairs = [self.found[key] for key in keys if key in self.found]
        if not pairs:
            return None
        return frechet_distance(np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs]))


def _table(task: str, report: dict[str, Any]) -> str:
    values, intervals, distances = report["measures"], report["intervals"], report["fid_of_seeds"]
    lines = [
        f"{task} to picture, {report['pictures']} pictures, sampling seeds {', '.join(map(str, report['seeds']))}",
        "",
        "| measure | better | this bundle | 95 % interval | EditAR, published |",
        "|---|---|---|---|---|",
    ]

    def cell(value: float | None, digits: int) -> str:
        return "not measured" if value is None else f"{value:.{digits}f}"

    several = f"seeds {min(distances):.2f} to {max(distances):.2f}" if len(distances) > 1 else "–"
    lines.append(f"| FID | lower | {cell(values['fid'], 2)} | {several} | {FID_PAPER[task]:.2f} |")
    for name in MEASURES[task]:
        if name != "edge_ms_ssim" or values[name] is not None:
            label, better = SHOWN[name]
            spread = "{:.4f} to {:.4f}".format(*intervals[name]) if name in intervals else "–"
            lines.append(f"| {label} | {better} | {cell(values[name], 4)} | {spread} | – |")
    missing = report["missing"]
    return "\n".join([*lines, *(["", *missing] if missing else [])])
