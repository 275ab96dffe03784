"""LoRA: low-rank adapters beside the transformer's matrices, through `peft`, and their way into a plain checkpoint."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from training.config import TransformerConfig
from training.errors import TrainingError
from training.models.transformer import Transformer

MATRICES = ("wqkv", "wo", "w1", "w2", "w3")  # of every layer


def add_lora(model: Transformer, rank: int, alpha: float) -> None:
    """Put adapters beside every layer's matrices; they change nothing before they are trained.

    Raises:
        TrainingError: without `peft`.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise TrainingError("LoRA needs peft; pip install peft, or set lora_rank = 0") from None
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(MATRICES)), model)


def is_trained(name: str, lacking: Iterable[str]) -> bool:
    """Whether a parameter is trained beside frozen weights: an adapter's, or one those weights had nothing for.

    What stands in for a dropped text or picture is neither: guidance subtracts what the frozen weights make of it.
    """
    return ".lora_" in name or (name in lacking and not name.endswith("uncond_embedding"))


def merged(config: TransformerConfig, rank: int, alpha: float, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the official names, adapters added to the matrices that they stand beside.

    Args:
        values: `state_dict` of a model with adapters of `rank`; returned as they are where it is 0.
    """
    if not rank:
        return values
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = Transformer(config)
    add_lora(model, rank, alpha)
    model.load_state_dict(values)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge()
    return {
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name
    }
