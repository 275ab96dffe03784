"""The feed-forward parts as ONNX graphs, traced by torch.onnx: VQ encoder, VQ decoder, text encoder.

Each part is a small module that adapts a PyTorch model to the types and shapes of the bundle. The number of rows is
dynamic, everything else is fixed. Precision "fp16" affects only the text encoder: the VQ tokenizer runs just twice per
picture, and a flipped token is a wrong patch, so it stays float32.

The graphs are converted to opset 17, the newest that TensorRT 8.5 reads, so that every runtime uses the same graph.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from editar_rt import names
from export.graph_writer import mark_precisions, without_traces
from training.models.vq import VQModel

OPSET = 18  # the lowest that the exporter supports
LOWERED_OPSET, LOWERED_IR = 17, 8
FLOAT32_WEIGHTS = ".wo.weight"  # of a text encoder in float16; `half_copy` says why
EXAMPLE_ROWS = 2  # one row would be treated as a constant


class PixelsToTokens(nn.Module):
    """pixels float32 [B, 3, H, W] in [-1, 1] -> tokens int32 [B, N]."""

    def __init__(self, vq: VQModel) -> None:
        super().__init__()
        self.vq = vq

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vq.encode(pixels).to(torch.int32)


class TokensToPixels(nn.Module):
    """tokens int32 [B, N] -> pixels float32 [B, 3, H, W], not clamped."""

    def __init__(self, vq: VQModel) -> None:
        super().__init__()
        self.vq = vq

    def forward(self, tokens: Tensor) -> Tensor:
        return self.vq.decode(tokens)


class TextToStates(nn.Module):
    """input_ids and attention_mask int32 [B, T] -> text_states float32 [B, T, C]."""

    position_bias: Tensor

    def __init__(self, encoder: nn.Module, text_tokens: int) -> None:
        super().__init__()
        stack: Any = encoder.encoder
        self.stack = stack
        # All texts have the same length, so this is a constant; traced, it would be thirty integer operators.
        bias = stack.block[0].layer[0].SelfAttention.compute_bias(text_tokens, text_tokens)
        self.register_buffer("position_bias", bias.detach())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Tensor = self.stack.embed_tokens(input_ids)
        # Half of the lowest number: a sum with it stays finite, and its softmax is still 0.
        masked = (1 - attention_mask[:, None, None, :].to(hidden.dtype)) * (torch.finfo(hidden.dtype).min / 2)
        hidden, bias = hidden.float(), self.position_bias + masked
        for block in self.stack.block:
            hidden = block(hidden, position_bias=bias)[0]
        states: Tensor = self.stack.final_layer_norm(hidden)
        return states.float()


def vq_encoder_graph(vq: VQModel, image_size: int) -> ir.Model:
    """Pictures of image_size × image_size pixels to tokens; the nearest codebook row is found in the graph."""
    pixels = torch.zeros(EXAMPLE_ROWS, 3, image_size, image_size)
    return _traced(PixelsToTokens(vq), {names.PIXELS: pixels}, [names.TOKENS])


def vq_decoder_graph(vq: VQModel, image_size: int) -> ir.Model:
    """Tokens to pictures of image_size × image_size pixels."""
    tokens = torch.zeros(EXAMPLE_ROWS, (image_size // vq.config.downsampling) ** 2, dtype=torch.int32)
    return _traced(TokensToPixels(vq), {names.TOKENS: tokens}, [names.PIXELS])


class Product(nn.Module):
    """A linear layer whose matrix has the graph's layout, [in, out].

    The exporter would transpose it and keep both copies; a view is transposed only when it is written, one at a time.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().t(), requires_grad=False)

    def forward(self, value: Tensor) -> Tensor:
        return value @ self.weight


def text_encoder_graph(encoder: nn.Module, text_tokens: int) -> ir.Model:
    """A Hugging Face T5 encoder, or its `half_copy`, over texts padded to `text_tokens`.

    The encoder is modified: its linear layers are replaced by `Product`s, one after the other.
    """
    # Only parents: a list of all modules would keep the replaced linear layers alive.
    for module in [module for module in encoder.modules() if not isinstance(module, nn.Linear)]:
        for name in [name for name, child in module.named_children() if isinstance(child, nn.Linear)]:
            if getattr(module.get_submodule(name), "bias", None) is None:
                setattr(module, name, Product(module.get_submodule(name)))  # type: ignore[arg-type]
    encoder.set_attn_implementation("eager")  # type: ignore[operator]  # plain matmuls; the fused attention cannot be traced
    # Two tensors: the same tensor twice would become a single input.
    inputs = {
        name: torch.ones(EXAMPLE_ROWS, text_tokens, dtype=torch.int32)
        for name in (names.INPUT_IDS, names.ATTENTION_MASK)
    }
    return _traced(TextToStates(encoder, text_tokens), inputs, [names.TEXT_STATES])


def half_copy(encoder: nn.Module) -> nn.Module:
    """The encoder in float16, except the last matrix of each feed-forward, whose results exceed float16's range in T5.

    The residual stream is float32, like this matrix's result; T5 normalizes in float32 anyway.
    """
    with torch.device("meta"):
        copy: nn.Module = type(encoder)(encoder.config)
    weights = {
        name: weight if name.endswith(FLOAT32_WEIGHTS) else weight.half()
        for name, weight in encoder.state_dict().items()
    }
    copy.load_state_dict(weights, assign=True)
    copy.tie_weights()  # type: ignore[operator]  # the embedding occurs twice in the state
    return copy


def _traced(module: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str]) -> ir.Model:
    rows = torch.export.Dim(names.ROWS_DIM)
    # The exporter warns about packages that are not used here, and logs its optimizer's steps.
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.ERROR)
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes={name: {0: rows} for name in inputs},
            opset_version=OPSET,
            verbose=False,
        )
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
    assert program is not None  # dynamo=True always returns one
    model = lowered(without_traces(program.model))
    mark_precisions(model.graph)
    return model


def lowered(model: ir.Model) -> ir.Model:
    """Convert a model from opset 18 to opset 17, in place, for the operators that occur in it."""
    for node in model.graph:
        attributes = node.attributes
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.inputs) == 2:
            axes = node.inputs[1]
            assert axes is not None and axes.const_value is not None  # modules reduce along fixed axes
            attributes["axes"] = ir.AttrInt64s("axes", axes.const_value.numpy().tolist())
            node.resize_inputs(1)
            attributes.pop("noop_with_empty_axes", None)
        if node.op_type == "Resize":  # they have their defaults, and every axis has one size
            for name in ("antialias", "keep_aspect_ratio_policy"):
                attributes.pop(name, None)
    model.graph.opset_imports[""] = LOWERED_OPSET
    model.ir_version = LOWERED_IR
    return model
