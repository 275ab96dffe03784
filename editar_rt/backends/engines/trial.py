"""The first run of engines that were built without a GPU: its result is kept beside them, for each machine.

Such engines are compared with the bundle's self-test when they are loaded for the first time on a GPU (`measure.gate`
does it). The result is a file for each GPU, driver and version of the library. Engines that failed are refused until
they are built again; where the file cannot be written, they are compared at every load.
"""

from __future__ import annotations

import datetime
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from editar_rt.backends.engines.folder import BUILD_NAME, BuildInfo, rebuild_command
from editar_rt.bundle.compare import Comparison
from editar_rt.bundle.folder import Bundle, file_digest
from editar_rt.errors import BackendError, EditarError
from editar_rt.files import placing, read_regular

FORMAT, MAX_BYTES = "editar-trial", 1 << 20
log = logging.getLogger("editar_rt")


class Trial:
    """What is known of engines on this machine.

    Args:
        machine: facts that a result holds for: gpu, compute_capability, driver, tensorrt.

    Raises:
        BackendError: the engines failed here before.
    """

    def __init__(self, bundle: Bundle, folder: Path, info: BuildInfo, machine: dict[str, str]) -> None:
        self._folder, self._machine = folder, machine
        name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", machine[key]) for key in ("gpu", "driver", "tensorrt"))
        self.path = folder / f"tried-{name}.json"
        self._build = file_digest(folder / BUILD_NAME).sha256
        found = self._read()
        self.is_needed = not info.tried and found is None
        """Whether the engines have not run on this machine."""
        if found is not None and not found["holds"]:
            raise BackendError(
                f"the engines in {folder} failed the comparison with the exporting machine on {machine['gpu']} "
                f"({self.path.name}); run: {rebuild_command(bundle, info.target)}, or delete that file to try again"
            )

    def _read(self) -> dict[str, Any] | None:
        """The result of this machine and these engines; None without one."""
        try:
            found = json.loads(read_regular(self.path, MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(found, dict) or not isinstance(found.get("holds"), bool):
            return None
        expected = {"format": FORMAT, "build": self._build, **self._machine}
        return found if all(found.get(key) == value for key, value in expected.items()) else None

    def keep(self, compared: Sequence[Comparison]) -> None:
        """Write the result."""
        document = {
            "format": FORMAT,
            "build": self._build,
            **self._machine,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "holds": all(each.holds for each in compared),
            "parity": [entry(each) for each in compared],
        }
        self.is_needed = False
        try:
            with placing(self.path, EditarError) as partial:
                partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        except (OSError, EditarError) as error:
            log.warning("%s cannot be written (%s), so the engines are compared at every load", self.path, error)


def entry(compared: Comparison) -> dict[str, Any]:
    """A comparison of an engine as a JSON object."""
    found = compared.to_json()
    return {"engine": found.pop("part"), **found}
