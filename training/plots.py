"""Learning curves of a run, as a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

# Panels: title, beginning of the names it shows, whether the axis is logarithmic.
PANELS = (
    ("loss", ("loss", "distillation"), True),
    ("PSNR of validation pictures, dB", ("validation_psnr",), False),
    ("SSIM of validation pictures", ("validation_ssim",), False),
    ("share of codebook rows in use", ("codebook_used",), False),
    ("texts with every slot right", ("all_slots_right", "validation_all_slots_right"), False),
    ("changed tokens predicted right (all tokens, in translations)", ("changed_right_",), False),
)


def read_log(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """(steps, values) of every number in a `log.jsonl`."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        for name, value in entry.items():
            if name not in ("step", "seconds") and isinstance(value, int | float):
                steps, values = series.setdefault(name, ([], []))
                steps.append(entry["step"])
                values.append(value)
    return series


def plot_log(path: Path, output: Path) -> None:
    """One panel for each of `PANELS` that the log has numbers for; written beside and renamed into place."""
    from matplotlib.figure import Figure

    series = read_log(path)
    panels = [
        (title, names, log)
        for title, beginnings, log in PANELS
        if (names := [n for n in series if n.startswith(beginnings)])
    ]
    figure = Figure(figsize=(6.4 * len(panels), 4.2), layout="constrained")
    for axis, (title, names, log) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in names:
            steps, values = (np.asarray(x) for x in series[name])
            label = name.removeprefix("changed_right_").replace("_", " ")
            axis.plot(steps, values, label=label, linewidth=1.3, marker="." if len(steps) < 20 else None)
        axis.set(title=title, xlabel="step", yscale="log" if log else "linear")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    partial = output.with_name(output.name + ".partial")
    figure.savefig(partial, format="png", dpi=110)
    partial.replace(output)
