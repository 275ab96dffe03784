"""The schema of `bundle.json`, which describes a bundle's graphs. Export writes it and the runtime reads it.

Manifests are untrusted: every value is checked before it is used.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from editar_rt.arguments import is_integer
from editar_rt.bundle.words import DEFAULT_DIALECT, DIALECTS, KV_CACHES, PRECISIONS, SAME, Dialect, error_bound
from editar_rt.errors import BundleError
from editar_rt.names import SAMPLER

MANIFEST_NAME = "bundle.json"
FORMAT = "editar-bundle"
FORMAT_VERSION = 2  # 2: sampling heads with noise and settings for each row; a default for noise
GRAPH_SUFFIX = ".onnx"  # ONNX Runtime expects another format for other suffixes
MAX_MANIFEST_BYTES = 4 << 20
KEY = "key"  # of a field's metadata: its name in JSON, if that is different
MAX_DEPTH = 32  # of nested objects and lists; a manifest has 6
# Types of tensors. An unknown one would be misread later.
DTYPES = ("bfloat16", "bool", "float16", "float32", "int32", "int64", "int8", "uint8")
# Control characters can manipulate a terminal, and lone surrogates cannot be encoded.
UNPRINTABLE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a graph."""

    name: str
    dtype: str  # NumPy's name: float32, float16, int32
    shape: list[int | str]  # symbolic dimensions by name


@dataclass(frozen=True)
class Part:
    """One graph of a bundle."""

    file: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


@dataclass(frozen=True)
class FileInfo:
    """The expected size and hash of a file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class ModelInfo:
    """Sizes of the models in the bundle; None if the part that has them is missing."""

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
        """Reject sizes that are out of range or contradict each other; buffers are allocated by them."""
        sizes = {name: size for name, size in dataclasses.asdict(self).items() if is_integer(size)}
        for name, size in sizes.items():
            if not 1 <= size <= LARGEST[name]:
                raise BundleError(f"{MANIFEST_NAME}: model: {name} must be 1 to {LARGEST[name]}, got {size}")
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
        if 2 * self._cached() > MOST_CACHED:
            raise BundleError(
                f"{MANIFEST_NAME}: model: keys and values of one row would have {2 * self._cached()} elements, but at "
                f"most {MOST_CACHED} are allowed; export the bundle again"
            )

    def _cached(self) -> int:
        """Number of elements in the keys of one row, for the whole sequence."""
        positions = 2 * (self.picture_tokens or 0) + (self.text_tokens or 0)
        return (self.layers or 0) * (self.dim or 0) * positions


# Buffers are allocated by these sizes before a graph could contradict them.
LARGEST = {
    "image_size": 4096, "downsampling": 256, "grid": 256, "picture_tokens": 1 << 16, "codebook_size": 1 << 20,
    "codebook_dim": 1 << 16, "vocab_size": 1 << 20, "dim": 1 << 16, "layers": 1 << 10, "heads": 1 << 10,
    "head_dim": 1 << 12, "text_tokens": 1 << 13, "text_dim": 1 << 14,
}  # fmt: skip
MOST_CACHED = 1 << 33  # ten times EditAR's keys and values at 1,024 pixels


@dataclass(frozen=True)
class Manifest:
    """All of `bundle.json`."""

    model: ModelInfo
    parts: dict[str, Part]
    files: dict[str, FileInfo]  # by path inside the bundle, every file except the manifest
    precision: str = "fp32"
    dialect: str = field(default=DEFAULT_DIALECT, metadata={KEY: "spelling"})
    kv_cache: str = SAME
    sampler_top_k: int | None = None  # the largest top_k that the part sampler draws with; None without one
    providers: list[str] = field(default_factory=lambda: ["cpu", "cuda"])  # of ONNX Runtime, that run the decoder
    tokenizer: str | None = None
    samples: str | None = None
    # Defaults that differ from `Sampling`'s. int comes first, because decoding takes the first type that fits.
    sampling: dict[str, int | float | str] = field(default_factory=dict)
    self_test: dict[str, Any] | None = None
    made_by: dict[str, str] = field(default_factory=dict)
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse and validate. Raises BundleError with one sentence."""
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as e:  # ValueError also for integers of thousands of digits
            raise BundleError(f"{MANIFEST_NAME} is not JSON ({e}); export the bundle again") from None
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise BundleError(f'{MANIFEST_NAME} does not say "format": "{FORMAT}"; this is not an EditAR bundle')
        version = raw.get("format_version")
        if not is_integer(version) or version < 1:
            raise BundleError(f"{MANIFEST_NAME} has format_version {version!r:.40}; 1 to {FORMAT_VERSION} are known")
        if version > FORMAT_VERSION:
            raise BundleError(
                f"the bundle has format version {version}, newer than the newest this runtime knows "
                f"({FORMAT_VERSION}); in a clone of the project run: git pull && pip install ."
            )
        check_strings(raw, MANIFEST_NAME)
        read: Manifest = decode_json(cls, raw, MANIFEST_NAME)
        manifest = read._without_old_sampler()
        for path in manifest.paths():
            check_relative(path)
            if path not in manifest.files:
                raise BundleError(
                    f"{MANIFEST_NAME} names {path} but has no size and hash of it; export the bundle again"
                )
        for part, described in manifest.parts.items():
            if not described.file.endswith(GRAPH_SUFFIX):
                raise BundleError(
                    f"{MANIFEST_NAME}: {part}: file must end with {GRAPH_SUFFIX}, got {described.file!r:.80}; export "
                    "the bundle again"
                )

        for path, info in manifest.files.items():
            check_relative(path)
            if info.bytes < 0 or not re.fullmatch("[0-9a-f]{64}", info.sha256):
                raise BundleError(f"{MANIFEST_NAME} gives {path} no valid size and SHA-256; export the bundle again")
        manifest._check_words()
        manifest.model.check()
        return manifest

    def _without_old_sampler(self) -> Manifest:
        """Without a sampling head of format version 1, which has other inputs: the host samples instead."""
        head = self.parts.get(SAMPLER)
        if head is None or self.format_version > 1:
            return self
        parts = {name: part for name, part in self.parts.items() if name != SAMPLER}
        return replace(self, parts=parts, sampler_top_k=None)

    def needed_version(self) -> int:
        """The oldest format version with which this bundle is read rightly."""
        return 2 if SAMPLER in self.parts or "noise" in self.sampling else 1

    def _check_words(self) -> None:
        """Reject values that a field does not allow."""
        tensors = [tensor for part in self.parts.values() for tensor in (*part.inputs, *part.outputs)]
        words: tuple[tuple[str, str, Collection[str]], ...] = (
            ("precision", self.precision, PRECISIONS),
            ("spelling", self.dialect, DIALECTS),
            ("kv_cache", self.kv_cache, KV_CACHES),
            *((f"{tensor.name}: dtype", tensor.dtype, DTYPES) for tensor in tensors),
        )
        for name, value, allowed in words:
            if value not in allowed:
                raise BundleError(f"{MANIFEST_NAME}: {name} must be one of {', '.join(allowed)}, got {value!r:.40}")

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        fields = dataclasses.asdict(self)
        return {_key(field): fields[field.name] for field in dataclasses.fields(self)}

    @property
    def operators(self) -> Dialect:
        """The capabilities of the decoder's dialect."""
        return DIALECTS[self.dialect]

    def bound(self, part: str) -> float:
        """Largest allowed error of a part's outputs, as a share of the largest value."""
        return error_bound(part, self.precision, self.kv_cache, self.dialect)

    def paths(self) -> list[str]:
        """All files that the manifest refers to by role."""
        optional = [p for p in (self.tokenizer, self.samples) if p is not None]
        return [part.file for part in self.parts.values()] + optional


def _key(field: dataclasses.Field[Any]) -> str:
    """A field's name in JSON."""
    return str(field.metadata.get(KEY, field.name))


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields; a manifest has dozens of objects of the same few."""
    return typing.get_type_hints(kind)


def decode_json(kind: Any, value: Any, where: str) -> Any:
    """Convert JSON values to the type `kind`, with all nested values checked."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise BundleError(f"{where} must be an object, got {type(value).__name__}")
        hints, named = _hints(kind), {_key(f): f.name for f in dataclasses.fields(kind)}
        # Unknown keys are ignored: a later 1.x writer may add some.
        given = {named[k]: decode_json(hints[named[k]], v, f"{where}: {k}") for k, v in value.items() if k in named}
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
    if is_integer(value) and abs(value) >= 2**63:  # JSON has no limit, but no field needs more
        raise BundleError(f"{where} is a number of {len(str(value))} digits; export the bundle again")
    if kind is float and is_integer(value):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BundleError(f"{where} must be {kind.__name__}, got {value!r:.80}")
    return value


def check_strings(value: Any, where: str) -> None:
    """Reject JSON values with unprintable strings, or nested so deeply that copying them would fail."""
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
    """Reject a path that could leave the bundle."""
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
