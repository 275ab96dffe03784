"""`editar` with an engine that fails or hangs after some steps, or with a full disk.

Run by `python -m tests.server.faulty HOW serve …`.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import time
from typing import Any

from editar_rt.__main__ import main
from editar_rt.batch import Batch

STEPS = 20  # after the warm-up's

how = sys.argv.pop(1)
made = [0]
step = Batch.step


def faulty(self: Batch) -> Any:
    made[0] += 1
    if how == "slow":
        time.sleep(0.03)
    elif made[0] > STEPS and how == "raises":
        raise RuntimeError("the device is lost")
    elif made[0] > STEPS and how == "hangs":
        time.sleep(3600)
    return step(self)


def no_space(self: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


if how == "full":
    tempfile.SpooledTemporaryFile.rollover = no_space  # type: ignore[method-assign]
Batch.step = faulty  # type: ignore[method-assign]
main()
