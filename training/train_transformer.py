"""Trains the transformer as EditAR is trained, the demo's and the paper's by different recipes.

The loss is cross-entropy on the target tokens plus distillation (`training.distillation`). One uniform draw a row
decides the condition dropout that guidance needs. The demo's recipe adds what `training.demo` describes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training import provenance
from training.batches import Batch, PictureGroups, Source, TokenShards, condition_dropout, mixed_groups
from training.checkpoints import open_vq
from training.config import TRANSFORMER_PRESETS, TransformerConfig
from training.demo import StagedGroups, hidden_targets, weigh_objects
from training.distributed import World, join, whole_state
from training.engine import AUTOCAST, Engine, Execution, Phase
from training.errors import TrainingError
from training.grids import edit_grid
from training.logs import Sinks, operations
from training.loop import Average, RunFolder, batch_rng, cosine_schedule, trapezoid_schedule
from training.lora import merged
from training.models.text_encoder import encode
from training.models.transformer import Transformer
from training.optimizers import AdamW, MuonAdam, Optimizer
from training.recipes.transformer import Recipe
from training.release import write_release
from training.student import Frozen, Piece, Student, build_student, read_source, read_teacher, read_validation
from training.validation import count_right, validate

SHOWN = 4  # sample pictures in a grid
PUBLISHED = "transformer.pt"


def learning_rate(recipe: Recipe, step: int) -> float:
    """Factor on the learning rates: one schedule between two restarts."""
    schedule = recipe.schedule
    restarts = [0, *(stage.begins for stage in recipe.demo.stages if stage.restarts), schedule.steps]
    begun = max(at for at in restarts[:-1] if at <= step)
    steps = min(at for at in restarts if at > step) - begun
    if schedule.name == "trapezoid":
        return trapezoid_schedule(step - begun, steps, schedule.warmup, schedule.decay)
    if schedule.name == "cosine":
        return cosine_schedule(step - begun, steps, schedule.warmup)
    return min(1.0, (step - begun + 1) / max(1, schedule.warmup))


@dataclasses.dataclass
class Share:
    """One process's part of a step."""

    groups: NDArray[np.int64]
    pieces: list[Piece]
    totals: Tensor | None = None  # [2], what weights are divided by: of all rows, of those not dropped


class TransformerTask:
    """The recipe as `training.engine` runs it."""

    def __init__(
        self,
        run: RunFolder,
        recipe: Recipe,
        execution: Execution,
        source: Source,
        frozen: Frozen,
        student: Student,
        world: World,
        validation: Source | None = None,
    ) -> None:
        self.run, self.recipe, self.execution, self.world = run, recipe, execution, world
        self.source, self.frozen, self.root, self.validation = source, frozen, student, validation
        model = self.averaged = student.model
        self.config: TransformerConfig = model.config
        if recipe.data.pictures % (world.size * execution.accumulate):
            raise TrainingError(
                f"{recipe.data.pictures} pictures a batch are not shared evenly by {world.size} processes with "
                f"{execution.accumulate} pieces each; choose another --pictures or --accumulate"
            )
        self.staged = None if source.mixed else StagedGroups(recipe, source.is_translation)
        if execution.sample_every and frozen.vq is None:
            raise TrainingError("sample pictures need the tokenizer; give --vq, or set sample_every = 0")
        self.steps, self.seed, self.ema = recipe.schedule.steps, recipe.seed, recipe.ema
        self.modules: dict[str, nn.Module] = {"model": model}
        if student.teacher:
            self.modules["teacher"] = student.teacher
        model.recompute = execution.recompute
        if execution.compile:
            for layer in model.layers:
                layer.compile(backend=execution.compile)
        self.wrapped = world.wrap(student, model.layers)
        self.phases = [
            Phase("optimizer", self.wrapped, self._optimizer(), self.loss, lambda step: learning_rate(recipe, step))
        ]
        rows = recipe.data.pictures * source.examples
        positions = recipe.data.pictures * self.config.block_size + rows * (self.config.max_positions - 1)
        positions -= rows * self.config.block_size
        self.work = (float(positions), self._operations() if execution.peak_tflops else 0.0)
        self.lowers_memory = ("recompute layers (--recompute)",) * (not execution.recompute)
        self.lowers_memory += ("shard the model over GPUs (--parallel fsdp)",) * (not world.sharded)
        self.losses: list[tuple[Tensor, Tensor | None]] = []  # of the step's pieces
        self.summed = torch.zeros(2)  # their means over the steps since the last line of the log
        self.counted = 0  # such steps
        self.right = torch.zeros(len(source.labels), 2)  # changed tokens, those predicted right

    def _optimizer(self) -> Optimizer:
        chosen = self.recipe.optimizer
        if chosen.name == "adamw":
            fused = self.world.device.type == "cuda"
            return AdamW(self.root.parameters(), chosen.lr, chosen.weight_decay, chosen.clip, fused)
        if self.world.sharded:
            raise TrainingError("Muon takes whole matrices, which a sharded model does not have; choose ddp or adamw")
        matrices = [p for p in self.averaged.layers.parameters() if p.ndim == 2]
        return MuonAdam(self.root, matrices, chosen.muon_lr, chosen.lr, chosen.weight_decay)

    def _operations(self) -> float:
        """Floating-point operations of a step, over all processes."""
        with torch.device("meta"):
            model = Transformer(self.config).to("meta")  # the rotary tables, too
            pictures, rows = self.recipe.data.pictures, self.recipe.data.pictures * self.source.examples
            tokens = torch.empty(rows, self.config.block_size, dtype=torch.long)
            states = torch.empty(rows, self.config.cls_token_num, self.config.caption_dim)
            keep = torch.zeros(rows, dtype=torch.bool)
            return operations(lambda: model(tokens[:pictures], states, tokens, keep, keep, picture_is_dropped=False))

    # Batches.

    def groups(self, step: int) -> NDArray[np.int64]:
        """All groups of a step."""
        if self.staged is not None:
            return self.staged.of_step(step)
        return mixed_groups(self.source, self.recipe.seed, step * self.recipe.data.pictures, self.recipe.data.pictures)

    def prepare(self, step: int) -> Share:
        groups, rng = self.groups(step), batch_rng(self.recipe.seed, step)
        rows = len(groups) * self.source.examples
        data = self.recipe.data
        drop_picture, drop_text = condition_dropout(rng, rows, data.drop_both, data.drop_picture, data.drop_text)
        hide = hidden_targets(rng, self.recipe, step, (rows, self.config.block_size))
        mine, own = groups[self.world.share(len(groups))], self.world.share(rows)
        count = self.execution.accumulate
        parts = zip(
            self._batch(self.source, mine).pieces(count),
            drop_picture[own].chunk(count),
            drop_text[own].chunk(count),
            hide[own].chunk(count) if hide is not None else [None] * count,
        )
        return Share(mine, [Piece(*part, picture_is_dropped=bool(part[1].any())) for part in parts])

    def _batch(self, source: Source, groups: NDArray[np.int64]) -> Batch:
        batch = source.batch(groups)
        if self.recipe.demo.object_weight != 1:
            weigh_objects(batch, self.recipe.demo.object_weight)
        return batch

    def begin(self, step: int, prepared: Share, average: Average) -> None:
        weights = [(p.batch.weights, p.batch.weights * ~p.dropped[:, None]) for p in prepared.pieces]
        sums = torch.stack([torch.stack([w.sum() for w in piece]) for piece in weights]).sum(0)
        # As if every piece weighed the same: the mean over pieces and processes is then the mean over the batch.
        totals = self.world.sum(sums) / (self.world.size * len(prepared.pieces))
        prepared.totals = totals.clamp_min(1).to(self.world.device)

    @torch.no_grad()
    def complete(self, batch: Batch) -> Batch:
        """Tokens, states and features that the data do not hold, by the frozen models."""
        if batch.condition.dtype == torch.uint8:
            assert self.frozen.vq is not None
            pictures = batch.target
            if self.frozen.features:
                batch.features = torch.from_numpy(self.frozen.features(pictures.cpu().numpy())).to(pictures.device)
            with torch.autocast(pictures.device.type, enabled=False):  # a token is not rounded
                batch.condition, batch.target = (
                    self.frozen.vq.encode(p.permute(0, 3, 1, 2).float() / 127.5 - 1)
                    for p in (batch.condition, pictures)
                )
            batch.changed = (batch.target != batch.condition) & (batch.kinds == 0)[:, None]
        if batch.text_states is None:
            assert self.frozen.text_encoder is not None
            batch.text_states = encode(self.frozen.text_encoder, batch.text_ids, batch.text_mask)
        return batch

    # Steps.

    def loss(self, prepared: Share, number: int) -> Tensor:
        piece = prepared.pieces[number].to(self.world.device)
        piece.batch = self.complete(piece.batch)
        assert prepared.totals is not None
        loss, taught, right = self.wrapped(piece, prepared.totals)
        self.losses.append((loss.detach(), None if taught is None else taught.detach()))
        self._count(piece, right)
        return loss if taught is None else loss + self.recipe.distillation.weight * taught

    @torch.no_grad()
    def _count(self, piece: Piece, right: Tensor) -> None:
        """Adds, a kind, how many changed tokens (all, in translations) the undropped rows predict."""
        count_right(self.right, piece.batch, self.source.labels, right, ~piece.dropped)

    def end(self, step: int, prepared: Share, average: Average) -> None:
        means = torch.stack([torch.stack([x for x in pair if x is not None]) for pair in self.losses]).mean(0)
        self.summed = self.summed.to(means.device)[: len(means)] + means
        self.counted += 1
        self.losses.clear()

    def measures(self, done: int) -> dict[str, float]:
        counts = self.world.sum(self.right)
        self.right.zero_()
        losses = self.world.sum(self.summed) / (self.world.size * self.counted)
        self.summed, self.counted = torch.zeros(2), 0
        values = dict(zip(("loss", "distillation"), losses.tolist()))
        values["samples"] = float(done * self.recipe.data.pictures * self.source.examples)
        for label, (all_of_them, right) in zip(self.source.labels, counts.tolist()):
            values[f"changed_right_{label}"] = right / max(1.0, all_of_them)
        return values

    def describe(self, prepared: Share) -> str:
        return self.source.describe(prepared.groups)

    def unlogged(self) -> dict[str, Any]:
        return {"losses": (self.world.sum(self.summed) / self.world.size).tolist(), "steps": self.counted}

    def load_unlogged(self, values: dict[str, Any]) -> None:
        self.summed, self.counted = torch.tensor(values["losses"]), values["steps"]

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: dict[str, object]) -> None:
        pass

    # What comes of it.

    def _official(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights under the official names; every process has to ask."""
        return merged(self.config, self.recipe.model.lora_rank, self.recipe.model.lora_alpha, whole_state(values))

    def publish(self, done: int, average: Average) -> None:
        weights = {"model": self._official(self.averaged.state_dict())}
        if average.kept:
            weights["ema"] = self._official(average.kept)
        save_checkpoint(self.run, self.config, weights, done)

    def averaged_model(self, average: Average) -> Transformer | None:
        """A model of the averaged weights in the first process, None in the others; every process has to ask.

        Where there is no average it has the weights themselves.
        """
        weights = self._official(average.values)
        if not self.world.is_first:
            return None
        model = Transformer(self.config).to(self.world.device).eval()
        model.load_state_dict(weights)
        return model

    def completed(self, source: Source, groups: NDArray[np.int64]) -> Batch:
        return self.complete(self._batch(source, groups).to(self.world.device))

    def score(self, done: int, average: Average) -> None:
        if self.validation is None:
            return
        if model := self.averaged_model(average):
            dtype = AUTOCAST[self.execution.precision]
            values = validate(model, self.validation, self.source, self.completed, dtype)
            self.run.log(done, **values)
            self.run.keep_best(PUBLISHED, "validation_loss", values["validation_loss"])
        self.world.wait()

    def show(self, done: int, average: Average, sinks: Sinks) -> None:
        if model := self.averaged_model(average):
            assert self.frozen.vq is not None
            batch = self.completed(self.source, np.arange(min(SHOWN, len(self.source.is_translation))))
            picture = edit_grid(model, self.frozen.vq, batch, self.run.folder / f"samples-{done:08d}.png")
            sinks.picture("samples", picture, done)
        self.world.wait()


def save_checkpoint(
    run: RunFolder, config: TransformerConfig, weights: dict[str, dict[str, Tensor]], step: int
) -> Path:
    """Weights in the official layout, with the configuration beside them.

    Args:
        weights: `model`, those of the last step, and with an average `ema`; the file says under `weights` which it has.
    """
    about = {"weights": list(weights), "step": step, "config": config.to_dict(), "recipe": run.recipe}
    return run.save(PUBLISHED, {**weights, **about})


def described_inputs(source: Source, init: Path | None, **models: Path | None) -> dict[str, str]:
    """What a run learns from beside its recipe, as its checkpoints say it; models that are not given are left out."""
    found = {"init": provenance.of_model(init) if init else "no weights"}
    if isinstance(source, TokenShards):
        found["tokens"] = provenance.of_shards(source.shards, len(source))
    elif isinstance(source, PictureGroups):
        found["data"] = provenance.of_mixture(source.data)
    return found | {name: provenance.of_model(path) for name, path in models.items() if path}


def train(
    folder: Path | str,
    tokens: Path | None,
    text_encoder: Path | None,
    vq: Path | None,
    recipe: Recipe,
    execution: Execution | None = None,
    init: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
    data: Path | None = None,
    teacher_folder: Path | None = None,
    validation: Path | None = None,
) -> Path:
    """Train (or go on training) a transformer; returns the finished checkpoint, `transformer.pt`.

    Args:
        tokens: folder of token shards; None trains on the pictures of `data`, encoded meanwhile.
        text_encoder: may be None where the shards hold text states.
        vq: may be None without a head start, sample pictures and `data`.
        init: weights to start from (`training.checkpoints.initialize_from`), such as LlamaGen's for text to image.
        report: is told what those weights lack, and the first bad records of `data`, by every process its own.
        data: a mixture's TOML file, or a data set (`training.data.sources`).
        teacher_folder: the vision model that is the recipe's teacher; may be None where the shards hold its features.
        validation: token shards, or pictures as `data`, that are not trained on; their loss is logged with every
            checkpoint.

    Raises:
        TrainingError, CheckpointError: parts that do not fit each other.
    """
    execution = execution or Execution()
    with (
        join(execution.device, execution.parallel, AUTOCAST[execution.fsdp_precision]) as world,
        RunFolder(folder, recipe, writes=world.is_first) as run,
    ):
        say = report if world.is_first else lambda line: None
        torch.manual_seed(recipe.seed)
        chosen = recipe.model
        config = TRANSFORMER_PRESETS[chosen.preset]
        source, encoder = read_source(config, tokens, data, text_encoder, vq, report)
        model = Transformer(
            config, chosen.token_dropout, chosen.resid_dropout, chosen.ffn_dropout, chosen.token_dropout_on
        )
        vq_model = open_vq(vq) if vq else None
        if vq_model and vq_model.config.codebook_size != config.vocab_size:
            raise TrainingError(
                f"{vq} has {vq_model.config.codebook_size} tokens, the transformer's vocabulary is "
                f"{config.vocab_size}; choose another preset"
            )
        features = read_teacher(recipe, teacher_folder, world)
        kept = None
        if validation is not None:
            kept, its_encoder = read_validation(config, validation, text_encoder, vq, encoder)
            encoder = encoder or its_encoder
        frozen = Frozen(vq_model, encoder, features)
        if source.mixed and any(stage.groups or stage.translation_share >= 0 for stage in recipe.demo.stages):
            say("the data sets have shares of their own, so the recipe's stages decide the learning rate alone")
        if world.is_first:  # who alone compares them, and writes them down
            run.inputs = described_inputs(source, init, vq=vq, text_encoder=text_encoder, teacher=teacher_folder)
        # A resumed run's weights come from its checkpoint.
        student = build_student(model, recipe, source, frozen, init, (lambda line: None) if run.begun else say)
        for module in (frozen.vq, frozen.text_encoder):
            if module is not None:
                module.to(world.device)
        task = TransformerTask(run, recipe, execution, source, frozen, student, world, kept)
        Engine(run, task, execution, world).run()
        published = run.folder / PUBLISHED
        if world.is_first:
            write_release(run, published)
        del task, student  # with what they hold of the process group
    return published
