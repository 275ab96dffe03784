"""The bundle: a folder of graphs with a manifest, `bundle.json`, that says what they are.

Bundles come from strangers: nothing outside the folder is opened, sizes and hashes are compared before a graph is
loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Bundle:
    """An opened bundle."""

    folder: Path
    manifest: Manifest
    fingerprint: str  # SHA-256 of bundle.json, which holds those of all other files

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read the manifest and compare every file's size, and the hash of all but the largest files.

        Raises:
            BundleError: no bundle, a damaged or altered one, one of a newer format, or a path that leaves it.
        """
        folder = Path(path)
        manifest_path = folder / MANIFEST_NAME
        if not is_folder(folder):
            raise BundleError(f"{folder} is not a folder; a bundle is one that holds {MANIFEST_NAME}")
        if not manifest_path.is_file():
            raise BundleError(f"{folder} holds no {MANIFEST_NAME}; make a bundle with: python -m export onnx -o BUNDLE")
        try:
            with open(manifest_path, "rb") as f:
                raw = f.read(MAX_MANIFEST_BYTES + 1)
        except OSError as e:
            raise BundleError(f"{manifest_path} cannot be read: {e.strerror}") from None
        if len(raw) > MAX_MANIFEST_BYTES:
            raise BundleError(f"{manifest_path} is larger than {MAX_MANIFEST_BYTES >> 20} MiB; that is no manifest")
        try:
            manifest = Manifest.from_json(raw.decode())
        except UnicodeDecodeError:
            raise BundleError(f"{manifest_path} is not UTF-8 text; export the bundle again") from None
        check_parts(manifest, MANIFEST_NAME)
        bundle = cls(folder, manifest, hashlib.sha256(raw).hexdigest())
        for name in manifest.files:
            bundle._check_file(name, HASH_AT_LOAD_BYTES)
        return bundle

    @property
    def default_sampling(self) -> Sampling:
        """The sampling that the bundle was made for.

        Raises:
            BundleError: for a field that `Sampling` lacks or a value that it refuses.
        """
        given = self.manifest.sampling
        if unknown := sorted(set(given) - {f.name for f in dataclasses.fields(Sampling)}):
            raise BundleError(f"the bundle's sampling defaults have unknown fields: {', '.join(unknown)}")
        try:
            return Sampling(**given)  # type: ignore[arg-type]
        except OptionError as e:
            raise BundleError(f"a sampling default of the bundle {self.folder} is not allowed: {e}") from None

    def path(self, name: str) -> Path:
        """A file of the bundle; refuses links that lead out of it."""
        check_relative(name)
        path = self.folder / name
        try:
            inside = path.resolve().is_relative_to(self.folder.resolve())
        except (OSError, RuntimeError, ValueError):  # links that go round in a circle, names that no disk has
            inside = False
        if not inside:
            raise BundleError(f"{path} is a link that leaves the bundle; do not trust it")
        return path

    def part_path(self, part: str) -> Path:
        return self.path(self.manifest.parts[part].file)

    def check(self) -> None:
        """Hash every file, however large; raises BundleError at the first that differs."""
        for name in self.manifest.files:
            self._check_file(name, None)

    def _check_file(self, name: str, hash_up_to: int | None) -> None:
        path, expected = self.path(name), self.manifest.files[name]
        try:
            if not path.is_file():
                raise BundleError(f"the bundle {self.folder} lacks {name}; copy it whole, or export it again")
            self._compare(path, expected, hash_up_to)
        except OSError as e:
            raise BundleError(f"{path} cannot be read: {e.strerror}") from None

    @staticmethod
    def _compare(path: Path, expected: FileInfo, hash_up_to: int | None) -> None:
        size = path.stat().st_size
        if size != expected.bytes:
            raise BundleError(
                f"{path} has {size} bytes where the manifest says {expected.bytes}: truncated or altered; "
                "copy the bundle again"
            )
        if (hash_up_to is None or size <= hash_up_to) and file_digest(path).sha256 != expected.sha256:
            raise BundleError(f"{path} is not the file the manifest describes (its SHA-256 differs); copy it again")


def list_files(folder: Path) -> dict[str, FileInfo]:
    """Size and hash of every file below a folder but the manifest, by relative POSIX path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    names = {p.relative_to(folder).as_posix(): p for p in files}
    return {name: file_digest(p) for name, p in names.items() if name != MANIFEST_NAME}


@contextmanager
def publishing(final: Path, force: bool = False, manifest: str = MANIFEST_NAME) -> Iterator[Path]:
    """A folder beside `final` to write into, renamed into its place when the block ends well and removed when not.

    Args:
        force: replace a folder that is there, if it holds `manifest` or nothing.

    Raises:
        BundleError: where `final` exists and `force` is not given, or nothing can be written there.
    """
    final = final.resolve()  # "." and ".." have no name to write beside
    if final.exists():
        if not force:
            raise BundleError(f"{final} exists; choose another folder or replace it with --force")
        if not final.is_dir() or (any(final.iterdir()) and not (final / manifest).is_file()):
            kind = "bundle" if manifest == MANIFEST_NAME else "folder of engines"
            raise BundleError(f"{final} holds something that is no {kind}; it is not replaced, choose another folder")
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
    """Rename, moving an older bundle aside first; it comes back if the new one cannot take its place."""
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
