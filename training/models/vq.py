"""The VQ tokenizer: pictures to tokens and back.

A convolutional encoder and decoder of the VQGAN kind around a codebook that is searched by cosine.
Parameter names are those of LlamaGen's checkpoints, so that they load strictly. Training losses are not here.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import VQConfig


def group_norm(config: VQConfig, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(config.norm_groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two normalized 3x3 convolutions beside a shortcut: [B, in, H, W] -> [B, out, H, W]."""

    def __init__(self, config: VQConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(config, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(config, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        # Absent where the width stays: the checkpoints have no such key there.
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        else:
            self.nin_shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Self-attention with one head over all pixels: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, config: VQConfig, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(config, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (projection(h).flatten(2) for projection in (self.q, self.k, self.v))  # [B, C, HW]
        # Plain products, not the fused function: they export to every ONNX opset.
        scores = (q.transpose(1, 2) @ k) * x.shape[1] ** -0.5  # [B, HW query, HW key]
        h = v @ scores.softmax(dim=-1).transpose(1, 2)  # [B, C, HW]
        return x + self.proj_out(h.view_as(x))


class Downsample(nn.Module):
    """Halves the side; padded right and below only, as the checkpoints were trained."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution: residual blocks, each followed by attention if asked, then an optional resize."""

    def __init__(
        self,
        config: VQConfig,
        in_channels: int,
        out_channels: int,
        blocks: int,
        attention: bool,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.res = nn.ModuleList(ResnetBlock(config, a, b) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(config, out_channels) for _ in range(blocks if attention else 0))
        # The names differ by direction in the checkpoints, so at most one of the two exists.
        self.downsample = Downsample(out_channels) if downsample else nn.Identity()
        self.upsample = Upsample(out_channels) if upsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return self.upsample(self.downsample(x))


def middle(config: VQConfig, channels: int) -> nn.Sequential:
    return nn.Sequential(
        ResnetBlock(config, channels, channels),
        AttnBlock(config, channels),
        ResnetBlock(config, channels, channels),
    )


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] -> [B, z_channels, H / downsampling, W / downsampling]."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList(
            Level(config, a, b, config.res_blocks, attention=i == last, downsample=i != last)
            for i, (a, b) in enumerate(zip([config.channels, *widths], widths))
        )
        self.mid = middle(config, widths[-1])
        self.norm_out = group_norm(config, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.conv_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """[B, z_channels, h, w] -> pixels [B, 3, h * downsampling, w * downsampling]."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in reversed(config.channel_multipliers)]  # lowest resolution first
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = middle(config, widths[0])
        self.conv_blocks = nn.ModuleList(
            Level(config, a, b, config.res_blocks + 1, attention=i == 0, upsample=i != last)
            for i, (a, b) in enumerate(zip([widths[0], *widths], widths))
        )
        self.norm_out = group_norm(config, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in self.conv_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Codebook(nn.Module):
    """The table of token vectors. Rows are stored as trained and normalized where used."""

    codebook_used: Tensor

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_dim)
        with torch.no_grad():  # of length 1 from the start, as LlamaGen's: how far a row turns in a step depends on it
            self.embedding.weight.copy_(self.normalized())
        # Usage statistics of the official training, of this length whatever the codebook's size; kept to load strictly.
        self.register_buffer("codebook_used", torch.zeros(65536))

    def normalized(self) -> Tensor:
        """Rows of length 1, [codebook_size, codebook_dim]."""
        return F.normalize(self.embedding.weight, dim=-1)


class VQModel(nn.Module):
    """Pictures to tokens and back.

    Pixels are [B, 3, H, W] float in [-1, 1], H and W multiples of `config.downsampling`; decoded pixels may leave
    that range a little. Tokens are [B, N] int64 in [0, codebook_size), in row order of the [h, w] grid.
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Codebook(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)

    def freeze_tokens(self) -> None:
        """Take the encoder and the codebook, all that decides a picture's tokens, out of training."""
        for part in (self.encoder, self.quant_conv, self.quantize):
            part.requires_grad_(False)

    def encode_features(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] -> vectors before normalization, [B, codebook_dim, h, w]."""
        return self.quant_conv(self.encoder(pixels))

    def quantize_features(self, features: Tensor) -> Tensor:
        """Vectors [B, codebook_dim, h, w] -> tokens [B, h * w]: the codebook row of the largest cosine."""
        vectors = F.normalize(features.flatten(2).transpose(1, 2), dim=-1)  # [B, N, codebook_dim]
        return (vectors @ self.quantize.normalized().t()).argmax(dim=-1)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] -> tokens [B, N]."""
        return self.quantize_features(self.encode_features(pixels))

    def lookup(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Tokens [B, N] -> normalized codebook rows [B, codebook_dim, h, w]; differentiable in the codebook.

        Args:
            grid: rows and columns of the picture in tokens; a square when not given.
        """
        h, w = grid or (math.isqrt(tokens.shape[1]),) * 2
        if h * w != tokens.shape[1]:
            raise ValueError(f"{tokens.shape[1]} tokens do not fill a grid of {h} x {w}")
        vectors = F.embedding(tokens, self.quantize.normalized())  # [B, N, codebook_dim]
        return vectors.transpose(1, 2).unflatten(2, (h, w))

    def decode_vectors(self, z: Tensor) -> Tensor:
        """Normalized codebook rows [B, codebook_dim, h, w] -> pixels [B, 3, H, W]."""
        return self.decoder(self.post_quant_conv(z))

    def decode(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Tokens [B, N] -> pixels [B, 3, H, W]; `grid` as in `lookup`."""
        return self.decode_vectors(self.lookup(tokens, grid))
