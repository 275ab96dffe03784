"""Bundles by hand, for what no exporter writes: graphs of a few nodes, made without PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from editar_rt.bundle.folder import list_files
from editar_rt.bundle.manifest import MANIFEST_NAME, Manifest, ModelInfo, Part, TensorInfo

IR_VERSION, OPSET = 9, 17  # that the oldest ONNX Runtime allowed reads
MODEL = ModelInfo(
    image_size=4,
    downsampling=2,
    grid=2,
    picture_tokens=4,
    codebook_size=8,
    codebook_dim=2,
    parameters={"vq_decoder": 1},
)
DECODER = Part(
    "vq_decoder.onnx",
    [TensorInfo("tokens", "int32", ["rows", 4])],
    [TensorInfo("pixels", "float32", ["rows", 3, 4, 4])],
)
WEIGHTS = np.linspace(-1, 1, 4 * 48, dtype=np.float32).reshape(4, 48)
DATA = "vq_decoder.onnx.data"


def external(name: str, location: str, dims: Sequence[int] = WEIGHTS.shape, **numbers: int) -> TensorProto:
    """A float32 tensor whose values lie in another file."""
    tensor = TensorProto(name=name, dims=dims, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **numbers}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def model(part: Part = DECODER, weights: TensorProto | None = None) -> onnx.ModelProto:
    """Tokens times `weights` (inside of the file when None), as pixels."""
    weights = numpy_helper.from_array(WEIGHTS, "weights") if weights is None else weights
    shape = numpy_helper.from_array(np.array([-1, 3, 4, 4]), "shape")
    nodes = [
        helper.make_node("Cast", ["tokens"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["real", weights.name], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["pixels"]),
    ]
    return _model(part, nodes, [weights, shape])


def wide(width: int = 2048) -> onnx.ModelProto:
    """As `model`, over a layer of some width: weights of 208 bytes times that, with nothing in them twice."""
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, width), (width, 48)))
    made = model(weights=numpy_helper.from_array(second, "weights"))
    made.graph.initializer.append(numpy_helper.from_array(first, "first"))
    made.graph.node.insert(1, helper.make_node("MatMul", ["real", "first"], ["hidden"]))
    made.graph.node[2].input[0] = "hidden"
    return made


def failing(part: Part) -> onnx.ModelProto:
    """A graph of a part's inputs and outputs that fails when it runs."""
    none = helper.make_node("Gather", [part.inputs[0].name, "beyond"], ["none"])
    outputs = [helper.make_node("Cast", ["none"], [tensor.name], to=_dtype(tensor)) for tensor in part.outputs]
    return _model(part, [none, *outputs], [numpy_helper.from_array(np.array([10**6]), "beyond")])


def write_bundle(
    folder: Path, graph: onnx.ModelProto | None = None, change: Callable[[Manifest], Manifest] = lambda m: m
) -> Path:
    """A bundle of a VQ decoder alone, every file of the folder listed.

    Args:
        change: the manifest, before it is written.
    """
    folder.mkdir(exist_ok=True)
    onnx.save(model() if graph is None else graph, folder / DECODER.file)
    manifest = change(Manifest(model=MODEL, parts={"vq_decoder": DECODER}, files=list_files(folder)))
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return folder


def without(manifest: Manifest, name: str) -> Manifest:
    """A manifest that does not list a file."""
    return dataclasses.replace(manifest, files={n: f for n, f in manifest.files.items() if n != name})


def _model(part: Part, nodes: list[onnx.NodeProto], initializers: list[TensorProto]) -> onnx.ModelProto:
    inputs, outputs = (
        [helper.make_tensor_value_info(t.name, _dtype(t), t.shape) for t in tensors]
        for tensors in (part.inputs, part.outputs)
    )
    graph = helper.make_graph(nodes, "crafted", inputs, outputs, initializers)
    made: onnx.ModelProto = helper.make_model(
        graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
    )
    return made


def _dtype(tensor: TensorInfo) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
