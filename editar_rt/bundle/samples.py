"""`samples.json`, a list of sample pictures: in a bundle, or for the calibration of an int8 cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.manifest import check_strings
from editar_rt.errors import BundleError
from editar_rt.text.prompts import TASKS

LIST = "samples.json"
FOLDER = "samples"  # in a bundle


class Sample(NamedTuple):
    """A picture with a task and an instruction."""

    picture: str
    """A path in the bundle; the file is next to the list."""
    task: str
    instruction: str


def parse_samples(text: str, path: Path) -> list[Sample]:
    """Parse a list of at least one sample.

    Args:
        path: path of the list, for messages.

    Raises:
        BundleError: the text is not a list of samples.
    """
    try:
        document = json.loads(text)
        check_strings(document, path.name)
        listed = [Sample(*(_text(entry[field]) for field in Sample._fields)) for entry in document["samples"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path} is not a list of samples ({error!r}): pictures, tasks and instructions") from None
    if not listed or not {sample.task for sample in listed} <= set(TASKS):
        raise BundleError(f"{path} must list at least one sample, of tasks among {', '.join(TASKS)}")
    return listed


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not text")
    return value


def samples_text(samples: Sequence[Sample]) -> str:
    """The list as the text of its file."""
    return json.dumps({"samples": [sample._asdict() for sample in samples]}, indent=1) + "\n"


def read_samples(bundle: Bundle) -> list[tuple[Path, str, str]]:
    """(picture, task, instruction) of each sample picture in a bundle.

    Raises:
        BundleError: the bundle has no samples, or the list is invalid.
    """
    name = bundle.manifest.samples
    if name is None:
        raise BundleError(f"the bundle {bundle.folder} contains no sample pictures; use: editar edit")
    try:
        listed = parse_samples(bundle.path(name).read_text(encoding="utf-8"), bundle.folder / name)
    except UnicodeDecodeError:
        raise BundleError(f"{bundle.folder / name} is not UTF-8 text; export the bundle again") from None
    except BundleError as error:
        raise BundleError(f"{error}; export the bundle again") from None
    return [(bundle.path(sample.picture), sample.task, sample.instruction) for sample in listed]
