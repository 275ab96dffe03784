"""ONNX Runtime's usage data: refused before anything imports it."""

from __future__ import annotations

import os

VARIABLE, REFUSED = "ORT_DISABLE_TELEMETRY", "1"


def refuse_telemetry() -> None:
    """Keep ONNX Runtime from collecting usage data in this process, unless the user has decided himself.

    Its wheels write files below the home folder when they are imported, look up a host, and start a thread whose end a
    forked process waits for in vain. Only the environment, before the first import, prevents that; this is the one
    place where the library sets a variable of it.
    """
    os.environ.setdefault(VARIABLE, REFUSED)
