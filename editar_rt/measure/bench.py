"""Measures how fast pictures are made: stage by stage, and a decode step beside what the memory allows.

A `Subject` is something that makes pictures: a bundle here, the PyTorch model in `export.reference_bench`. Several on
one device are measured in turns, the order changing from repeat to repeat: what else the machine does then touches them
alike, and their ratios can be believed where their milliseconds cannot.

A step's time should follow from what it reads: all weights once, and the cache's filled positions of every row. The
report gives these bytes, and the share of the machine's read bandwidth that they came at.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from editar_rt import names
from editar_rt.editor import Editor
from editar_rt.errors import OptionError
from editar_rt.generation.decoding import decode
from editar_rt.generation.sampling import Sampling
from editar_rt.generation.scheduler import Scheduler
from editar_rt.generation.sequence import Sequence
from editar_rt.machine import description, peak_memory_bytes, peak_resident_bytes
from editar_rt.measure.memory import cache_bytes_per_position
from editar_rt.version import __version__

STEP = "step"
DECODE = "decode"
NEXT_PREFILL = "next_prefill"  # of a second instruction on the same picture; no part of one picture's time
Timing = tuple[str, float]  # a stage, or STEP, and its seconds
Run = dict[str, list[float]]  # the timings of one repeat, by stage


@dataclass(frozen=True)
class Plan:
    """What is measured of a picture.

    Raises:
        OptionError: for numbers that no picture has.
    """

    repeats: int = 5
    warmup: int = 1  # repeats before them that do not count
    at: int | None = None  # filled positions of the cache where the steps begin; None is behind the prefill
    steps: int | None = None  # decode steps a repeat; None is to the end of the picture

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.warmup < 0 or (self.steps is not None and self.steps < 1):
            raise OptionError(
                f"repeats and steps must be 1 or more and warmup 0 or more, got {self.repeats}, {self.steps} and "
                f"{self.warmup}"
            )

    def begin(self, prefix: int, picture: int) -> int:
        """Filled positions where steps begin, for a prefix and a picture of so many positions."""
        last = prefix + picture - 1 - (self.steps or 1)
        if self.at is not None and not prefix <= self.at <= last:
            raise OptionError(f"with {self.steps or 1} steps, at must be {prefix} to {last} positions, got {self.at}")
        return self.at if self.at is not None else prefix

    def count(self, begin: int, prefix: int, picture: int) -> int:
        """Steps a repeat."""
        left = prefix + picture - 1 - begin
        return left if self.steps is None else min(self.steps, left)


class Subject(Protocol):
    """Something that makes pictures."""

    @property
    def picture_tokens(self) -> int:
        """N."""

    def describe(self) -> dict[str, Any]:
        """What it is, for the report."""

    def run(self, plan: Plan) -> Iterator[Timing]:
        """Make a picture, or the part of one that the plan says."""

    def bytes_per_step(self, plan: Plan) -> int | None:
        """Bytes of weights and cache that a step of the plan reads, on average; None where that is not known."""

    def read_bandwidth(self) -> float | None:
        """Bytes a second that they could come at; None where that cannot be measured."""

    def shared_bytes(self) -> int:
        """As `Backend.shared_bytes`."""


class BundleSubject:
    """A bundle with random pictures and texts: what they show changes no time.

    Args:
        on_device: False draws on the host where the device could.
    """

    def __init__(self, editor: Editor, sampling: Sampling | None = None, on_device: bool = True) -> None:
        self.editor, self.sampling = editor, sampling or editor.default_sampling
        self.on_device = on_device
        self._rng = np.random.default_rng(0)
        self._scheduler: Scheduler | None = None

    @property
    def picture_tokens(self) -> int:
        return self.editor.picture_tokens

    @property
    def rows(self) -> int:
        """Of the decoder."""
        return 2 if self.sampling.guided else 1

    def describe(self) -> dict[str, Any]:
        manifest = self.editor.bundle.manifest
        return {
            "name": self.editor.bundle.folder.name,
            "backend": self.editor.backend.name,
            "bundle": self.editor.bundle.fingerprint,
            "precision": manifest.precision,
            "kv_cache": manifest.kv_cache,
            "dialect": manifest.dialect,
            "rows": self.rows,
            "device_memory": self.editor.backend.memory_in_use(),
            "sampling_head": self.on_device and names.SAMPLER in manifest.parts,
        }

    def bytes_per_step(self, plan: Plan) -> int | None:
        manifest, device = self.editor.bundle.manifest, self.editor.backend.device
        weights = manifest.model.step_weight_bytes.get(device)
        if weights is None:
            return None
        prefix = self._prefix_length()
        begin = plan.begin(prefix, self.picture_tokens)
        filled = begin + plan.count(begin, prefix, self.picture_tokens) / 2
        return weights + int(self.rows * filled * cache_bytes_per_position(manifest))

    def read_bandwidth(self) -> float | None:
        return self.editor.backend.read_bandwidth()

    def shared_bytes(self) -> int:
        return self.editor.backend.shared_bytes()

    def _prefix_length(self) -> int:
        return self.picture_tokens + (self.editor.model.text_tokens or 0)

    def run(self, plan: Plan) -> Iterator[Timing]:
        parts, model, editor = self.editor.bundle.manifest.parts, self.editor.model, self.editor
        states = self._rng.standard_normal((1, model.text_tokens or 0, model.text_dim or 0)).astype(np.float32)
        picture = self._tokens(1, self.picture_tokens)
        if names.TEXT_ENCODER in parts:
            seconds, states = _timed(lambda: editor.encode_text(["make the ball red"]))
            yield "text", seconds
        if names.VQ_ENCODER in parts:
            pixels = self._rng.uniform(-1, 1, (1, 3, editor.image_size, editor.image_size)).astype(np.float32)
            seconds, picture = _timed(lambda: editor.encode_pixels(pixels))
            yield "encode", seconds
        if names.DECODER in parts:
            yield from self._decode(plan, states, picture)
        if names.VQ_DECODER in parts:
            yield "pixels", _timed(lambda: editor.decode_tokens(picture))[0]

    def _decode(self, plan: Plan, states: NDArray[np.float32], picture: NDArray[np.int32]) -> Iterator[Timing]:
        editor, sampling, count = self.editor, self.sampling, self.picture_tokens
        self._scheduler = None  # its memory goes before the next one is made
        begun = time.perf_counter()
        ((inputs,), (other,)) = (editor.inputs(each, picture) for each in (states, -states))
        scheduler = self._scheduler = editor.scheduler(1, sampling.guided, self.on_device)
        context = scheduler.join(sampling.guided)
        scheduler.prefill(Sequence(context, inputs, sampling, sampling.seed, None, count))
        yield "prefill", time.perf_counter() - begun
        length = self._prefix_length()
        begin = plan.begin(length, count)
        known, drawn = self._tokens(1, count)[0], begin - length
        known[drawn : drawn + 1 + plan.count(begin, length, count)] = -1
        sequence = Sequence(context, other, sampling, sampling.seed, known, count)
        seconds, _ = _timed(lambda: scheduler.prefill(sequence))
        yield NEXT_PREFILL, seconds
        begun = time.perf_counter()
        for step in decode(scheduler, [sequence]):
            now = time.perf_counter()
            if step.drawn and step.position > drawn:  # the first one's come from a chunk
                yield STEP, now - begun
            begun = now

    def _tokens(self, rows: int, count: int) -> NDArray[np.int32]:
        size = self.editor.model.codebook_size or self.editor.model.vocab_size or 1
        return self._rng.integers(0, size, (rows, count), np.int32)


def measure(
    subjects: Several[Subject],
    plan: Plan,
    on_repeat: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure subjects in turns.

    Returns:
        a JSON document of the first subject: `stages` (median, least and largest ms of each), `p50`, `p95` and `p99`
        (ms a decode step, over all steps of all repeats), `tokens_per_second`, `time_to_first_token_ms`,
        `seconds_per_picture`, `bytes_per_step`, `read_bandwidth` (bytes/s, measured), `percent_of_bandwidth`,
        `peak_memory` (bytes, of the process, every page counted once) and `peak_resident` (as the system counts, a
        shared page once a row), both of the host; `device_memory` (bytes, what is taken of the GPU's memory when the
        runs are done, by all that uses it; None on a CPU, and where CUDA does not tell). With several subjects also
        `others`, such documents of theirs, and `ratios`: how many times faster the first one is than each other, by
        stage and a step, paired repeat by repeat.
    """
    runs: list[list[Run]] = [[] for _ in subjects]
    twice = 0
    for repeat in range(plan.warmup + plan.repeats):
        order = range(len(subjects)) if repeat % 2 == 0 else reversed(range(len(subjects)))
        for n in order:
            stages: Run = {}
            for stage, seconds in subjects[n].run(plan):
                stages.setdefault(stage, []).append(seconds)
            twice = max(twice, subjects[n].shared_bytes())  # the subject's cache is full now
            if repeat >= plan.warmup:
                runs[n].append(stages)
        on_repeat(repeat + 1, plan.warmup + plan.repeats)
    # Before the bandwidth is measured, which takes memory too.
    peak = {"peak_memory": peak_memory_bytes(twice), "peak_resident": peak_resident_bytes()}
    bandwidth = subjects[0].read_bandwidth()
    documents = [_document(subject, plan, own, bandwidth) for subject, own in zip(subjects, runs, strict=True)]
    report: dict[str, Any] = {"version": __version__, "machine": description(), **documents[0], **peak}
    if len(documents) > 1:
        report["others"] = documents[1:]
        report["ratios"] = [_ratios(runs[0], other) for other in runs[1:]]
    return report


def _document(subject: Subject, plan: Plan, runs: list[Run], bandwidth: float | None) -> dict[str, Any]:
    steps = [seconds for run in runs for seconds in run.get(STEP, [])]
    names_of_stages = [stage for stage in runs[0] if stage != STEP]
    stages = {stage: _spread([sum(run[stage]) for run in runs]) for stage in names_of_stages}
    document: dict[str, Any] = {
        **subject.describe(),
        "repeats": plan.repeats,
        "warmup": plan.warmup,
        "picture_tokens": subject.picture_tokens,
    }
    if steps:
        count = subject.picture_tokens - 1
        # A picture's steps, from those measured where they are not all.
        stages[DECODE] = _spread([count * sum(run[STEP]) / len(run[STEP]) for run in runs])
        milliseconds = 1e3 * np.asarray(steps)
        document |= {f"p{q}": float(np.percentile(milliseconds, q)) for q in (50, 95, 99)}
        document["steps"], document["at"] = len(runs[0][STEP]), plan.at
        document["tokens_per_second"] = len(steps) / sum(steps)
        document["time_to_first_token_ms"] = sum(
            spread["median_ms"] for stage, spread in stages.items() if stage in ("text", "encode", "prefill")
        )
        read = subject.bytes_per_step(plan)
        document["bytes_per_step"], document["read_bandwidth"], document["percent_of_bandwidth"] = read, bandwidth, None
        if read is not None and bandwidth is not None:
            document["percent_of_bandwidth"] = 100 * read / (document["p50"] / 1e3) / bandwidth
    document["stages"] = stages
    document["seconds_per_picture"] = (
        sum(spread["median_ms"] for stage, spread in stages.items() if stage != NEXT_PREFILL) / 1e3
    )
    return document


def _spread(seconds: list[float]) -> dict[str, float]:
    values = 1e3 * np.asarray(seconds)
    return {"median_ms": float(np.median(values)), "min_ms": float(values.min()), "max_ms": float(values.max())}


def _ratios(first: list[Run], other: list[Run]) -> dict[str, dict[str, float]]:
    """By stage, how many times as long the other took, over the repeats."""
    found = {}
    for stage in first[0]:
        if stage in other[0]:
            pairs = [float(np.median(b[stage]) / np.median(a[stage])) for a, b in zip(first, other, strict=True)]
            found[stage] = {"median": float(np.median(pairs)), "min": min(pairs), "max": max(pairs)}
    return found


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = call()
    return time.perf_counter() - begun, result


def printed(report: dict[str, Any], as_json: bool) -> str:
    """The report as JSON in one line, or as a table; in a pipe, where programs read, that comes behind the table."""
    document = json.dumps(report)
    if as_json:
        return document
    return "\n".join([*lines(report), *([] if sys.stdout.isatty() else [document])])


def lines(report: dict[str, Any]) -> Iterator[str]:
    """A report for people."""
    for n, document in enumerate([report, *report.get("others", [])]):
        yield "" if n else report["machine"]
        what = "  ".join(str(document[key]) for key in ("name", "backend", "precision") if key in document)
        yield f"{what}  {document['repeats']} runs after {document['warmup']} to warm up"
        for stage, spread in document["stages"].items():
            yield f"{stage:>12} {spread['median_ms']:10.2f} ms   ({spread['min_ms']:.2f} to {spread['max_ms']:.2f})"
        yield f"{'picture':>12} {1e3 * document['seconds_per_picture']:10.2f} ms"
        if "p50" in document:
            yield (
                f"a step: p50 {document['p50']:.3f} ms, p95 {document['p95']:.3f} ms, p99 {document['p99']:.3f} ms; "
                f"{document['tokens_per_second']:.1f} tokens/s; "
                f"first token after {document['time_to_first_token_ms']:.1f} ms"
            )
            if document["percent_of_bandwidth"] is not None:
                yield (
                    f"a step reads {document['bytes_per_step'] / 1e6:.1f} MB: {document['percent_of_bandwidth']:.0f} % "
                    f"of what {document['read_bandwidth'] / 1e9:.1f} GB/s allow"
                )
    for document, ratios in zip(report.get("others", []), report.get("ratios", [])):
        yield f"{report['name']} against {document['name']}, paired:"
        for stage, ratio in ratios.items():
            yield f"{stage:>12} {ratio['median']:8.2f} times as fast   ({ratio['min']:.2f} to {ratio['max']:.2f})"
    if report["peak_memory"] is not None:
        yield (
            f"peak memory of the process {report['peak_memory'] / 2**20:.0f} MiB "
            f"({report['peak_resident'] / 2**20:.0f} MiB as the system counts pages that rows share)"
        )
