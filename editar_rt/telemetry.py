"""Disables ONNX Runtime's telemetry before it is imported."""

from __future__ import annotations

import os

VARIABLE, REFUSED = "ORT_DISABLE_TELEMETRY", "1"


def refuse_telemetry() -> None:
    """Keep ONNX Runtime from collecting usage data in this process, unless the user has set the variable.

    On import, its wheels write files into the home folder, look up a host, and start a thread that a forked process
    waits for forever. Only the environment can prevent this, before the first import. This is the only environment
    variable that the library sets.
    """
    os.environ.setdefault(VARIABLE, REFUSED)
