"""Every graph of a bundle for TensorRT: operators and types that the parser of 8.5 takes, and static shapes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import editar_rt
from editar_rt import names
from editar_rt.backends.engines.plan import Plan
from editar_rt.bundle.folder import Bundle
from editar_rt.measure import selftest
from export.bundle_writer import Options, Sources, write_bundle
from export.precision import Storage
from tests.export import tensorrt_operators as table

# The parser reads INT64 as INT32, and refuses or clamps what does not fit.
NAMES = {
    ir.DataType.FLOAT: "FP32",
    ir.DataType.FLOAT16: "FP16",
    ir.DataType.INT32: "INT32",
    ir.DataType.INT64: "INT32",
    ir.DataType.BOOL: "BOOL",
    ir.DataType.INT4: "INT4",
}
DATA_INPUT = {"Where": 1}  # else the first decides an operator's type


TRANSFORMERS = {
    "transformer, fp32": "golden_gpt_bundle_delta",
    "transformer, fp32, sampling head": "golden_gpt_bundle_delta_head",
    "transformer, int4": "golden_gpt_bundle_delta_int4",
}


@pytest.fixture(scope="module", params=["all parts, fp16", *TRANSFORMERS])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    if request.param in TRANSFORMERS:
        return Bundle.open(request.getfixturevalue(TRANSFORMERS[request.param]))
    folder: Path = tmp_path_factory.mktemp("delta") / "bundle"
    sources: Sources = request.getfixturevalue("tiny_sources")
    write_bundle(folder, sources, Options(storage=Storage("fp16", "delta")))
    bundle = Bundle.open(folder)
    assert set(bundle.manifest.parts) == set(names.PARTS) - {names.DECODER_CHUNKS, names.SAMPLER}
    return bundle


@pytest.fixture
def graphs(bundle: Bundle) -> dict[str, ir.Model]:
    return {part: ir.load(bundle.part_path(part)) for part in bundle.manifest.parts}


def nodes(graphs: dict[str, ir.Model]) -> Iterator[tuple[str, ir.Node]]:
    for part, model in graphs.items():
        for node in model.graph:
            yield f"{part}: {node.name}", node


@pytest.fixture
def parser(bundle: Bundle) -> table.Parser:
    """Of the oldest TensorRT that a bundle is for."""
    return table.PARSERS["10.0" if bundle.manifest.precision == "int4" else "8.5"]


def test_versions_and_domains(graphs: dict[str, ir.Model], parser: table.Parser) -> None:
    for part, model in graphs.items():
        assert {domain for domain, version in model.opset_imports.items() if version} == {""}
        expected = parser if part == names.DECODER else table.PARSERS["8.5"]
        assert model.opset_imports[""] == expected.opset and model.ir_version <= expected.ir_version, part
        assert all(node.domain == "" for node in model.graph)


def test_the_graphs_are_valid_in_their_opset(bundle: Bundle) -> None:
    """Attributes and inputs that an operator got in a later version would be refused here."""
    for part in bundle.manifest.parts:
        onnx.checker.check_model(str(bundle.part_path(part)), full_check=True)


def refused(graphs: dict[str, ir.Model], parser: table.Parser) -> Iterator[str]:
    """What a parser does not take."""
    for place, node in nodes(graphs):
        if node.op_type not in parser.types:
            yield f"{place} is a {node.op_type}"
            continue
        value = node.inputs[DATA_INPUT.get(node.op_type, 0)]
        assert value is not None and value.dtype is not None, place
        if NAMES[value.dtype] not in parser.types[node.op_type]:
            yield f"{place} has {value.dtype}"
        for output in node.outputs:
            if output.dtype not in NAMES or output.dtype == ir.DataType.INT4:
                yield f"{place} gives {output.dtype}"
            elif node.op_type == "Cast" and NAMES[output.dtype] not in parser.types["Cast"]:
                yield f"{place} casts to {output.dtype}"


def test_operators_and_types(graphs: dict[str, ir.Model], parser: table.Parser) -> None:
    assert not list(refused(graphs, parser)) and not list(refused(graphs, table.PARSERS["10.0"]))
    assert not table.REFUSED_8_5 & table.TYPES_8_5.keys()


def test_int4_weights_are_what_tensorrt_10_reads_and_8_5_does_not(golden_gpt_bundle_delta_int4: Path) -> None:
    graph = ir.load(golden_gpt_bundle_delta_int4 / "decoder.onnx")
    found = list(refused({names.DECODER: graph}, table.PARSERS["8.5"]))
    assert found and all("has INT4" in reason for reason in found)
    dequantized = [node for node in graph.graph if node.op_type == "DequantizeLinear"]
    assert len(dequantized) == len(found) == 3 * 4  # of a layer all but w2, whose 352 inputs are no multiple of 64
    for node in dequantized:
        weight, scales = node.inputs[:2]
        assert weight is not None and scales is not None and len(node.inputs) == 2  # no zero point: symmetric
        assert weight.dtype == ir.DataType.INT4 and scales.dtype == node.outputs[0].dtype == ir.DataType.FLOAT16
        assert weight.const_value is not None and scales.const_value is not None
        (size, features), block = weight.shape.numpy(), node.attributes["block_size"].as_int()  # type: ignore[union-attr]
        assert node.attributes["axis"].as_int() == 0 and block in table.INT4_BLOCKS
        assert size % block == 0 and tuple(scales.shape.numpy()) == (size // block, features)  # type: ignore[union-attr]
        assert [use.node.op_type for use in node.outputs[0].uses()] == ["MatMul"]


def test_what_must_be_constant_is(graphs: dict[str, ir.Model]) -> None:
    for place, node in nodes(graphs):
        for index in table.CONSTANT_INPUTS.get(node.op_type, ()):
            value = node.inputs[index] if index < len(node.inputs) else None
            assert value is None or value.const_value is not None, f"{place}: input {index}"
        if node.op_type.startswith("Reduce") and "axes" not in node.attributes:  # an input, since opset 13 or 18
            axes = node.inputs[1]
            assert axes is not None and axes.const_value is not None, place
        if node.op_type == "TopK":
            assert int(node.inputs[1].const_value.numpy()[0]) <= table.MOST_SORTED  # type: ignore[union-attr]
        if node.op_type == "Resize":
            for name, allowed in table.RESIZE.items():
                assert node.attributes[name].as_string() in allowed
        if node.op_type == "InstanceNormalization":
            value = node.inputs[0]
            assert value is not None and value.shape is not None and 3 <= len(value.shape) <= 5


def test_whole_numbers_fit_32_bits_and_cross_the_boundary_as_int32(graphs: dict[str, ir.Model]) -> None:
    for part, model in graphs.items():
        for value in (*model.graph.inputs, *model.graph.outputs):
            assert value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT32), f"{part}: {value.name}"
        for value in model.graph.initializers.values():
            assert value.const_value is not None
            if value.dtype == ir.DataType.INT64:
                assert np.abs(value.const_value.numpy()).max(initial=0) < 2**31, f"{part}: {value.name}"


def test_every_shape_is_static_once_the_inputs_are(bundle: Bundle) -> None:
    check_shapes_are_static(bundle)


def test_every_shape_of_the_dialect_native_is_static(golden_gpt_bundle_native_fp16: Path) -> None:
    bundle = Bundle.open(golden_gpt_bundle_native_fp16)
    check_shapes_are_static(bundle)
    graph = ir.load(bundle.part_path(names.DECODER)).graph
    found = {node.op_type for node in graph}
    assert {"TensorScatter", "Attention", "RotaryEmbedding", "RMSNormalization"} <= found
    assert not {"Shape", "Expand", "Range"} & found
    assert all(node.inputs[0].dtype == ir.DataType.FLOAT for node in graph if node.op_type == "RMSNormalization")


def check_shapes_are_static(bundle: Bundle) -> None:
    model = bundle.manifest.model
    for shape in Plan.usual(model).shapes(bundle.manifest.parts):
        graph = onnx.load(bundle.part_path(shape.part), load_external_data=False)
        del graph.graph.value_info[:]
        for value in (*graph.graph.input, *graph.graph.output):
            for dimension in value.type.tensor_type.shape.dim:
                if dimension.dim_param:
                    dimension.dim_value = shape.sizes[dimension.dim_param]
        inferred = onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True, data_prop=True)
        found = {value.name: value.type.tensor_type.shape for value in inferred.graph.value_info}
        for node in graph.graph.node:
            for name in node.output:
                if name in found:
                    assert all(d.HasField("dim_value") for d in found[name].dim), f"{shape.name}: {node.name}"
                else:
                    assert any(name == output.name for output in graph.graph.output), f"{shape.name}: {node.name}"


def test_no_graph_of_the_decoder_computes_a_shape(graphs: dict[str, ir.Model]) -> None:
    assert not [node for node in graphs[names.DECODER].graph if node.op_type in ("Shape", "Expand", "Range")]


def test_types_are_in_the_names_of_nodes(graphs: dict[str, ir.Model], bundle: Bundle) -> None:
    """What a weakly typed builder goes by."""
    marks = {ir.DataType.FLOAT: names.FP32_NODE, ir.DataType.FLOAT16: names.FP16_NODE}
    found = set()
    for place, node in nodes(graphs):
        assert node.name is not None
        begins = next((mark for mark in marks.values() if node.name.startswith(mark)), None)
        assert begins == marks.get(node.outputs[0].dtype), place  # type: ignore[arg-type]
        found.add(begins)
    assert (names.FP16_NODE in found) == (bundle.manifest.precision in ("fp16", "int4"))
    every = [node.name for _, node in nodes(graphs)]
    assert len(every) >= len(set(every)) > 100


def test_softmax_and_norms_of_the_decoder_are_float32(graphs: dict[str, ir.Model]) -> None:
    for node in graphs[names.DECODER].graph:
        if node.op_type in ("Softmax", "ReduceMean", "Sqrt", "Div", "Sigmoid"):
            expected = ir.DataType.FLOAT if node.op_type != "Sigmoid" else node.inputs[0].dtype  # type: ignore[union-attr]
            assert node.outputs[0].dtype == expected


def test_the_self_test_holds_through_the_emulation(bundle: Bundle) -> None:
    checks = selftest.verify(editar_rt.load(bundle.folder, device="emulated"))
    assert {check.part for check in checks} == set(bundle.manifest.parts)
    assert all(check.holds for check in checks)
