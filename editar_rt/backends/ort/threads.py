"""How many threads a session on the CPU has, and how long they wait for work before they sleep."""

from __future__ import annotations

from typing import Any

from editar_rt import machine

# How long a thread without work keeps its core, in microseconds. Most waits within a step of the decoder are shorter,
# so that free cores lose nothing; the default, about a millisecond, takes cores from whoever needs them, be it another
# part's threads. docs/performance.md has the measurements.
SPIN_US = 50
TAKES_DURATION = (1, 26)  # the version of ONNX Runtime from which on the wait can be bounded


def set_threads(options: Any, version: str, threads: int | None) -> None:
    """Set a session's threads.

    Args:
        options: ONNX Runtime's `SessionOptions`, changed.
        version: of ONNX Runtime.
        threads: that compute, the caller's among them; None is as many as this process has cores to itself.
    """
    options.intra_op_num_threads = threads or machine.thread_count()
    # Between two runs nothing waits for work: the loop draws tokens there, or another part computes.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if tuple(map(int, version.split(".")[:2])) >= TAKES_DURATION:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    elif machine.is_limited():
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
