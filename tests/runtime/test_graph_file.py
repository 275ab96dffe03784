"""What a graph may name and say, looked at before an engine opens it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import editar_rt
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.graph_file import read_graph
from editar_rt.bundle.manifest import TensorInfo
from editar_rt.errors import BundleError
from tests.runtime import crafted

OUTSIDE = "../evil.data"


def plain(location: str) -> onnx.ModelProto:
    return crafted.model(weights=crafted.external("weights", location))


def opened(bundle: Path) -> np.ndarray:
    """The pixels of a crafted bundle's decoder."""
    return editar_rt.load(bundle, "cpu", 1).decode_tokens(np.arange(4, dtype=np.int32)[None])


def test_weights_in_a_listed_file_are_those_of_the_graph(tmp_path: Path) -> None:
    expected = opened(crafted.write_bundle(tmp_path / "inside"))
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "any.bin").write_bytes(b"\0" * 64 + crafted.WEIGHTS.tobytes())
    weights = crafted.external("weights", "any.bin", offset=64, length=crafted.WEIGHTS.nbytes)
    crafted.write_bundle(bundle, crafted.model(weights=weights))
    assert np.array_equal(opened(bundle), expected)
    assert Bundle.open(bundle).part_files("vq_decoder") == ["vq_decoder.onnx", "any.bin"]


# Everywhere that a tensor can stand: each puts one with the location there.


def in_initializer(graph: onnx.ModelProto, evil: TensorProto) -> None:
    graph.graph.initializer.append(evil)


def in_sparse_initializer(graph: onnx.ModelProto, evil: TensorProto) -> None:
    indices = helper.make_tensor("indices", TensorProto.INT64, [1], [0])
    graph.graph.sparse_initializer.append(helper.make_sparse_tensor(evil, indices, [200]))


def in_sparse_indices(graph: onnx.ModelProto, evil: TensorProto) -> None:
    values = helper.make_tensor("values", TensorProto.FLOAT, [1], [0])
    graph.graph.sparse_initializer.append(helper.make_sparse_tensor(values, evil, [200]))


def in_constant(graph: onnx.ModelProto, evil: TensorProto) -> None:
    graph.graph.node.insert(0, helper.make_node("Constant", [], ["more"], value=evil))


def in_list_of_tensors(graph: onnx.ModelProto, evil: TensorProto) -> None:
    attribute = onnx.AttributeProto(name="all", type=onnx.AttributeProto.TENSORS, tensors=[evil])
    graph.graph.node[0].attribute.append(attribute)


def in_sparse_attribute(graph: onnx.ModelProto, evil: TensorProto) -> None:
    indices = helper.make_tensor("indices", TensorProto.INT64, [1], [0])
    sparse = helper.make_sparse_tensor(evil, indices, [200])
    graph.graph.node.insert(0, helper.make_node("Constant", [], ["more"], sparse_value=sparse))


def in_branch_of_branch(graph: onnx.ModelProto, evil: TensorProto) -> None:
    output = helper.make_tensor_value_info("evil", TensorProto.FLOAT, None)
    branch = helper.make_graph([], "branch", [], [output], [evil])
    for name in ("within", "outer"):
        node = helper.make_node("If", ["condition"], [name], then_branch=branch, else_branch=branch)
        branch = helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])
    graph.graph.node.extend(branch.node)


def in_function(graph: onnx.ModelProto, evil: TensorProto) -> None:
    node = helper.make_node("Constant", [], ["y"], value=evil)
    function = helper.make_function("own", "f", [], ["y"], [node], [helper.make_opsetid("", crafted.OPSET)])
    graph.functions.append(function)


def in_default_of_a_function(graph: onnx.ModelProto, evil: TensorProto) -> None:
    in_function(graph, helper.make_tensor("none", TensorProto.FLOAT, [1], [0]))
    graph.functions[0].attribute_proto.append(helper.make_attribute("default", evil))


def in_training(graph: onnx.ModelProto, evil: TensorProto) -> None:
    graph.training_info.add().algorithm.initializer.append(evil)


def in_training_beginning(graph: onnx.ModelProto, evil: TensorProto) -> None:
    graph.training_info.add().initialization.initializer.append(evil)


def without_saying_so(graph: onnx.ModelProto, evil: TensorProto) -> None:
    """As one half of a message that comes twice: parsers merge them."""
    evil.data_location = TensorProto.DEFAULT
    in_initializer(graph, evil)


PLACES = [
    in_initializer, in_sparse_initializer, in_sparse_indices, in_constant, in_list_of_tensors, in_sparse_attribute,
    in_branch_of_branch, in_function, in_default_of_a_function, in_training, in_training_beginning, without_saying_so,
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_location_is_found_wherever_a_tensor_stands(
    tmp_path: Path, place: Callable[[onnx.ModelProto, TensorProto], None]
) -> None:
    (tmp_path / "evil.data").write_bytes(crafted.WEIGHTS.tobytes())
    graph = crafted.model()
    place(graph, crafted.external("evil", OUTSIDE))
    bundle = crafted.write_bundle(tmp_path / "bundle", graph)
    with pytest.raises(
        BundleError, match=r"takes weights from '\.\./evil\.data', which is not a file inside the bundle"
    ):
        Bundle.open(bundle).part_path("vq_decoder")


def test_a_second_graph_of_the_file_is_looked_at_too(tmp_path: Path) -> None:
    """Parsers merge a field that comes twice."""
    bundle = tmp_path / "bundle"
    crafted.write_bundle(bundle)
    more = onnx.ModelProto()
    more.graph.initializer.append(crafted.external("evil", OUTSIDE))
    (bundle / "vq_decoder.onnx").write_bytes(crafted.model().SerializeToString() + more.SerializeToString())
    assert [each.location for each in read_graph(bundle / "vq_decoder.onnx").external] == [OUTSIDE]


FORBIDDEN_LOCATIONS = [
    "../evil.data", "/etc/hostname", "sub/../../evil.data", "C:\\evil.data", "\\\\host\\evil.data", "..\\evil.data",
    "", "weights.data\0", "a\nb", "*/_ORT_MEM_ADDR_/*",
]  # fmt: skip


@pytest.mark.parametrize("location", FORBIDDEN_LOCATIONS)
def test_a_location_that_leaves_the_bundle_is_refused(tmp_path: Path, location: str) -> None:
    bundle = crafted.write_bundle(tmp_path / "bundle", plain(location))
    with pytest.raises(BundleError, match="which is not a file inside the bundle; do not trust it"):
        opened(bundle)


def test_weights_that_no_manifest_lists_are_refused(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / crafted.DATA).write_bytes(crafted.WEIGHTS.tobytes())
    crafted.write_bundle(bundle, plain(crafted.DATA), lambda m: crafted.without(m, crafted.DATA))
    with pytest.raises(BundleError, match=r"'vq_decoder\.onnx\.data', for which bundle\.json has no size and hash"):
        opened(bundle)


BEYOND_THE_END = {
    "offset": crafted.external("weights", crafted.DATA, offset=4),
    "length": crafted.external("weights", crafted.DATA, length=10**6),
    "dims": crafted.external("weights", crafted.DATA, dims=(4, 10**9)),
}


@pytest.mark.parametrize("tensor", BEYOND_THE_END.values(), ids=BEYOND_THE_END)
def test_weights_behind_the_end_of_their_file_are_refused(tmp_path: Path, tensor: TensorProto) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / crafted.DATA).write_bytes(crafted.WEIGHTS.tobytes())
    crafted.write_bundle(bundle, crafted.model(weights=tensor))
    with pytest.raises(BundleError, match=r"up to byte \d+, but it has 768 bytes"):
        opened(bundle)


OTHER_TENSORS = [
    (
        "inputs",
        TensorInfo("tokens", "int64", ["rows", 4]),
        r"tokens' is int32 \['rows', 4\] in the graph and int64",
    ),
    ("outputs", TensorInfo("pixels", "float16", ["rows", 3, 4, 4]), "pixels' is float32 .* and float16"),
    (
        "inputs",
        TensorInfo("more", "int32", ["rows", 4]),
        "the manifest has the input 'more', which the graph lacks",
    ),
]


@pytest.mark.parametrize(("field", "tensor", "says"), OTHER_TENSORS)
def test_a_graph_that_is_not_as_described_is_refused(tmp_path: Path, field: str, tensor: TensorInfo, says: str) -> None:
    bundle = crafted.write_bundle(tmp_path / "bundle")
    path = bundle / "bundle.json"
    manifest = Bundle.open(bundle).manifest
    part = manifest.parts["vq_decoder"]
    kept = [t for t in getattr(part, field) if t.name != tensor.name]
    changed = dataclasses.replace(part, **{field: [*kept, tensor]})
    path.write_text(dataclasses.replace(manifest, parts={"vq_decoder": changed}).to_json())
    with pytest.raises(BundleError, match=says):
        opened(bundle)


OTHER_SHAPES = [[None], [None, 3, 4, 4, 1], [None, 3, 4, 5]]


@pytest.mark.parametrize("output", OTHER_SHAPES)
def test_a_graph_of_another_shape_is_refused(tmp_path: Path, output: list[int | None]) -> None:
    graph = crafted.model()
    graph.graph.output[0].CopyFrom(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, output))
    bundle = crafted.write_bundle(tmp_path / "bundle", graph)
    with pytest.raises(BundleError, match=r"the output 'pixels' is float32 \[.*\] in the graph and float32"):
        opened(bundle)


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def nested(levels: int) -> bytes:
    content = b""
    for _ in range(levels):
        content = message(7, content) if not content else message(1, message(5, message(6, content)))
    return message(7, content)


NO_GRAPHS = [
    (b"", "it is empty"),
    (b"\0" * 100, "a field of number 0"),
    (b"not a graph at all", "."),
    (message(8, b""), "it has no graph"),
    (message(7, b"")[:-1] + b"\x7f", "a length in it exceeds"),
    (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "a number of too many bytes"),
    (b"\xba\x80\x80\x80\x80\x01" + b"\x00", "a number of too many bytes"),
    (b"\xba\x80\x80\x80\x10\x00", "a field of number"),
    (b"\x3b\x3c", "a field of wire type 3"),
    (b"\x3d\x00", "it is truncated"),
    (nested(100), "nested more than 64 levels"),
    (message(7, b"\x78\x00" * (1 << 20)), "more than 1048576 fields"),
]


@pytest.mark.parametrize(("content", "says"), NO_GRAPHS)
def test_a_file_that_is_no_graph_is_one_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"is not an ONNX graph that can be trusted .*{says}"):
        read_graph(path)


def test_a_graph_by_another_suffix_is_refused(tmp_path: Path) -> None:
    """By .ort, ONNX Runtime reads a format that is not looked into here."""
    bundle = crafted.write_bundle(tmp_path / "bundle")
    manifest = bundle / "bundle.json"
    (bundle / "vq_decoder.onnx").rename(bundle / "vq_decoder.ort")
    manifest.write_text(manifest.read_text().replace("vq_decoder.onnx", "vq_decoder.ort"))
    with pytest.raises(BundleError, match=r"vq_decoder: file must end with \.onnx, got 'vq_decoder\.ort'"):
        Bundle.open(bundle)
