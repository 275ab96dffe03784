"""`samples.json`, the list of sample pictures: a bundle carries one, and an int8 cache is calibrated on one."""

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
FOLDER = "samples"  # of a bundle


class Sample(NamedTuple):
    """One picture and what to do with it."""

    picture: str
    """A path in the bundle; its name is that of a file beside the list."""
    task: str
    instruction: str


def parse_samples(text: str, path: Path) -> list[Sample]:
    """The samples that a list holds, at least one.

    Args:
        path: of the list, for messages.

    Raises:
        BundleError: it is not such a list.
    """
    try:
        document = json.loads(text)
        check_strings(document, path.name)
        listed = [Sample(*(_text(entry[field]) for field in Sample._fields)) for entry in document["samples"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path} is not a list of samples ({error!r}): pictures, tasks and instructions") from None
    if not listed or not {sample.task for sample in listed} <= set(TASKS):
        raise BundleError(f"{path} must list samples of the tasks {', '.join(TASKS)}, at least one")
    return listed


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not text")
    return value


def samples_text(samples: Sequence[Sample]) -> str:
    """The list as its file has it."""
    return json.dumps({"samples": [sample._asdict() for sample in samples]}, indent=1) + "\n"


def read_samples(bundle: Bundle) -> list[tuple[Path, str, str]]:
    """(picture, task, instruction) of the sample pictures that a bundle carries.

    Raises:
        BundleError: it carries none, or a list that is not one.
    """
    name = bundle.manifest.samples
    if name is None:
        raise BundleError(f"the bundle {bundle.folder} carries no sample pictures; use: editar edit")
    try:
        listed = parse_samples(bundle.path(name).read_text(encoding="utf-8"), bundle.folder / name)
    except UnicodeDecodeError:
        raise BundleError(f"{bundle.folder / name} is not UTF-8 text; export the bundle again") from None
    except BundleError as error:
        raise BundleError(f"{error}; export the bundle again") from None
    return [(bundle.path(sample.picture), sample.task, sample.instruction) for sample in listed]
