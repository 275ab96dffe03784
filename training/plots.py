"""Learning curves of runs, and what guidance does, as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from editar_rt.files import placing
from training.errors import TrainingError
from training.loop import log_lines

# Panels: title, beginning of the names it shows, whether the axis is logarithmic.
PANELS = (
    ("loss", ("loss", "distillation", "validation_loss", "seen_loss"), True),
    ("PSNR of validation pictures, dB", ("validation_psnr",), False),
    ("SSIM of validation pictures", ("validation_ssim",), False),
    ("rFID", ("validation_rfid",), False),
    ("share of codebook rows in use", ("codebook_used",), False),
    ("texts with every slot right", ("all_slots_right", "validation_all_slots_right"), False),
    ("changed tokens predicted right (all tokens, in translations)", ("changed_right_",), False),
    ("the same in validation", ("validation_right_",), False),
)

COMPARED = ("loss", "changed_right_", "validation_")  # beginnings of the numbers that runs are compared by


def read_log(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """(steps, values) of every number in a `log.jsonl`."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for entry in log_lines(path):
        for name, value in entry.items():
            if name not in ("step", "seconds") and isinstance(value, int | float):
                steps, values = series.setdefault(name, ([], []))
                steps.append(entry["step"])
                values.append(value)
    return series


def plot_log(path: Path, output: Path) -> None:
    """One panel for each of `PANELS` that the log has numbers for; written beside and renamed into place."""
    series = read_log(path)
    lines = {
        title: [
            (n.removeprefix("changed_right_").removeprefix("validation_right_").replace("_", " "), *series[n])
            for n in series
            if n.startswith(names)
        ]
        for title, names, _ in PANELS
    }
    logarithmic = {title for title, _, log in PANELS if log}
    draw({title: found for title, found in lines.items() if found}, logarithmic, output)


def plot_runs(paths: dict[str, Path], output: Path) -> None:
    """Logs of several runs over each other: a panel for every number that all of them have and `COMPARED` names.

    Args:
        paths: the logs by the names of their runs.
    """
    runs = {name: read_log(path) for name, path in paths.items()}
    everywhere = set.intersection(*(set(series) for series in runs.values()))
    lines = {}
    for number in sorted(n for n in everywhere if n.startswith(COMPARED)):
        span = 5 if min(len(series[number][0]) for series in runs.values()) >= 20 else 1  # alike for every run
        title = number.replace("changed_right_", "predicted right: ").replace("_", " ")
        lines[title] = [(name, *smoothed(*series[number], span)) for name, series in runs.items()]
    draw(lines, set(), output)


def plot_guidance(report: dict[str, Any], output: Path) -> None:
    """A report of `training.evaluate.guidance_sweep`: success and what an edit leaves alone, over the scale."""
    results = report["scales"]
    scales = [r["cfg_scale"] for r in results]
    success = [(k, scales, [100 * r["kinds"][k]["success"] for r in results]) for k in results[0]["kinds"]]
    groups = [g for g in ("edits", "translations") if f"{g}_success" in results[0]]
    success += [(f"all {g}", scales, [100 * r[f"{g}_success"] for r in results]) for g in groups]
    edits = [k for k in results[0]["kinds"] if results[0]["kinds"][k]["outside_psnr"] is not None]
    outside = [(k, scales, [r["kinds"][k]["outside_psnr"] for r in results]) for k in edits]
    draw({"success, %": success, "PSNR of what an edit leaves alone, dB": outside}, set(), output, "guidance scale η")


def smoothed(steps: list[float], values: list[float], span: int) -> tuple[list[float], list[float]]:
    """Means over `span` values."""
    means = np.convolve(values, np.ones(span) / span, mode="valid")
    return steps[span - 1 :], means.tolist()


def draw(
    panels: dict[str, list[tuple[str, list[float], list[float]]]],
    logarithmic: set[str],
    output: Path,
    along: str = "step",
) -> None:
    """Panels of labelled lines as a PNG, three a row; written beside and renamed into place.

    Args:
        panels: (label, x, y) of every line, by the panel's title.
        along: what the x axis counts.
    """
    from matplotlib.figure import Figure

    if not panels:
        raise TrainingError("the logs have no number to draw in common; give runs of one model that have begun to log")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.4 * columns, 4.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (title, lines) in zip(axes, panels.items()):
        for label, x, y in lines:
            marker = "." if len(x) < 20 else None
            # Means are thick, in colours that the cycle of ten lacks.
            mean = {"all edits": "black", "all translations": "darkgrey"}.get(label)
            axis.plot(x, y, label=label, linewidth=2.6 if mean else 1.3, marker=marker, color=mean)
        axis.set(title=title, xlabel=along, yscale="log" if title in logarithmic else "linear")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    with placing(output, TrainingError) as partial:
        figure.savefig(partial, format="png", dpi=110)
