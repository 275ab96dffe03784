"""Tiny random networks in the layouts of those that measure, for the tests of measures."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch


def write_clip(folder: Path) -> Path:
    """A CLIP of one layer each, with a tokenizer of single characters and its picture settings."""
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True)
    tokens = [
        *string.ascii_lowercase,
        *(c + "</w>" for c in string.ascii_lowercase),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokens), "max_position_embeddings": 12, "bos_token_id": 52, "eos_token_id": 53}
    vision = {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(text_config={**sizes, **text}, vision_config={**sizes, **vision}, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": tokens[-2], "eos_token": tokens[-1], "unk_token": tokens[-1], "pad_token": tokens[-1]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **special}))
    picture = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16}, "crop_size": 16}
    (folder / "preprocessor_config.json").write_text(json.dumps(picture))
    return folder


def write_dino(folder: Path) -> Path:
    """A ViT of two layers; 16×16 pixels are 2×2 patches."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8, initializer_range=0.3)).save_pretrained(folder)
    return folder


def write_lpips_network(path: Path, name: str = "squeeze") -> Path:
    """SqueezeNet 1.1, or VGG-16 (`vgg`), with random weights, as torchvision stores it."""
    from training.lpips import NETWORKS

    torch.manual_seed(0)
    torch.save({f"features.{k}": t for k, t in NETWORKS[name].build().state_dict().items()}, path)
    return path


def write_inception(path: Path) -> Path:
    """A TorchScript network with `layers`, as the FID's Inception has them, of four features."""

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(3, 4, 8, 8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    torch.manual_seed(0)
    torch.jit.script(Features()).save(str(path))
    return path


def write_segmenter(folder: Path, classes: int) -> Path:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=classes,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 8, 8],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=8,
        initializer_range=0.5,
    )
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    return folder


def write_depth_estimator(folder: Path, without: str | None = None) -> Path:
    """A DPT of four layers.

    Args:
        without: beginning of names of weights that the folder shall lack.
    """
    from transformers import DPTConfig, DPTForDepthEstimation

    torch.manual_seed(0)
    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[4, 4, 4, 4],
        fusion_hidden_size=4,
        initializer_range=0.5,
    )
    model = DPTForDepthEstimation(config)
    weights = {k: v for k, v in model.state_dict().items() if without is None or not k.startswith(without)}
    model.save_pretrained(folder, state_dict=weights)
    return folder


def write_dinov2(folder: Path) -> Path:
    """A DINOv2 of one layer with random weights: 28-pixel pictures, 4×4 patches of 24."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=7)
    Dinov2Model(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"size": {"height": 28, "width": 28}}')
    return folder
