"""Pictures turned into tokens once, so that training the transformer need not run the VQ encoder.

A shard is one `.npz` of groups: one condition picture and `GROUP` examples on it. The transformer runs the picture
once for all of them, and telling instructions apart on one picture is just what it has to learn.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.checkpoints import open_vq
from training.data.edits import EDIT_KINDS, KINDS, TRANSLATION_TASKS, Example, caption, caption_slots, example
from training.data.features import PatchFeatures
from training.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    MEANINGS,
    SHAPES,
    TEXTURE_SHARES,
    TEXTURES,
    Scene,
    condition_picture,
    meaning,
    random_scene,
    render,
)
from training.models.vq import VQModel

GROUP = 4
EDIT_SHARE = 0.72  # of groups where nothing else is said; the rest are shared evenly by the three translations
EDIT_WEIGHTS = {"recolour": 1.0, "retexture": 1.0, "replace": 1.0, "remove": 0.8, "add": 1.2, "background": 0.7}


def repainted(rng: np.random.Generator, scene: Scene, textures: bool) -> Scene:
    """The same geometry in other colours, on another background, and with other textures where `textures`."""
    objects = tuple(
        dataclasses.replace(
            o,
            colour=str(rng.choice(list(COLOURS))),
            texture=str(rng.choice(TEXTURES, p=TEXTURE_SHARES)) if textures else o.texture,
        )
        for o in scene.objects
    )
    return dataclasses.replace(scene, objects=objects, background=str(rng.choice(list(BACKGROUNDS))))


def random_group(
    rng: np.random.Generator, size: int, edit_share: float = EDIT_SHARE
) -> tuple[NDArray[np.uint8], list[Example]]:
    """A condition picture [size, size, 3] and `GROUP` examples whose condition it is."""
    scene = random_scene(rng, 2 if rng.random() < 0.5 else 3)
    if rng.random() < edit_share:
        kinds = [k for k in EDIT_KINDS if k != "add" or len(scene.objects) < 3]
        weights = np.asarray([EDIT_WEIGHTS[k] for k in kinds])
        drawn = rng.choice(kinds, GROUP, p=weights / weights.sum())
        return render(scene, size), [example(rng, str(k), scene) for k in drawn]
    task = str(rng.choice(TRANSLATION_TASKS))
    examples = []
    for i in range(GROUP):
        # Depth and segmentation do not show colours or textures. Edges show textures; that the edges of the first
        # scene's colours serve for the others' too makes them a little less exact than in use.
        painted = repainted(rng, scene, textures=task != "canny") if i else scene
        text = caption(rng, painted)
        examples.append(Example(task, painted, painted, text, caption_slots(painted, text)))
    return condition_picture(scene, task, size), examples


def group_meanings(examples: list[Example], grid: int) -> NDArray[np.uint8]:
    """`meaning` of the condition and of every target, [1 + GROUP, grid, grid, *].

    The condition pictures of translations show shapes alone; the rest of their meaning is zero.
    """
    condition = meaning(examples[0].source, grid)
    if examples[0].kind in TRANSLATION_TASKS:
        condition = condition * np.isin(MEANINGS, SHAPES)
    return np.stack([condition, *(meaning(e.target, grid) for e in examples)]).astype(np.uint8)


@torch.inference_mode()
def encode_pictures(
    vq: VQModel, pictures: NDArray[np.uint8], batch: int | None = None, dtype: torch.dtype | None = None
) -> NDArray[np.int64]:
    """uint8 [B, H, W, 3] → tokens [B, N], on the device where the tokenizer is.

    Args:
        batch: pictures at a time; when None all of them on a GPU, and 8 on a CPU, where more no longer fit a core's
            cache and take twice as long.
        dtype: of the encoder's products under autocast; None leaves them as they are. The codebook row is always
            looked up in float32.
    """
    device = next(vq.parameters()).device
    batch = batch or (8 if device.type == "cpu" else len(pictures))
    out = []
    for i in range(0, len(pictures), batch):
        pixels = torch.from_numpy(pictures[i : i + batch]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            features = vq.encode_features(pixels.contiguous(memory_format=torch.channels_last))
        out.append(vq.quantize_features(features.float()).cpu().numpy())
    return np.concatenate(out)


def write_shard(
    path: Path,
    vq: VQModel,
    size: int,
    seed: int,
    index: int,
    groups: int,
    features: PatchFeatures | None = None,
    edit_share: float = EDIT_SHARE,
) -> None:
    """Shard `index` of the stream `seed`: conditions uint16 [G, N], targets [G, GROUP, N], texts, kinds, meanings.

    Args:
        features: an encoder whose features of the targets, float16 [G, GROUP, h, w, F], are written too, and its
            type of model.
    """
    rng = np.random.default_rng([seed, index])
    grid = size // vq.config.downsampling
    pictures, texts, tasks, kinds, meanings = [], [], [], [], []
    for _ in range(groups):
        condition, examples = random_group(rng, size, edit_share)
        pictures.append(condition)
        pictures.extend(render(e.target, size) for e in examples)
        texts.append([e.text for e in examples])
        tasks.append([e.task for e in examples])
        kinds.append([KINDS.index(e.kind) for e in examples])
        meanings.append(group_meanings(examples, grid).reshape(1 + GROUP, grid * grid, -1))
    drawn = np.stack(pictures)
    tokens = encode_pictures(vq, drawn).astype(np.uint16).reshape(groups, 1 + GROUP, -1)
    arrays: dict[str, Any] = {
        "condition": tokens[:, 0],
        "target": tokens[:, 1:],
        "text": texts,
        "task": tasks,
        "kind": np.asarray(kinds, np.uint8),
        "meaning": np.stack(meanings),
    }
    save = np.savez_compressed
    if features is not None:
        targets = drawn.reshape(groups, 1 + GROUP, *drawn.shape[1:])[:, 1:]
        arrays["features"] = np.stack([features(group) for group in targets])
        arrays |= features.described
        save = np.savez  # features hardly shrink, and what is stored as it is can be mapped
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as f:
        save(f, **arrays)
    partial.replace(path)


def _write_missing(
    folder: Path,
    vq_path: Path,
    size: int,
    seed: int,
    indices: list[int],
    groups: int,
    vision_encoder: Path | None,
    edit_share: float,
) -> None:
    torch.set_num_threads(1)
    vq = open_vq(vq_path)
    features = PatchFeatures(vision_encoder) if vision_encoder else None
    for index in indices:
        path = folder / f"shard-{index:05d}.npz"
        if not path.exists():
            write_shard(path, vq, size, seed, index, groups, features, edit_share)


def write_shards(
    folder: Path,
    vq_path: Path,
    size: int,
    seed: int,
    shards: int,
    groups: int,
    workers: int = 2,
    vision_encoder: Path | None = None,
    edit_share: float = EDIT_SHARE,
) -> None:
    """Shards 0..shards-1 of `groups` groups each, in `workers` processes; those that lie there already are kept.

    Args:
        vision_encoder: Hugging Face folder of the encoder whose features of the targets are written too.
        edit_share: of the groups; the rest are translations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shares = [list(range(worker, shards, workers)) for worker in range(workers)]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for job in [
            pool.submit(_write_missing, folder, vq_path, size, seed, share, groups, vision_encoder, edit_share)
            for share in shares
        ]:
            job.result()
