"""Sets the number of threads of a CPU session, and how long they spin before they sleep."""

from __future__ import annotations

from typing import Any

from editar_rt import machine

# Microseconds that an idle thread spins. Most waits within a decode step are shorter, so nothing is lost on idle cores;
# the default of about a millisecond takes cores from other threads, including those of other parts.
# docs/performance.md has the measurements.
SPIN_US = 50
TAKES_DURATION = (1, 26)  # first version of ONNX Runtime with this option


def set_threads(options: Any, version: str, threads: int | None) -> None:
    """Set a session's threads.

    Args:
        options: ONNX Runtime's `SessionOptions`, changed.
        version: ONNX Runtime's version.
        threads: number of computing threads, including the caller's; None means `machine.thread_count()`.
    """
    options.intra_op_num_threads = threads or machine.thread_count()
    # Do not spin between two runs, while the loop samples or another part computes.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if tuple(map(int, version.split(".")[:2])) >= TAKES_DURATION:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    elif machine.is_limited():
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
