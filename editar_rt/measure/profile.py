"""The time of a decode step by kind of operator, from ONNX Runtime's profiler, and a chart of it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from editar_rt.backends import Settings, make_backend
from editar_rt.bundle.folder import Bundle
from editar_rt.editor import Editor
from editar_rt.errors import BackendError, PictureError
from editar_rt.files import placing
from editar_rt.generation.sampling import Sampling
from editar_rt.measure.bench import STEP, BundleSubject, Plan

PROJECTIONS, HEAD, ATTENTION, NORMALIZATION = (
    "projections, feed-forward",
    "output head",
    "attention, cache",
    "normalization",
)
OTHER, OUTSIDE = "other operations", "sampling, calls"
KINDS = (PROJECTIONS, HEAD, ATTENTION, NORMALIZATION, OTHER, OUTSIDE)
PRODUCTS = {"MatMul", "MatMulNBits"}
ATTENTIONS = {"Attention", "GroupQueryAttention", "TensorScatter", "RotaryEmbedding"}
FORMATS = (".png", ".svg")


def profile_steps(
    bundle: Bundle, device: str, threads: int | None, plan: Plan, sampling: Sampling | None = None
) -> dict[str, float]:
    """Milliseconds of a step by kind of operator: the median over a plan's steps.

    Profiling adds some microseconds per operator, which are included in "sampling, calls".
    """
    with tempfile.TemporaryDirectory() as folder:
        backend = make_backend(bundle, device, Settings(threads, profile=Path(folder)))
        subject = BundleSubject(Editor(bundle, backend), sampling)
        seconds = [s for stage, s in subject.run(plan) if stage == STEP]
        events = json.loads(backend.end_profile().read_text(encoding="utf-8"))
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")[-len(seconds) :]
    nodes = [e for e in events if e["cat"] == "Node" and e["ts"] >= runs[0][0]]
    sums = [dict.fromkeys(KINDS, 0.0) for _ in runs]
    starts = np.asarray([begin for begin, _ in runs])
    for node in nodes:
        sums[int(np.searchsorted(starts, node["ts"], side="right")) - 1][_kind(node)] += node["dur"] / 1e3
    for own, whole in zip(sums, seconds, strict=True):
        own[OUTSIDE] = 1e3 * whole - sum(own.values())
    return {kind: float(np.median([own[kind] for own in sums])) for kind in KINDS}


def _kind(node: dict[str, Any]) -> str:
    operator = str(node["args"].get("op_name"))
    if operator in PRODUCTS:
        return PROJECTIONS if "layers." in str(node["name"]) else HEAD
    if operator in ATTENTIONS:
        return ATTENTION
    return NORMALIZATION if "Normalization" in operator else OTHER


def limit_ms(document: dict[str, Any]) -> float | None:
    """The minimum time of a step at the measured bandwidth, from a benchmark's report; None if unknown."""
    if document.get("percent_of_bandwidth") is None:
        return None
    return 1e3 * float(document["bytes_per_step"]) / float(document["read_bandwidth"])


def check_chart(path: Path, bundles: Iterable[Bundle] = ()) -> None:
    """Check, before the measurement, that a chart can be drawn.

    Args:
        bundles: the bundles whose steps the chart shows.

    Raises:
        PictureError: the name ends neither with .png nor with .svg.
        BackendError: matplotlib is missing, or ONNX Runtime does not run complete steps of a bundle.
    """
    if path.suffix not in FORMATS:
        raise PictureError(f"a chart's name must end with {' or '.join(FORMATS)}, got {path}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise BackendError("charts need matplotlib, which is not installed; run: pip install matplotlib") from None
    for bundle in bundles:
        if bundle.manifest.operators.has_fixed_shapes:
            raise BackendError(
                f"a chart is drawn from ONNX Runtime's profile of a decode step, which {bundle.folder} has not (its "
                f"dialect is {bundle.manifest.dialect}); leave --chart out, or give the bundle that it was "
                "converted from"
            )


def draw_chart(reports: list[tuple[str, dict[str, float], float | None]], path: Path) -> None:
    """Write a chart with a bar for every (name, milliseconds by kind, bandwidth limit in ms or None), atomically."""
    check_chart(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.6 + 0.7 * len(reports)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(reports))
    labels = [name for name, _, _ in reports]
    for kind in KINDS:
        widths = np.asarray([kinds[kind] for _, kinds, _ in reports])
        bars = axes.barh(labels, widths, left=left, label=kind, height=0.6)
        shown = [
            f"{width:.1f}" if width > 0.06 * max(sum(k.values()) for _, k, _ in reports) else "" for width in widths
        ]
        axes.bar_label(bars, shown, label_type="center", fontsize=8, color="white")
        left += widths
    for n, (_, _, limit) in enumerate(reports):
        if limit is not None:
            label = "limit by the measured bandwidth" if n == 0 else None
            axes.plot([limit, limit], [n - 0.4, n + 0.4], color="black", linewidth=2, label=label)
    axes.invert_yaxis()
    axes.set_xlabel("ms per decode step")
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    with placing(path, PictureError) as partial:
        figure.savefig(partial, dpi=150, format=path.suffix[1:])
