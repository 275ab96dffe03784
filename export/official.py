"""`python -m export official`: downloads EditAR's released parts from the Hugging Face Hub.

Downloads go to the Hub's cache (`HF_HOME`), can be resumed, and stay there for the next run.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import RepositoryNotFoundError

from editar_rt.errors import EditarError
from training.errors import first_line

TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model")


class DownloadError(EditarError):
    """A file could not be downloaded."""


@dataclass(frozen=True)
class Repository:
    """Where one part is published."""

    part: str
    name: str
    kind: str  # model or dataset
    file: str | None = None  # the only file to take, in any folder; None for a text encoder


REPOSITORIES = (
    Repository("transformer", "JitengMu/CVPR2025_EditAR_release", "dataset", "editar_release.pt"),
    Repository("vq", "peizesun/llamagen_t2i", "model", "vq_ds16_t2i.pt"),
    Repository("text_encoder", "google/flan-t5-xl", "model"),
)


@dataclass(frozen=True)
class Wanted:
    """Files of one repository at one commit."""

    repository: Repository
    commit: str
    licence: str
    files: dict[str, int]  # bytes by path

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    def __str__(self) -> str:
        return (
            f"{self.repository.name}: {len(self.files)} file{'s' * (len(self.files) != 1)}, {_gb(self.bytes)}, "
            f"licence {self.licence}"
        )


@dataclass(frozen=True)
class Parts:
    """The paths of the three parts on disk."""

    transformer: Path
    vq: Path
    text_encoder: Path


def fetch(output: Path, bundle_share: float, report: Callable[[str], None]) -> Parts:
    """Download the missing files.

    Args:
        output: where the bundle will be written, to check the free disk space.
        bundle_share: largest size of the bundle as a share of the downloads.
        report: called with the files to download and their licences.

    Raises:
        DownloadError: no network, a missing file, or too little disk space; finished downloads stay.
    """
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()  # type: ignore[attr-defined]  # public, but not declared so
    wanted = [_look_up(repository) for repository in REPOSITORIES]
    for each in wanted:
        report(str(each))
    missing = {each.repository.part: _missing_bytes(each) for each in wanted}
    check_disk(sum(missing.values()), bundle_share * sum(each.bytes for each in wanted), output)
    report(f"to download: {_gb(sum(missing.values()))} into {huggingface_hub.constants.HF_HUB_CACHE}")
    parts = {}
    for each in wanted:
        paths = [Path(_download(each, name)) for name in each.files]
        # All files of a commit are in one folder; the text encoder's is that of its config.
        parts[each.repository.part] = paths[0].parent if each.repository.file is None else paths[0]
    return Parts(**parts)


def look() -> list[str]:
    """The files that `fetch` would download, one line per repository."""
    return [str(_look_up(repository)) for repository in REPOSITORIES]


def check_disk(download: float, bundle: float, output: Path) -> None:
    """Check the free disk space before the first download."""
    needs: dict[int, tuple[Path, float]] = {}
    for place, size in ((Path(huggingface_hub.constants.HF_HUB_CACHE), download), (output.absolute(), bundle)):
        there = next(p for p in (place, *place.parents) if p.exists())
        device = there.stat().st_dev
        needs[device] = (there, needs.get(device, (there, 0.0))[1] + size)
    for there, size in needs.values():
        free = shutil.disk_usage(there).free
        if size > free:
            raise DownloadError(
                f"the disk of {there} has {_gb(free)} free, but {_gb(size)} are needed; free some space, or choose "
                "another with the environment variable HF_HOME and with -o"
            )


def _look_up(repository: Repository) -> Wanted:
    """List the files to download, without downloading them."""
    try:
        info = huggingface_hub.HfApi().repo_info(
            repository.name, repo_type=repository.kind, files_metadata=True, timeout=30
        )
    except RepositoryNotFoundError:
        raise DownloadError(
            f"the Hub has no {repository.kind} repository {repository.name} (or it requires a login: run hf auth login)"
        ) from None
    except Exception as error:  # including the HTTP client's own classes, which differ between versions of the library
        raise DownloadError(_unreachable(error)) from None
    assert isinstance(info, huggingface_hub.ModelInfo | huggingface_hub.DatasetInfo)
    sizes = {s.rfilename: s.size or 0 for s in info.siblings or []}
    chosen = _choose(repository, list(sizes))
    licence = getattr(info.card_data, "license", None) or "not stated"
    return Wanted(repository, info.sha or "main", str(licence), {name: sizes[name] for name in chosen})


def _choose(repository: Repository, names: list[str]) -> list[str]:
    if repository.file is not None:
        found = [n for n in names if n.rpartition("/")[2] == repository.file]
        if not found:
            raise DownloadError(f"{repository.name} contains no file {repository.file}; has the repository changed?")
        return sorted(found, key=len)[:1]  # the shortest path, if there are copies
    weights = [n for n in names if "/" not in n and n.startswith("model") and ".safetensors" in n]
    weights = weights or [n for n in names if "/" not in n and n.startswith("pytorch_model") and ".bin" in n]
    if "config.json" not in names or not weights:
        raise DownloadError(f"{repository.name} contains no text encoder (config.json and weights)")
    return [n for n in TEXT_FILES if n in names] + sorted(weights)


def _missing_bytes(wanted: Wanted) -> int:
    cached = huggingface_hub.try_to_load_from_cache
    kind, name, commit = wanted.repository.kind, wanted.repository.name, wanted.commit
    there = {f for f in wanted.files if isinstance(cached(name, f, repo_type=kind, revision=commit), str)}
    return sum(size for f, size in wanted.files.items() if f not in there)


def _download(wanted: Wanted, name: str) -> str:
    try:
        return huggingface_hub.hf_hub_download(
            wanted.repository.name, name, repo_type=wanted.repository.kind, revision=wanted.commit
        )
    except Exception as error:  # including the HTTP client's own classes
        raise DownloadError(
            f"{name} of {wanted.repository.name} could not be downloaded ({first_line(error)}); run the command again "
            "to resume"
        ) from None


def _unreachable(error: Exception) -> str:
    where = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    return (
        f"{where} cannot be reached ({first_line(error)}); without a network, download the parts elsewhere and pass "
        "them to: python -m export onnx"
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
