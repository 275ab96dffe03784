"""Benchmarks: the time of every stage of a picture, and a decode step compared with the memory bandwidth.

A `Subject` makes pictures: here a bundle, in `export.reference_bench` the PyTorch model. Several subjects on one device
take turns, in an order that alternates between repeats. Other load on the machine then affects all of them equally, so
their ratios are reliable even if their milliseconds are not.

The time of a decode step should follow from the bytes it reads: all weights once, and the cached positions of every
row. The report has these bytes, and the achieved share of the machine's read bandwidth.
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
from editar_rt.generation.strategy import Jacobi, Speculate
from editar_rt.machine import description, peak_memory_bytes, peak_resident_bytes
from editar_rt.measure.memory import cache_bytes_per_position
from editar_rt.version import __version__

STEP = "step"
DECODE = "decode"
NEXT_PREFILL = "next_prefill"  # of a second instruction on the same picture; not included in the time of a picture
Timing = tuple[str, float]  # a stage, or STEP, and its seconds
Run = dict[str, list[float]]  # the timings of one repeat, by stage


@dataclass(frozen=True)
class Plan:
    """The part of a picture to measure, and how often.

    Raises:
        OptionError: a number is out of range.
    """

    repeats: int = 5
    warmup: int = 1  # unmeasured runs before them
    at: int | None = None  # cached positions at the first step; None means right after the prefill
    steps: int | None = None  # decode steps per repeat; None means to the end of the picture

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.warmup < 0 or (self.steps is not None and self.steps < 1):
            raise OptionError(
                f"repeats and steps must be 1 or more and warmup 0 or more, got {self.repeats}, {self.steps} and "
                f"{self.warmup}"
            )

    def begin(self, prefix: int, picture: int) -> int:
        """Cached positions at the first step, for a prefix and a picture of the given numbers of positions."""
        last = prefix + picture - 1 - (self.steps or 1)
        if self.at is not None and not prefix <= self.at <= last:
            raise OptionError(f"with {self.steps or 1} steps, at must be {prefix} to {last} positions, got {self.at}")
        return self.at if self.at is not None else prefix

    def positions(self, prefix: int, picture: int) -> range:
        """The positions that the steps of a repeat feed; arguments and errors as for `begin`."""
        begin, end = self.begin(prefix, picture), prefix + picture - 1
        return range(begin, end if self.steps is None else min(begin + self.steps, end))

    def mean_cached(self, prefix: int, picture: int) -> float:
        """Mean number of cached positions over the steps of a repeat."""
        fed = self.positions(prefix, picture)
        return fed.start + len(fed) / 2


class Subject(Protocol):
    """A model that makes pictures."""

    @property
    def picture_tokens(self) -> int:
        """N."""

    def describe(self) -> dict[str, Any]:
        """Its description for the report."""

    def run(self, plan: Plan) -> Iterator[Timing]:
        """Make a picture, or the part of one given by the plan."""

    def bytes_per_step(self, plan: Plan) -> int | None:
        """Average bytes of weights and cache that a step of the plan reads; None if unknown."""

    def read_bandwidth(self) -> float | None:
        """Read bandwidth of the memory, bytes per second; None if it cannot be measured."""

    def shared_bytes(self) -> int:
        """As `Backend.shared_bytes`."""


class BundleSubject:
    """A bundle with random pictures and texts; the content does not affect the time.

    Args:
        on_device: False samples on the host even if the device can.
        speculate: as in `Request`. The time of a step is then that of a token.
    """

    def __init__(
        self,
        editor: Editor,
        sampling: Sampling | None = None,
        on_device: bool = True,
        speculate: Speculate | None = None,
    ) -> None:
        self.editor, self.sampling = editor, Sampling.checked(sampling, editor.default_sampling)
        self.on_device, self.speculate = on_device, speculate
        self._taken = self._passes = 0  # tokens and passes of all runs
        self._rng = np.random.default_rng(0)
        self._scheduler: Scheduler | None = None

    @property
    def picture_tokens(self) -> int:
        return self.editor.picture_tokens

    @property
    def rows(self) -> int:
        """Number of rows of the decoder."""
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
            "speculate": self.speculate,
            "tokens_per_pass": self._taken / self._passes if self._passes else None,
        }

    def bytes_per_step(self, plan: Plan) -> int | None:
        manifest, device = self.editor.bundle.manifest, self.editor.backend.device
        weights = manifest.model.step_weight_bytes.get(device)
        if weights is None or self.speculate is not None:
            return None
        filled = plan.mean_cached(self.editor.prefix_length, self.picture_tokens)
        return weights + int(self.rows * filled * cache_bytes_per_position(manifest))

    def read_bandwidth(self) -> float | None:
        return self.editor.backend.read_bandwidth()

    def shared_bytes(self) -> int:
        return self.editor.backend.shared_bytes()

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
        self._scheduler = None  # free its memory before the next one is allocated
        begun = time.perf_counter()
        ((inputs,), (other,)) = (editor.inputs(each, picture) for each in (states, -states))
        scheduler = self._scheduler = editor.scheduler(1, sampling.guided, self.on_device)
        context = scheduler.join(sampling.guided)
        scheduler.prefill(Sequence(context, inputs, sampling, sampling.seed, None, count))
        yield "prefill", time.perf_counter() - begun
        fed = plan.positions(editor.prefix_length, count)
        known, drawn = self._tokens(1, count)[0], fed.start - editor.prefix_length
        known[drawn : drawn + 1 + len(fed)] = -1
        speculation = scheduler.speculation(self.speculate, Jacobi(picture[0]))
        sequence = Sequence(context, other, sampling, sampling.seed, known, count, speculation)
        seconds, _ = _timed(lambda: scheduler.prefill(sequence))
        yield NEXT_PREFILL, seconds
        taken: list[float] = []  # seconds until each token of the last pass
        begun, passes = time.perf_counter(), 0
        for step in decode(scheduler, [sequence]):
            now = time.perf_counter()
            if sequence.passes != passes:
                yield from ((STEP, sum(taken) / len(taken)) for _ in taken)
                self._taken, self._passes = self._taken + len(taken), self._passes + bool(taken)
                taken, passes = [], sequence.passes
            if step.drawn and step.position > drawn:  # the first token comes from a chunk
                taken.append(now - begun)
            begun = now
        yield from ((STEP, sum(taken) / len(taken)) for _ in taken)
        self._taken, self._passes = self._taken + len(taken), self._passes + bool(taken)

    def _tokens(self, rows: int, count: int) -> NDArray[np.int32]:
        size = self.editor.model.codebook_size or self.editor.model.vocab_size or 1
        return self._rng.integers(0, size, (rows, count), np.int32)


def measure(
    subjects: Several[Subject],
    plan: Plan,
    on_repeat: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure subjects alternately.

    Returns:
        a JSON document of the first subject: `stages` (median, minimum and maximum ms of each), `p50`, `p95` and `p99`
        (ms per decode step, over all steps of all repeats), `tokens_per_second`, `time_to_first_token_ms`,
        `seconds_per_picture`, `bytes_per_step`, `read_bandwidth` (bytes/s, measured), `percent_of_bandwidth`;
        `peak_memory` (bytes of host memory of the process, every page counted once) and `peak_resident` (as reported by
        the system, a shared page counted once per row); `device_memory` (bytes of GPU memory in use after the runs, by
        all processes; None on a CPU, and if CUDA does not report it). With several subjects also `others`, the
        documents of the other subjects, and `ratios`: how many times faster the first subject is than each other, by
        stage and for a step, paired by repeat.
    """
    runs: list[list[Run]] = [[] for _ in subjects]
    twice = 0
    for repeat in range(plan.warmup + plan.repeats):
        order = range(len(subjects)) if repeat % 2 == 0 else reversed(range(len(subjects)))
        for n in order:
            stages: Run = {}
            for stage, seconds in subjects[n].run(plan):
                stages.setdefault(stage, []).append(seconds)
            twice = max(twice, subjects[n].shared_bytes())  # now the subject's cache is full
            if repeat >= plan.warmup:
                runs[n].append(stages)
        on_repeat(repeat + 1, plan.warmup + plan.repeats)
    # Before the bandwidth is measured, which also takes memory.
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
        # All steps of a picture, extrapolated if only some were measured.
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
    """By stage, the time of the other divided by the time of the first, over the repeats."""
    ratios = {}
    for stage in first[0]:
        if stage in other[0]:
            pairs = [float(np.median(b[stage]) / np.median(a[stage])) for a, b in zip(first, other, strict=True)]
            ratios[stage] = {"median": float(np.median(pairs)), "min": min(pairs), "max": max(pairs)}
    return ratios


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = call()
    return time.perf_counter() - begun, result


def printed(report: dict[str, Any], as_json: bool) -> str:
    """The report as one line of JSON, or as a table; in a pipe, the JSON follows the table."""
    document = json.dumps(report)
    if as_json:
        return document
    return "\n".join([*lines(report), *([] if sys.stdout.isatty() else [document])])


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The report as text for users."""
    for n, document in enumerate([report, *report.get("others", [])]):
        yield "" if n else report["machine"]
        what = "  ".join(str(document[key]) for key in ("name", "backend", "precision") if key in document)
        yield f"{what}  {document['repeats']} runs after {document['warmup']} warm-up runs"
        for stage, spread in document["stages"].items():
            yield f"{stage:>12} {spread['median_ms']:10.2f} ms   ({spread['min_ms']:.2f} to {spread['max_ms']:.2f})"
        yield f"{'picture':>12} {1e3 * document['seconds_per_picture']:10.2f} ms"
        if "p50" in document:
            yield (
                f"a step: p50 {document['p50']:.3f} ms, p95 {document['p95']:.3f} ms, p99 {document['p99']:.3f} ms; "
                f"{document['tokens_per_second']:.1f} tokens/s; "
                f"first token after {document['time_to_first_token_ms']:.1f} ms"
            )
            if document.get("speculate") is not None and document["tokens_per_pass"]:
                yield f"speculate {document['speculate']}: {document['tokens_per_pass']:.2f} tokens a pass"
            if document["percent_of_bandwidth"] is not None:
                bandwidth = f"{document['percent_of_bandwidth']:.0f} % of {document['read_bandwidth'] / 1e9:.1f} GB/s"
                yield f"a step reads {document['bytes_per_step'] / 1e6:.1f} MB at {bandwidth}, the measured bandwidth"
    for document, ratios in zip(report.get("others", []), report.get("ratios", [])):
        yield f"{report['name']} compared with {document['name']}, paired by run:"
        for stage, ratio in ratios.items():
            yield f"{stage:>12} {ratio['median']:8.2f} times as fast   ({ratio['min']:.2f} to {ratio['max']:.2f})"
    if report["peak_memory"] is not None:
        yield (
            f"peak memory of the process {report['peak_memory'] / 2**20:.0f} MiB "
            f"({report['peak_resident'] / 2**20:.0f} MiB if pages that rows share are counted per row)"
        )
