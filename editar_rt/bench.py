"""Measures a bundle on this machine: how long each stage takes, how fast tokens come, how much memory it needs."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from editar_rt import names
from editar_rt.editor import Editor
from editar_rt.sampling import Sampling
from editar_rt.version import __version__


def peak_memory_bytes() -> int | None:
    """Peak resident memory of this process; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _spread(seconds: list[float]) -> dict[str, float]:
    values = 1e3 * np.asarray(seconds)
    return {"median_ms": float(np.median(values)), "min_ms": float(values.min()), "max_ms": float(values.max())}


def run_bench(
    editor: Editor,
    repeats: int = 5,
    warmup: int = 1,
    sampling: Sampling | None = None,
    on_repeat: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Time whole edits of a random picture, stage by stage; what the bundle lacks is left out.

    Args:
        repeats: measured runs, after `warmup` unmeasured ones.

    Returns:
        a JSON document: `tokens_per_second`, `p50` and `p95` (ms a decode step, over all steps of all repeats),
        `peak_memory` (bytes), `stages` (median, least and largest ms of each).
    """
    sampling = sampling or editor.default_sampling
    parts, model = editor.bundle.manifest.parts, editor.model
    rng = np.random.default_rng(0)
    states = rng.standard_normal((1, model.text_tokens or 0, model.text_dim or 0)).astype(np.float32)
    condition = rng.integers(0, model.codebook_size or model.vocab_size or 1, (1, editor.picture_tokens), np.int32)
    stages: dict[str, list[float]] = {}
    step_seconds: list[float] = []
    for repeat in range(warmup + repeats):
        if repeat == warmup:
            stages.clear()
            step_seconds.clear()

        def timed(stage: str, call: Callable[[], Any]) -> Any:
            begun = time.perf_counter()
            result = call()
            stages.setdefault(stage, []).append(time.perf_counter() - begun)
            return result

        if names.TEXT_ENCODER in parts:
            states = timed("text", lambda: editor.encode_text(["make the ball red"]))
        if names.VQ_ENCODER in parts:
            pixels = rng.uniform(-1, 1, (1, 3, editor.image_size, editor.image_size)).astype(np.float32)
            condition = timed("encode", lambda: editor.encode_pixels(pixels))  # noqa: B023 - called at once
        if names.DECODER in parts:
            begun = time.perf_counter()
            for position, *_ in editor.steps(states, condition, sampling):
                now = time.perf_counter()
                if position == 0:
                    stages.setdefault("prefill", []).append(now - begun)
                else:
                    step_seconds.append(now - begun)
                begun = now
            stages.setdefault("decode", []).append(sum(step_seconds[-(editor.picture_tokens - 1) :]))
        if names.VQ_DECODER in parts:
            timed("pixels", lambda: editor.decode_tokens(condition))  # noqa: B023
        on_repeat(repeat + 1, warmup + repeats)
    report: dict[str, Any] = {
        "backend": editor.backend.name,
        "machine": f"{platform.machine()} {platform.system()}",
        "version": __version__,
        "bundle": editor.bundle.fingerprint,
        "precision": editor.bundle.manifest.precision,
        "repeats": repeats,
        "warmup": warmup,
        "rows": 2 if sampling.guided else 1,
        "picture_tokens": editor.picture_tokens,
        "stages": {stage: _spread(seconds) for stage, seconds in stages.items()},
        "seconds_per_picture": sum(float(np.median(seconds)) for seconds in stages.values()),
        "peak_memory": peak_memory_bytes(),
    }
    if step_seconds:
        milliseconds = 1e3 * np.asarray(step_seconds)
        report["p50"], report["p95"] = (float(np.percentile(milliseconds, q)) for q in (50, 95))
        report["tokens_per_second"] = len(step_seconds) / sum(step_seconds)
        report["time_to_first_token_ms"] = sum(
            stage["median_ms"] for name, stage in report["stages"].items() if name in ("text", "encode", "prefill")
        )
    return report
