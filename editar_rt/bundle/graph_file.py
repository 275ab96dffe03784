"""Inspects an ONNX file before an engine opens it: its inputs, outputs and external data files.

A graph may refer to other files wherever a tensor may occur: in initializers, attributes, subgraphs and functions.
Engines open these files, and not all of them check the location. Therefore the file is checked here first, without the
onnx package, which devices lack, and without reading the weights.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from editar_rt.bundle.manifest import MANIFEST_NAME, UNPRINTABLE, FileInfo, Part, TensorInfo, check_relative
from editar_rt.bundle.protobuf import DamagedError, Reader, Span, signed
from editar_rt.errors import BundleError

PREPACKED = "prepacked_"  # prefix of ONNX Runtime's keys for prepacked weights, which are offsets in the file
MAX_NAME = 4096  # bytes
MAX_DEPTH = 64  # of nested messages; parsers stop at 100
MAX_RANK = 64

# Where tensors can occur: by message, the messages in its fields (field numbers of onnx.proto).
MODEL, TRAINING, FUNCTION, GRAPH, NODE, ATTRIBUTE, SPARSE, TENSOR = range(8)
HOLDS: dict[int, dict[int, int]] = {
    MODEL: {7: GRAPH, 20: TRAINING, 25: FUNCTION},
    TRAINING: {1: GRAPH, 2: GRAPH},
    FUNCTION: {7: NODE, 11: ATTRIBUTE},
    GRAPH: {1: NODE, 5: TENSOR, 15: SPARSE},
    NODE: {5: ATTRIBUTE},
    ATTRIBUTE: {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 22: SPARSE, 23: SPARSE},
    SPARSE: {1: TENSOR, 2: TENSOR},
}
INITIALIZER, INPUT, OUTPUT = 5, 11, 12  # fields of a graph
DIMS, DATA_TYPE, NAME, EXTERNAL_DATA = 1, 2, 8, 13  # fields of a tensor
# NumPy's names (those allowed in a manifest) and sizes in bits of ONNX's types.
DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 16: "bfloat16",
}  # fmt: skip
BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8,
}  # fmt: skip


@dataclass(frozen=True)
class ExternalData:
    """The location of a tensor's values."""

    location: str  # as written in the graph
    stop: int  # the first byte after them


@dataclass(frozen=True)
class GraphFile:
    """The result of `read_graph`."""

    inputs: list[TensorInfo]  # without those that have initializers
    outputs: list[TensorInfo]
    external: list[ExternalData]
    rearranged: bool
    """Whether it contains weights prepacked for one machine, as stored by `backends.ort.prepacked`."""


def read_graph(path: Path) -> GraphFile:
    """Inspect an ONNX file.

    Raises:
        BundleError: it is not an ONNX file, or no engine should read it.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            if not size:
                raise DamagedError("it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Walk(Reader(data)).graph_file()
        except DamagedError as error:
            raise BundleError(f"{path} is not an ONNX graph that can be trusted ({error}); export it again") from None


def check_graph(path: Path, part: Part, files: Mapping[str, FileInfo]) -> list[str]:
    """Read a part's graph and compare it with the manifest.

    Args:
        path: of the graph.
        files: the manifest's files, which were checked.

    Returns:
        the names in `files` of the graph and of the files with its weights.

    Raises:
        BundleError: the graph refers to a file outside the bundle or not listed, or beyond the end of one; or its
            inputs or outputs differ from the manifest.
        OSError: the file cannot be read.
    """
    graph, part_files = read_graph(path), {part.file: None}
    if graph.rearranged:
        raise BundleError(f"{path} contains weights prepacked for one machine; export the bundle again")
    for each in graph.external:
        name = _listed(path, part.file, each.location, files)
        if each.stop > files[name].bytes:
            raise BundleError(
                f"{path} takes weights from {name} up to byte {each.stop}, but it has {files[name].bytes} bytes; "
                "export the bundle again"
            )
        part_files[name] = None
    for kind, said, given in (("input", part.inputs, graph.inputs), ("output", part.outputs, graph.outputs)):
        _check_tensors(path, kind, said, given)
    return list(part_files)


def _listed(path: Path, graph: str, location: str, files: Mapping[str, FileInfo]) -> str:
    """The name in the manifest of a file that a graph names relative to itself."""
    try:
        if UNPRINTABLE.search(location) or "*" in location:  # ONNX Runtime writes */…/* for an address in memory
            raise BundleError("")
        check_relative(location)
    except BundleError:
        raise BundleError(
            f"{path} takes weights from {location!a:.200}, which is not a file inside the bundle; do not trust it"
        ) from None
    name = (PurePosixPath(graph).parent / location).as_posix()
    if name not in files:
        raise BundleError(
            f"{path} takes weights from {location!a:.200}, for which {MANIFEST_NAME} has no size and hash; export "
            "the bundle again"
        )
    return name


def _check_tensors(path: Path, kind: str, said: list[TensorInfo], given: list[TensorInfo]) -> None:
    """Compare names, types, ranks and the sizes that are fixed in both."""
    expected, actual = ({tensor.name: tensor for tensor in tensors} for tensors in (said, given))
    for name in sorted(expected.keys() ^ actual.keys()):
        has, lacks = ("the manifest", "the graph") if name in expected else ("the graph", "the manifest")
        raise BundleError(f"{path}: {has} has the {kind} {name!a:.80}, which {lacks} lacks; export the bundle again")
    for name, tensor in expected.items():
        other = actual[name]
        fits = tensor.dtype == other.dtype and len(tensor.shape) == len(other.shape)
        for one, two in zip(tensor.shape, other.shape, strict=False):
            fits = fits and (isinstance(one, str) or isinstance(two, str) or one == two)
        if not fits:
            raise BundleError(
                f"{path}: the {kind} {name!a:.80} is {other.dtype} {other.shape!s:.80} in the graph and "
                f"{tensor.dtype} {tensor.shape!s:.80} in the manifest; export the bundle again"
            )


class _Walk:
    """Collects the contents of a file; repeated messages of one field are merged, as parsers do."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._inputs: list[TensorInfo] = []
        self._outputs: list[TensorInfo] = []
        self._filled: set[str] = set()
        self._external: list[ExternalData] = []
        self._rearranged = False

    def graph_file(self) -> GraphFile:
        graphs = [span for number, span in self._reader.fields(self._reader.whole) if number == 7]
        if not graphs:
            raise DamagedError("it has no graph")
        for span in graphs:
            self._interface(span)
        self._collect()
        inputs = [tensor for tensor in self._inputs if tensor.name not in self._filled]
        return GraphFile(inputs, self._outputs, self._external, self._rearranged)

    def _interface(self, graph: int | Span) -> None:
        """Inputs and outputs of the outermost graph, and the names of its initializers."""
        for number, value in self._messages(graph):
            if number in (INPUT, OUTPUT):
                (self._inputs if number == INPUT else self._outputs).append(self._tensor_info(value))
            elif number == INITIALIZER:
                self._filled.add(self._string(value, NAME))

    def _collect(self) -> None:
        """External data of every tensor, wherever it occurs."""
        waiting = [(self._reader.whole, MODEL, 0)]
        while waiting:
            span, kind, depth = waiting.pop()
            if depth > MAX_DEPTH:
                raise DamagedError(f"it is nested more than {MAX_DEPTH} levels deep")
            if kind == TENSOR:
                self._tensor(span)
                continue
            holds = HOLDS[kind]
            for number, value in self._reader.fields(span):
                if number in holds and isinstance(value, Span):
                    waiting.append((value, holds[number], depth + 1))

    def _tensor(self, span: Span) -> None:
        """Record every location, even if the tensor does not say that its data is external: parsers merge messages."""
        dims: list[int] = []
        bits, locations, numbers = 0, [], {"offset": 0, "length": 0}
        for number, value in self._reader.fields(span):
            if number == DIMS:
                dims += self._reader.numbers(value) if isinstance(value, Span) else [value]
                if len(dims) > MAX_RANK:
                    raise DamagedError(f"it has a tensor of more than {MAX_RANK} dimensions")
            elif number == DATA_TYPE and isinstance(value, int):
                bits = BITS.get(value, 0)
            elif number == EXTERNAL_DATA and isinstance(value, Span):
                key, said = self._string(value, 1), self._string(value, 2)
                if key == "location":
                    locations.append(said)
                elif key in numbers:
                    numbers[key] = _integer(key, said)
                elif key.startswith(PREPACKED):
                    self._rearranged = True
        if not locations:
            return
        if min(map(signed, dims), default=1) < 0:
            raise DamagedError("it has a tensor of negative size")
        size = max(numbers["length"], -(-math.prod(dims) * bits // 8))
        self._external += [ExternalData(location, numbers["offset"] + size) for location in locations]

    def _tensor_info(self, value_info: Span) -> TensorInfo:
        name, dtype, shape = "", "unknown", list[int | str]()
        for number, value in self._reader.fields(value_info):
            if number == 1 and isinstance(value, Span):
                name = self._reader.text(value, MAX_NAME)
            elif number == 2:
                for kind, tensor in self._messages(value):
                    if kind == 1:  # a tensor, not a sequence or map
                        dtype, shape = self._type(tensor)
        return TensorInfo(name, dtype, shape)

    def _type(self, tensor: Span) -> tuple[str, list[int | str]]:
        dtype, shape = "unknown", list[int | str]()
        for number, value in self._reader.fields(tensor):
            if number == 1 and isinstance(value, int):
                dtype = DTYPES.get(value, "unknown")
            elif number == 2:
                shape += [self._dimension(dim) for n, dim in self._messages(value) if n == 1]
                if len(shape) > MAX_RANK:
                    raise DamagedError(f"it has a tensor of more than {MAX_RANK} dimensions")
        return dtype, shape

    def _dimension(self, dim: Span) -> int | str:
        size: int | str = ""
        for number, value in self._reader.fields(dim):
            if number == 1 and isinstance(value, int):
                size = signed(value)
            elif number == 2 and isinstance(value, Span):
                size = self._reader.text(value, MAX_NAME)
        return size

    def _messages(self, value: int | Span) -> list[tuple[int, Span]]:
        """The fields of a message that are messages or strings themselves."""
        if not isinstance(value, Span):
            return []
        return [(number, each) for number, each in self._reader.fields(value) if isinstance(each, Span)]

    def _string(self, message: Span, number: int) -> str:
        """A string of a message; the last one if there are several, as in parsers."""
        last = next((span for n, span in reversed(self._messages(message)) if n == number), None)
        return "" if last is None else self._reader.text(last, MAX_NAME)


def _integer(key: str, said: str) -> int:
    if not (said.isascii() and said.isdecimal()) or len(said) > 19:
        raise DamagedError(f"it has external data with {key} {said!a:.40}")
    return int(said)
