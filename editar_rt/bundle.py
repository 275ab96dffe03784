"""The bundle: a folder of graphs with a manifest, `bundle.json`, that says what they are.

`Manifest` is the one home of the manifest's schema; export writes it and the runtime reads it. Bundles come from
strangers: nothing outside the folder is opened, sizes and hashes are compared before a graph is loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from editar_rt.errors import BundleError, OptionError
from editar_rt.files import is_folder
from editar_rt.part_shapes import check_parts
from editar_rt.sampling import Sampling, is_whole

MANIFEST_NAME = "bundle.json"
FORMAT = "editar-bundle"
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 4 << 20
MAX_DEPTH = 32  # of objects and lists in each other; a manifest has 6
# What a field may say; unknown words would be taken for something else further on.
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
SPELLINGS = ("ort", "standard", "delta")
KV_CACHES = ("same", "int8")
DTYPES = ("bfloat16", "bool", "float16", "float32", "int32", "int64", "int8", "uint8")
# Controls move a terminal's cursor or recolour it, and lone surrogates are in no encoding: both come from strangers.
UNPRINTABLE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
HASH_AT_LOAD_BYTES = 64 << 20
"""Files up to this size are hashed each time a bundle is opened; larger ones only by `Bundle.check`."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a graph."""

    name: str
    dtype: str  # NumPy's name: float32, float16, int32
    shape: list[int | str]  # a symbolic dimension by its name


@dataclass(frozen=True)
class Part:
    """One graph of a bundle."""

    file: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


@dataclass(frozen=True)
class FileInfo:
    """What a file of the bundle must be."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class ModelInfo:
    """Sizes of the models inside; None for what a missing part would say."""

    image_size: int | None = None  # side of the square picture, pixels
    downsampling: int | None = None  # pixels a token spans along one side
    grid: int | None = None  # tokens along one side
    picture_tokens: int | None = None  # N
    codebook_size: int | None = None
    codebook_dim: int | None = None
    vocab_size: int | None = None  # V
    dim: int | None = None  # D
    layers: int | None = None
    heads: int | None = None
    head_dim: int | None = None
    text_tokens: int | None = None  # T
    text_dim: int | None = None  # C
    parameters: dict[str, int] = field(default_factory=dict)  # by part
    activations: dict[str, int] = field(default_factory=dict)  # by part: bytes of its largest operation, one row
    step_weight_bytes: dict[str, int] = field(default_factory=dict)  # by provider: weights that a decode step reads

    def check(self) -> None:
        """Refuse sizes that are not positive or contradict each other; buffers are made by them."""
        sizes = {name: size for name, size in dataclasses.asdict(self).items() if is_whole(size)}
        for name, size in sizes.items():
            if not 1 <= size < 2**31:
                raise BundleError(f"{MANIFEST_NAME}: model: {name} must be 1 to 2^31 - 1, got {size}")
        for name, factors in (
            ("image_size", ("grid", "downsampling")),
            ("picture_tokens", ("grid", "grid")),
            ("dim", ("heads", "head_dim")),
        ):
            if {name, *factors} <= sizes.keys() and sizes[name] != math.prod(sizes[f] for f in factors):
                values = ", ".join(f"{n} {sizes[n]}" for n in dict.fromkeys((name, *factors)))
                raise BundleError(f"{MANIFEST_NAME}: {name} is not {' · '.join(factors)} ({values})")
        if {"codebook_size", "vocab_size"} <= sizes.keys() and self.codebook_size != self.vocab_size:
            raise BundleError(
                f"{MANIFEST_NAME}: model: codebook_size and vocab_size must be equal, got {self.codebook_size} and "
                f"{self.vocab_size}; export the bundle again"
            )


@dataclass(frozen=True)
class Manifest:
    """All of `bundle.json`."""

    model: ModelInfo
    parts: dict[str, Part]
    files: dict[str, FileInfo]  # by path inside the bundle, every file but the manifest
    precision: str = "fp32"
    spelling: str = "ort"
    kv_cache: str = "same"  # as the precision's products, or int8
    sampler_top_k: int | None = None  # the largest top_k that the part sampler draws with; None without one
    providers: list[str] = field(default_factory=lambda: ["cpu", "cuda"])  # of ONNX Runtime, that run the decoder
    tokenizer: str | None = None
    samples: str | None = None
    # Defaults that differ from `Sampling`'s. Whole numbers first: decoding takes the first type that fits.
    sampling: dict[str, int | float] = field(default_factory=dict)
    self_test: dict[str, Any] | None = None
    made_by: dict[str, str] = field(default_factory=dict)
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse and validate; raises BundleError with one sentence."""
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as e:  # ValueError also for whole numbers of thousands of digits
            raise BundleError(f"{MANIFEST_NAME} is not JSON ({e}); export the bundle again") from None
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise BundleError(f'{MANIFEST_NAME} does not say "format": "{FORMAT}": this is no EditAR bundle')
        version = raw.get("format_version")
        if not is_whole(version) or version < 1:
            raise BundleError(f"{MANIFEST_NAME} has format_version {version!r:.40}; 1 to {FORMAT_VERSION} are known")
        if version > FORMAT_VERSION:
            raise BundleError(
                f"the bundle has format version {version}, newer than the newest this runtime knows "
                f"({FORMAT_VERSION}); update with: pip install -U editar-rt"
            )
        check_strings(raw, MANIFEST_NAME)
        manifest: Manifest = decode_json(cls, raw, MANIFEST_NAME)
        for path in manifest.paths():
            check_relative(path)
            if path not in manifest.files:
                raise BundleError(f"{MANIFEST_NAME} names {path} but lists no size and hash for it")
        for path, info in manifest.files.items():
            check_relative(path)
            if info.bytes < 0 or not re.fullmatch("[0-9a-f]{64}", info.sha256):
                raise BundleError(f"{MANIFEST_NAME} gives {path} no valid size and SHA-256; export the bundle again")
        manifest._check_words()
        manifest.model.check()
        check_parts(manifest, MANIFEST_NAME)
        return manifest

    def _check_words(self) -> None:
        """Refuse what is none of the words that a field may say."""
        tensors = [tensor for part in self.parts.values() for tensor in (*part.inputs, *part.outputs)]
        for name, value, allowed in (
            ("precision", self.precision, PRECISIONS),
            ("spelling", self.spelling, SPELLINGS),
            ("kv_cache", self.kv_cache, KV_CACHES),
            *((f"{tensor.name}: dtype", tensor.dtype, DTYPES) for tensor in tensors),
        ):
            if value not in allowed:
                raise BundleError(f"{MANIFEST_NAME}: {name} must be one of {', '.join(allowed)}, got {value!r:.40}")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    def paths(self) -> list[str]:
        """Every file that the manifest refers to by role."""
        optional = [p for p in (self.tokenizer, self.samples) if p is not None]
        return [part.file for part in self.parts.values()] + optional


def decode_json(kind: Any, value: Any, where: str) -> Any:
    """JSON values to the type `kind`, checked all the way down."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise BundleError(f"{where} must be an object, got {type(value).__name__}")
        hints = typing.get_type_hints(kind)
        # Unknown keys are left alone: a later 1.x writer may add some.
        given = {k: decode_json(hints[k], v, f"{where}: {k}") for k, v in value.items() if k in hints}
        needed = {
            f.name
            for f in dataclasses.fields(kind)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        if missing := sorted(needed - set(given)):
            raise BundleError(f"{where} lacks {', '.join(missing)}; export the bundle again")
        return kind(**given)
    if origin is dict:
        if not isinstance(value, dict):
            raise BundleError(f"{where} must be an object, got {type(value).__name__}")
        return {k: decode_json(arguments[1], v, f"{where}: {k}") for k, v in value.items()}
    if origin is list:
        if not isinstance(value, list):
            raise BundleError(f"{where} must be a list, got {type(value).__name__}")
        return [decode_json(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        for option in (a for a in arguments if a is not type(None)):
            try:
                return decode_json(option, value, where)
            except BundleError as e:
                last = e
        raise last
    if kind is Any:
        return value
    if is_whole(value) and abs(value) >= 2**63:  # JSON has no limit, and no field needs more
        raise BundleError(f"{where} is a number of {len(str(value))} digits; export the bundle again")
    if kind is float and is_whole(value):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BundleError(f"{where} must be {kind.__name__}, got {value!r:.80}")
    return value


def check_strings(value: Any, where: str) -> None:
    """Refuse JSON values with strings that are not to be shown, or nested so deep that copying them would fail."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for each in level:
            if isinstance(each, str) and UNPRINTABLE.search(each):
                raise BundleError(f"{where} has control characters in the string {each!a:.80}; do not trust it")
            if isinstance(each, dict):
                below += [*each, *each.values()]
            elif isinstance(each, list):
                below += each
        if not below:
            return
        level = below
    raise BundleError(f"{where} is nested more than {MAX_DEPTH} levels deep; export the bundle again")


def check_relative(path: str) -> None:
    """Refuse a path that could leave the bundle."""
    posix, windows = PurePosixPath(path), PureWindowsPath(path)
    if (
        not path
        or posix.is_absolute()
        or windows.drive
        or windows.root
        or ".." in posix.parts
        or ".." in windows.parts
        or "\0" in path
    ):
        raise BundleError(f"{MANIFEST_NAME} names {path!r}, which is not a path inside the bundle; do not trust it")


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
