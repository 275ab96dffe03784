"""Trains the demo's VQ tokenizer on the procedural world.

Stages of one run: first without the codebook (a plain autoencoder whose vectors have length 1), then the codebook is
placed by k-means on what the encoder makes, then everything is trained together, rows that fall out of use being
restarted from current vectors. Colour is weighed above brightness and objects above background: PSNR alone hides
lost hues.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from training.config import VQ_PRESETS
from training.data.scenes import condition_picture, object_mask, random_scene, render
from training.loop import Average, MuonAdam, RunFolder, batch_rng, cosine_schedule
from training.models.vq import VQModel


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the demo's tokenizer is trained."""

    preset: str = "VQ-8-demo"
    picture_size: int = 64
    seed: int = 1
    steps: int = 3000
    batch: int = 8
    muon_lr: float = 4e-3  # of the convolutions
    adam_lr: float = 2e-3  # of norms, biases and the codebook
    warmup: int = 50
    continuous_steps: int = 500  # before the codebook is placed
    commitment: float = 0.25
    codebook_weight: float = 1.0
    chroma_weight: float = 1.5
    object_weight: float = 2.0
    ema: float = 0.998
    restart_every: int = 100


# RGB to one brightness and two colour-difference channels, ITU-R BT.601.
_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])


def batch_pictures(rng: np.random.Generator, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Pictures of the world and its condition maps: [count, 3, size, size] in [-1, 1], object masks [count, 1, ...]."""
    pictures = np.empty((count, size, size, 3), np.uint8)
    masks = np.zeros((count, 1, size, size), np.float32)
    for i in range(count):
        scene = random_scene(rng, int(rng.choice([1, 2, 3], p=[0.1, 0.3, 0.6])))
        kind = rng.choice(["picture", "depth", "canny", "segmentation"], p=[0.79, 0.06, 0.09, 0.06])
        pictures[i] = render(scene, size) if kind == "picture" else condition_picture(scene, str(kind), size)
        for o in scene.objects if kind != "canny" else ():
            masks[i, 0] = np.maximum(masks[i, 0], object_mask(o, size))
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1, torch.from_numpy(masks)


def reconstruction_loss(recipe: Recipe, decoded: Tensor, pixels: Tensor, masks: Tensor) -> Tensor:
    """Absolute and squared error in brightness and colour, objects weighted, plus the error of 4x4 means."""
    weight = torch.tensor([1.0, recipe.chroma_weight, recipe.chroma_weight])[None, :, None, None]
    error = torch.einsum("bchw,dc->bdhw", decoded - pixels, _YCC) * weight
    error = error.contiguous()
    emphasis = (1 + recipe.object_weight * masks) / (1 + recipe.object_weight * masks.mean())
    fine = (emphasis * (error.abs() + 2 * error.square())).mean()
    coarse = F.avg_pool2d(error, 4).abs().mean()
    return fine + coarse


@torch.no_grad()
def kmeans(vectors: Tensor, count: int, rounds: int, generator: torch.Generator) -> Tensor:
    """Spherical k-means: unit vectors [M, d] -> `count` unit centres [count, d]."""
    centres = vectors[torch.randperm(len(vectors), generator=generator)[:count]].clone()
    for _ in range(rounds):
        nearest = (vectors @ centres.t()).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        used = torch.bincount(nearest, minlength=count) > 0
        fresh = vectors[torch.randint(len(vectors), (count,), generator=generator)]
        centres = F.normalize(torch.where(used[:, None], sums, fresh), dim=-1)
    return centres


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB a picture of [B, 3, H, W] in [-1, 1]."""
    mse = (a.clamp(-1, 1) - b).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / mse.clamp_min(1e-9))


def sample_grid(pixels: Tensor, decoded: Tensor, path: Path) -> None:
    """Pictures above their reconstructions, as a PNG."""
    both = torch.cat([torch.cat(list(x), dim=2) for x in (pixels, decoded.clamp(-1, 1))], dim=1)
    Image.fromarray(((both + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(path)


def train(folder: Path | str, recipe: Recipe, log_every: int = 50, save_every: int = 250) -> Path:
    """Train (or go on training) a tokenizer; returns the path of the finished checkpoint, `vq.pt`."""
    run = RunFolder(folder, dataclasses.asdict(recipe))
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    model = VQModel(VQ_PRESETS[recipe.preset]).to(memory_format=torch.channels_last)
    convolutions = [p for p in model.parameters() if p.ndim == 4]
    optimizer = MuonAdam(model, convolutions, recipe.muon_lr, recipe.adam_lr, weight_decay=1e-3)
    average = Average(model, recipe.ema)
    codebook_size = model.config.codebook_size
    usage = torch.zeros(codebook_size)  # how often each row was chosen since the last restart round
    first = 0
    if state := run.load_last():
        first = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.values, usage = state["average"], state["usage"]
        generator.set_state(state["generator"])

    validation, _ = batch_pictures(batch_rng(recipe.seed, 2**40), 96, recipe.picture_size)
    for step in range(first, recipe.steps):
        if step == recipe.continuous_steps:
            place_codebook(model, recipe, generator)
            average.values["quantize.embedding.weight"].copy_(model.quantize.embedding.weight)
        pixels, masks = batch_pictures(batch_rng(recipe.seed, step), recipe.batch, recipe.picture_size)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        vectors = F.normalize(model.encode_features(pixels), dim=1)
        if step < recipe.continuous_steps:
            # Noise of about the quantization's size keeps neighbouring vectors meaning similar pictures.
            noisy = F.normalize(vectors + 0.05 * torch.randn(vectors.shape, generator=generator), dim=1)
            loss = reconstruction_loss(recipe, model.decode_vectors(noisy), pixels, masks)
        else:
            tokens = model.quantize_features(vectors.detach())
            usage += torch.bincount(tokens.flatten(), minlength=codebook_size)
            rows = model.lookup(tokens)
            codebook_loss = (rows - vectors.detach()).square().sum(1).mean()
            commitment = (rows.detach() - vectors).square().sum(1).mean()
            decoded = model.decode_vectors(vectors + (rows - vectors).detach())
            loss = reconstruction_loss(recipe, decoded, pixels, masks)
            loss = loss + recipe.codebook_weight * codebook_loss + recipe.commitment * commitment
        loss.backward()
        norm = optimizer.step(cosine_schedule(step, recipe.steps, recipe.warmup))
        average.update(model, step)
        done = step + 1
        quantizing = step >= recipe.continuous_steps
        if quantizing and done % recipe.restart_every == 0:
            if done < 0.8 * recipe.steps:
                restart_dead_rows(model, average, usage, vectors.detach(), generator)
            usage.zero_()
        if done % log_every == 0:
            run.log(done, loss=loss.item(), gradient=norm)
        if done % save_every == 0 or done == recipe.steps:
            run.save_last(
                done,
                model=model.state_dict(),
                optimizer=optimizer.state_dict(),
                average=average.values,
                usage=usage,
                generator=generator.get_state(),
            )
            validate(run, model, average, validation, done, quantizing)
    return run.save("vq.pt", {"model": average.values, "config": model.config.to_dict(), "recipe": run.recipe})


@torch.no_grad()
def place_codebook(model: VQModel, recipe: Recipe, generator: torch.Generator) -> None:
    """Put the codebook's rows where the encoder's vectors lie."""
    vectors = []
    for i in range(40):
        pixels, _ = batch_pictures(batch_rng(recipe.seed, 2**41 + i), 16, recipe.picture_size)
        features = model.encode_features(pixels.contiguous(memory_format=torch.channels_last))
        vectors.append(F.normalize(features, dim=1).permute(0, 2, 3, 1).flatten(0, 2))
    model.quantize.embedding.weight.copy_(kmeans(torch.cat(vectors), model.config.codebook_size, 12, generator))


@torch.no_grad()
def restart_dead_rows(
    model: VQModel, average: Average, usage: Tensor, vectors: Tensor, generator: torch.Generator
) -> None:
    """Move rows that were never chosen onto vectors [B, d, h, w] of the current batch."""
    dead = (usage == 0).nonzero().flatten()
    pool = vectors.permute(0, 2, 3, 1).flatten(0, 2)
    dead = dead[: len(pool)]
    fresh = pool[torch.randperm(len(pool), generator=generator)[: len(dead)]]
    model.quantize.embedding.weight[dead] = fresh
    average.values["quantize.embedding.weight"][dead] = fresh


@torch.no_grad()
def validate(run: RunFolder, model: VQModel, average: Average, pixels: Tensor, step: int, quantizing: bool) -> None:
    """PSNR and codebook usage of the averaged weights on pictures not trained on, and a sample grid."""
    averaged = VQModel(model.config).to(memory_format=torch.channels_last)
    averaged.load_state_dict(average.values)
    vectors = F.normalize(averaged.encode_features(pixels.contiguous(memory_format=torch.channels_last)), dim=1)
    tokens = averaged.quantize_features(vectors)
    decoded = averaged.decode_vectors(averaged.lookup(tokens) if quantizing else vectors)
    scores = psnr(decoded, pixels)
    used = len(tokens.unique()) / model.config.codebook_size
    run.log(
        step,
        validation_psnr=float(scores.mean()),
        validation_psnr_lowest_tenth=float(scores.sort().values[: len(scores) // 10].mean()),
        codebook_used=used if quantizing else 0.0,
    )
    sample_grid(pixels[:12], decoded[:12], run.folder / "samples.png")
