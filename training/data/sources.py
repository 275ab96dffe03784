"""A mixture of data sets as a TOML file says it; `editar.toml` beside this module is the published one.

[[source]]
format = "pipe"        # one of `training.data.layouts.LAYOUTS`; recognized by its columns if left out
path = "PIPE"          # relative to this file
share = 0.25           # of the samples, in any unit
name = "pipe"          # optional: what samples say they come from
split = "train"        # optional
annotations = "…"      # optional: folder of SEED-Data-Edit's JSON lines
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.layouts import RowDataset, open_dataset
from training.data.mixture import Mixture
from training.data.records import DataError
from training.data.rows import ANNOTATIONS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": str,
    "path": str,
    "share": (int, float),
    "name": str,
    "split": str,
    "annotations": str,
}


@dataclass(frozen=True)
class Source:
    """One data set of a mixture, not yet opened."""

    path: Path
    share: float = 1.0
    format: str | None = None
    name: str | None = None
    split: str | None = None
    annotations: str = ANNOTATIONS

    def open(self, size: int | None = None, in_order: bool = False) -> RowDataset:
        return open_dataset(self.path, self.format, self.name, self.split, self.annotations, size, in_order)


@dataclass(frozen=True)
class Plan:
    """The data sets of a mixture; the seed of its order is the recipe's."""

    sources: tuple[Source, ...]

    def open(self, size: int | None = None, in_order: bool = False) -> list[RowDataset]:
        """The data sets, each with a name of its own; pictures are fitted to `size` pixels where it is given.

        Args:
            in_order: whether records are read in about their order (`training.data.rows.open_rows`).

        Raises:
            DataError: one is missing, or two have one name.
        """
        datasets = [source.open(size, in_order) for source in self.sources]
        names = [d.name for d in datasets]
        # Names become parts of file names.
        if len(set(names)) < len(names) or any(Path(name).name != name for name in names):
            raise DataError(
                f"data sets need different names without slashes, got {', '.join(names)}; set name in the plan"
            )
        return datasets

    def mixture(self, size: int | None = None, report: Callable[[str], None] = lambda line: None) -> Mixture:
        return Mixture(self.open(size), [s.share for s in self.sources], report)


def read_plan(path: Path, layout: str | None = None) -> Plan:
    """A mixture's TOML file, or any one data set.

    Args:
        layout: of the data set, see `open_dataset`; not for a TOML file.

    Raises:
        DataError: a file that cannot be read, or says something unknown.
    """
    if path.suffix != ".toml":
        return Plan((Source(path, format=layout),))
    if layout is not None:
        raise DataError(f"{path} says the format of each of its data sets itself; leave --format out")
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} is not TOML: {error}") from None
    tables = content.pop("source", None)
    if "seed" in content:
        raise DataError(f"{path} sets seed, but the order of a mixture follows from the recipe's seed; leave it out")
    if content:
        raise DataError(f"{path} sets {', '.join(sorted(content))}; allowed: [[source]]")
    if not isinstance(tables, list) or not tables or not all(isinstance(t, dict) for t in tables):
        raise DataError(f"{path} has no [[source]]")
    return Plan(tuple(_source(path, table) for table in tables))


def _source(path: Path, table: dict[str, Any]) -> Source:
    for field, value in table.items():
        if field not in FIELDS:
            raise DataError(f"{path}: [[source]] sets {field!r}; allowed: {', '.join(FIELDS)}")
        if not isinstance(value, FIELDS[field]) or isinstance(value, bool):
            raise DataError(f"{path}: [[source]] {field} = {value!r} has the wrong type")
    if "path" not in table:
        raise DataError(f"{path}: a [[source]] has no path")
    return Source(**{**table, "path": path.parent / table["path"]})
