"""The bundle: a folder of graphs with a manifest, `bundle.json`, that describes them.

Bundles are untrusted: nothing outside the folder is opened, sizes and hashes are compared before a graph is loaded, and
a file is opened later only if it has not changed since.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from editar_rt.arguments import as_path
from editar_rt.bundle.graph_file import check_graph
from editar_rt.bundle.links import is_blob_of_another, is_kept_inside
from editar_rt.bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, FileInfo, Manifest, check_relative
from editar_rt.bundle.parts import check_parts
from editar_rt.errors import BundleError, OptionError
from editar_rt.files import is_folder
from editar_rt.generation.sampling import Sampling

HASH_AT_LOAD_BYTES = 64 << 20
"""Files up to this size are hashed each time a bundle is opened; larger ones only by `Bundle.check`."""


def file_digest(path: Path) -> FileInfo:
    """Size and SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return FileInfo(digest.hexdigest(), path.stat().st_size)


class Identity(NamedTuple):
    """Identifies a file, to detect that it was replaced or modified."""

    device: int
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> Identity:
        """
        Raises:
            OSError: the file cannot be examined.
        """
        status = path.stat()
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Bundle:
    """An open bundle. A file that changed after the bundle was opened is rejected."""

    folder: Path  # absolute
    manifest: Manifest
    fingerprint: str  # SHA-256 of bundle.json, which contains those of all other files
    _opened: dict[str, Identity] = field(default_factory=dict, repr=False, compare=False)
    _part_files: dict[str, list[str]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read the manifest, and compare every file's size and the hashes of all but the largest files.

        Raises:
            BundleError: the folder is not a bundle, the bundle is damaged, altered or of a newer format, or a path
                leaves it.
            OptionError: `path` is not a path.
        """
        folder = as_path("a bundle", path)
        with contextlib.suppress(OSError):  # if the current folder was removed, a relative path cannot be resolved
            folder = folder.absolute()  # files are also opened later, after a chdir
        try:
            raw = _read_manifest(folder)
        except OSError as e:
            raise BundleError(f"the bundle {folder} cannot be read: {e.strerror or e}") from None
        try:
            manifest = Manifest.from_json(raw.decode())
        except UnicodeDecodeError:
            raise BundleError(f"{folder / MANIFEST_NAME} is not UTF-8 text; export the bundle again") from None
        check_parts(manifest, MANIFEST_NAME)
        bundle = cls(folder, manifest, hashlib.sha256(raw).hexdigest())
        for name in manifest.files:
            bundle._check_file(name, HASH_AT_LOAD_BYTES)
        return bundle

    @property
    def default_sampling(self) -> Sampling:
        """The sampling defaults of the bundle.

        Raises:
            BundleError: a field that `Sampling` lacks or a value that it rejects.
        """
        given = self.manifest.sampling
        if unknown := sorted(set(given) - {f.name for f in dataclasses.fields(Sampling)}):
            raise BundleError(f"the bundle's sampling defaults have unknown fields: {', '.join(unknown)}")
        try:
            return Sampling(**given)  # type: ignore[arg-type]
        except OptionError as e:
            raise BundleError(f"a sampling default of the bundle {self.folder} is not allowed: {e}") from None

    def path(self, name: str) -> Path:
        """The path of a file of the bundle.

        Raises:
            BundleError: the file is outside the bundle, is not listed, or has changed since the bundle was opened.
        """
        path = self._inside(name)
        if name not in self._opened:
            raise BundleError(f"{MANIFEST_NAME} has no size and hash of {name}; export the bundle again")
        with self._reading(name):
            if Identity.of(path) != self._opened[name]:
                raise BundleError(f"{path} was replaced or changed after the bundle was opened; open the bundle again")
        return path

    def part_path(self, part: str) -> Path:
        """The graph of a part, after `part_files` has checked it."""
        self.part_files(part)
        return self.path(self.manifest.parts[part].file)

    def part_files(self, part: str) -> list[str]:
        """The names of a part's files: its graph and the files with its weights.

        Raises:
            BundleError: the graph refers to a forbidden file, or differs from the manifest.
        """
        if part not in self._part_files:
            described = self.manifest.parts[part]
            with self._reading(described.file):
                self._part_files[part] = check_graph(self.path(described.file), described, self.manifest.files)
        for name in self._part_files[part]:
            self.path(name)
        return self._part_files[part]

    def weight_paths(self, part: str) -> list[Path]:
        """The files with a part's weights.

        Raises:
            BundleError: as `part_files`.
        """
        graph = self.manifest.parts[part].file
        return [self.path(name) for name in self.part_files(part) if name != graph]

    def stored_bytes(self, *parts: str) -> int:
        """Bytes of the files of some parts; one that several have counts once.

        Raises:
            BundleError: as `part_files`.
        """
        files = {name for part in parts for name in self.part_files(part)}
        return sum(self.manifest.files[name].bytes for name in files)

    def check(self) -> None:
        """Hash every file and read every graph. Raises BundleError at the first one that differs."""
        for name in self.manifest.files:
            self._check_file(name, None)
        for part in self.manifest.parts:
            self.part_files(part)

    def _inside(self, name: str) -> Path:
        check_relative(name)
        path = self.folder / name
        if not is_kept_inside(path, self.folder):
            raise BundleError(_leaves(path))
        return path

    def _check_file(self, name: str, hash_up_to: int | None) -> None:
        path, expected = self._inside(name), self.manifest.files[name]
        with self._reading(name):
            if not path.is_file():
                raise BundleError(
                    f"the bundle {self.folder} lacks {name}; copy it again completely, or export it again"
                )
            identity = Identity.of(path)
            if is_blob_of_another(path, expected.sha256):
                hash_up_to = None
            self._compare(path, expected, hash_up_to)
            if self._opened.setdefault(name, identity) != identity:
                raise BundleError(f"{path} was replaced or changed after the bundle was opened; open the bundle again")

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise BundleError(f"{self.folder / name} cannot be read: {e.strerror or e}") from None

    @staticmethod
    def _compare(path: Path, expected: FileInfo, hash_up_to: int | None) -> None:
        size = path.stat().st_size
        if size != expected.bytes:
            raise BundleError(
                f"{path} has {size} bytes, but the manifest says {expected.bytes}: it was truncated or altered; "
                "copy the bundle again"
            )
        if (hash_up_to is None or size <= hash_up_to) and file_digest(path).sha256 != expected.sha256:
            raise BundleError(f"{path} is not the file the manifest describes (its SHA-256 differs); copy it again")


def _leaves(path: Path) -> str:
    return (
        f"{path} is a link that leaves the bundle; do not trust it, or copy the folder with its links followed "
        "(cp -rL) and open the copy"
    )


def _read_manifest(folder: Path) -> bytes:
    """
    Raises:
        BundleError: there is no manifest, or the file is not one.
        OSError: the manifest cannot be read.
    """
    path = folder / MANIFEST_NAME
    if not is_folder(folder):
        raise BundleError(f"{folder} is not a folder; a bundle is a folder that contains {MANIFEST_NAME}")
    if not path.is_file():
        raise BundleError(f"{folder} contains no {MANIFEST_NAME}; make a bundle with: python -m export onnx -o BUNDLE")
    if not is_kept_inside(path, folder):
        raise BundleError(_leaves(path))
    with open(path, "rb") as f:
        raw = f.read(MAX_MANIFEST_BYTES + 1)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} is larger than {MAX_MANIFEST_BYTES >> 20} MiB, so it is not a manifest")
    return raw


def list_files(folder: Path) -> dict[str, FileInfo]:
    """Size and hash of every file in a folder and its subfolders except the manifest, by relative POSIX path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    names = {p.relative_to(folder).as_posix(): p for p in files}
    return {name: file_digest(p) for name, p in names.items() if name != MANIFEST_NAME}


@contextmanager
def publishing(final: Path, force: bool = False, manifest: str = MANIFEST_NAME) -> Iterator[Path]:
    """A temporary folder to write to. If the block succeeds, it is renamed to `final`; otherwise it is removed.

    Args:
        force: replace an existing folder, if it contains `manifest` or is empty.

    Raises:
        BundleError: `final` exists and `force` is False, or it cannot be written.
    """
    final = final.resolve()  # "." and ".." have no name for a folder next to them
    if final.exists():
        if not force:
            raise BundleError(f"{final} exists; choose another folder, or replace it with --force")
        if not final.is_dir() or (any(final.iterdir()) and not (final / manifest).is_file()):
            kind = "bundle" if manifest == MANIFEST_NAME else "folder of engines"
            raise BundleError(f"{final} is not a {kind}, so it is not replaced; choose another folder")
    partial = final.with_name(f"{final.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
    except OSError as e:
        raise BundleError(f"cannot write to {final.parent}: {e.strerror}") from None
    try:
        yield partial
        _put_in_place(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, final: Path) -> None:
    """Rename, after moving an older bundle aside; the older one is restored if the new one cannot be put in place."""
    old = partial.with_name(partial.name.replace(".partial-", ".old-")) if final.exists() else None
    try:
        if old is not None:
            final.rename(old)
        try:
            partial.rename(final)
        except BaseException:
            if old is not None:
                old.rename(final)
            raise
    except OSError as e:
        raise BundleError(f"cannot put the bundle in place at {final}: {e.strerror}") from None
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
