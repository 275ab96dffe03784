"""Trains a VQ tokenizer: the demo's on the procedural world, LlamaGen's on pictures, by different recipes.

The demo's run has stages: first without the codebook (a plain autoencoder whose vectors have length 1), then the
codebook is placed by k-means on what the encoder makes, then everything is trained together, rows that fall out of use
being restarted from current vectors. Colour is weighed above brightness and objects above background: PSNR alone hides
lost hues. At last tokens stay as they are and the decoder alone learns to draw them, objects above all, by squared
error: what a token leaves open is then drawn as its mean. LlamaGen's trains with the codebook from the start, with a
perceptual distance and, later, a discriminator (`training.vq_losses`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import VQ_PRESETS
from training.distributed import World, join
from training.engine import Engine, Execution, Phase
from training.errors import TrainingError
from training.grids import save_grid
from training.logs import Sinks, operations
from training.loop import LAST, Average, RunFolder, cosine_schedule
from training.models.vq import VQModel
from training.optimizers import AdamW, MuonAdam, Optimizer
from training.pictures import FolderPictures, Pictures, PictureSource, WorldPictures
from training.provenance import of_files
from training.recipes.vq import Recipe
from training.vq_losses import (
    PatchDiscriminator,
    adaptive_weight,
    discriminator_hinge,
    entropy_loss,
    generator_hinge,
    perceptual_term,
    reconstruction_loss,
)
from training.vq_metrics import Scores, reconstruct

SHOWN = 12  # sample pictures in a grid
KMEANS_BATCHES, KMEANS_PICTURES = 40, 16  # whose vectors the codebook is placed on, and the pictures of each
ENTROPY_VECTORS = 4096  # of a batch, at most, whose distances to all rows the entropy is taken over


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


class Autoencoder(nn.Module):
    """Encoder, codebook and decoder in one forward pass.

    Returns what the losses need: decoded pixels, unit vectors [B, d, h, w], and with the codebook their rows (of the
    same shape) and tokens [B, N].
    """

    def __init__(self, model: VQModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """With `noise` the codebook is left out, and the noise added to the vectors."""
        model = self.model
        vectors = F.normalize(model.encode_features(pixels), dim=1)
        if noise is not None:
            # Noise of about the quantization's size keeps neighbouring vectors meaning similar pictures.
            return model.decode_vectors(F.normalize(vectors + 0.05 * noise, dim=1)), vectors, None, None
        tokens = model.quantize_features(vectors.detach())
        rows = model.lookup(tokens, grid=(vectors.shape[2], vectors.shape[3]))
        return model.decode_vectors(vectors + (rows - vectors).detach()), vectors, rows, tokens


@dataclasses.dataclass
class Share:
    """One process's part of a step."""

    step: int
    whose: slice
    pieces: list[Pictures]
    noise: list[Tensor] | None = None  # of every piece, before the codebook is placed
    decoded: list[Tensor] = dataclasses.field(default_factory=list)  # of every piece, without gradient
    vectors: Tensor | None = None  # of the last piece


class VQTask:
    """The recipe as `training.engine` runs it."""

    def __init__(
        self, run: RunFolder, recipe: Recipe, execution: Execution, source: PictureSource, scores: Scores, world: World
    ) -> None:
        self.run, self.recipe, self.execution, self.source, self.world = run, recipe, execution, source, world
        self.scores = scores
        if recipe.data.batch % (world.size * execution.accumulate):
            raise TrainingError(
                f"{recipe.data.batch} pictures a batch are not shared evenly by {world.size} processes with "
                f"{execution.accumulate} pieces each; choose another --batch or --accumulate"
            )
        torch.manual_seed(recipe.seed)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        model = self.averaged = VQModel(VQ_PRESETS[recipe.model.preset]).to(memory_format=torch.channels_last)
        self.config = model.config
        self.steps, self.seed, self.ema = recipe.schedule.steps, recipe.seed, recipe.ema
        self.perceptual = perceptual_term(recipe.losses.perceptual)
        if self.perceptual:
            self.perceptual.requires_grad_(False).to(world.device)
        self.grid = recipe.data.picture_size // self.config.downsampling
        if recipe.demo.continuous_steps:
            self._check_kmeans()
        if execution.recompute:
            raise TrainingError("the tokenizer's layers are not made to be recomputed; leave --recompute out")
        if execution.compile:
            for part in (model.encoder, model.decoder):
                part.compile(backend=execution.compile)
        self.modules: dict[str, nn.Module] = {"model": model}
        self.root = Autoencoder(model)
        self.lowers_memory = ()
        # Before the codebook is placed nothing trains it.
        self.wrapped = world.wrap(self.root, find_unused=recipe.demo.continuous_steps > 0)
        self.phases = [Phase("optimizer", self.wrapped, self._optimizer(), self.loss, self._factor)]
        if recipe.discriminator.weight:
            self._add_discriminator()
        # How often each row was chosen since the last restart round, or the last line of the log.
        self.usage = torch.zeros(self.config.codebook_size)
        self.counted = torch.zeros(self.config.codebook_size, device=world.device)
        self.terms: dict[str, Tensor] = {}  # of the step
        self.summed: dict[str, Tensor] = {}  # over the steps since the last line of the log
        self.steps_summed: dict[str, int] = {}  # those that had the term
        self.work = (float(recipe.data.batch * self.grid**2), self._operations() if execution.peak_tflops else 0.0)

    def _check_kmeans(self) -> None:
        """More vectors than rows, or some rows would have nowhere to start."""
        vectors, rows = KMEANS_BATCHES * KMEANS_PICTURES * self.grid**2, self.config.codebook_size
        if vectors < rows:
            raise TrainingError(
                f"k-means cannot place {rows} codebook rows on {vectors} vectors, those of "
                f"{KMEANS_BATCHES * KMEANS_PICTURES} pictures of {self.grid} x {self.grid} tokens; choose a larger "
                "data.picture_size, or train with the codebook from the start (--set demo.continuous_steps=0)"
            )

    def _optimizer(self) -> Optimizer:
        recipe, model = self.recipe, self.averaged
        if recipe.optimizer.name == "adam":
            return AdamW(model.parameters(), recipe.optimizer.lr, weight_decay=0.0)
        convolutions = [p for p in model.parameters() if p.ndim == 4]
        return MuonAdam(model, convolutions, recipe.optimizer.muon_lr, recipe.optimizer.lr, weight_decay=1e-3)

    def _add_discriminator(self) -> None:
        recipe = self.recipe
        self.discriminator = PatchDiscriminator(recipe.discriminator.channels)
        self.modules["discriminator"] = self.discriminator
        self.wrapped_discriminator = self.world.wrap(self.discriminator)
        optimizer = AdamW(self.discriminator.parameters(), recipe.optimizer.lr, weight_decay=0.0)
        self.phases.append(
            Phase(
                "discriminator_optimizer",
                self.wrapped_discriminator,
                optimizer,
                self.discriminator_loss,
                self._factor,
                recipe.discriminator.begins,
                "discriminator_gradient",
            )
        )

    def _factor(self, step: int) -> float:
        recipe = self.recipe
        if recipe.drawing(step):
            begun, end, peak = recipe.demo.decoder_from, recipe.schedule.steps, recipe.demo.decoder_lr_factor
        else:
            begun, end, peak = 0, min(recipe.demo.decoder_from or recipe.schedule.steps, recipe.schedule.steps), 1.0
        if recipe.schedule.name == "constant":
            return peak * min(1.0, (step + 1) / recipe.schedule.warmup)
        return peak * cosine_schedule(step - begun, end - begun, recipe.schedule.warmup)

    def _operations(self) -> float:
        size = self.recipe.data.picture_size
        with torch.device("meta"):
            model, pixels = Autoencoder(VQModel(self.config)), torch.empty(self.recipe.data.batch, 3, size, size)
            return operations(lambda: model(pixels, None))

    def quantizing(self, step: int) -> bool:
        return step >= self.recipe.demo.continuous_steps

    # Steps.

    def prepare(self, step: int) -> Share:
        whose = self.world.share(self.recipe.data.batch)
        pictures = self.source.batch(step, whose)
        count = self.execution.accumulate
        weights = [None] * count if pictures.weights is None else pictures.weights.chunk(count)
        return Share(step, whose, [Pictures(*p) for p in zip(pictures.pixels.chunk(count), weights)])

    def begin(self, step: int, prepared: Share, average: Average) -> None:
        recipe, config = self.recipe, self.config
        if step == recipe.demo.continuous_steps and step:
            self.place_codebook()
            average.values["quantize.embedding.weight"].copy_(self.averaged.quantize.embedding.weight)
        if recipe.drawing(step):
            if step == recipe.demo.decoder_from:  # what is exported are the averaged weights: their tokens stay
                self.averaged.load_state_dict(average.values)
            self.averaged.freeze_tokens()
        if not self.quantizing(step):
            shape = (recipe.data.batch, config.codebook_dim, self.grid, self.grid)
            noise = torch.randn(shape, generator=self.generator)[prepared.whose]
            prepared.noise = list(noise.to(self.world.device).chunk(len(prepared.pieces)))

    def loss(self, prepared: Share, number: int) -> Tensor:
        recipe, device = self.recipe, self.world.device
        pictures = prepared.pieces[number]
        weights = None if pictures.weights is None else pictures.weights.to(device, non_blocking=True)
        pictures = prepared.pieces[number] = Pictures(pictures.pixels.to(device, non_blocking=True), weights)
        noise = None if prepared.noise is None else prepared.noise[number]
        decoded, vectors, rows, tokens = self.wrapped(pictures.pixels, noise)
        prepared.decoded.append(decoded.detach())
        prepared.vectors = vectors.detach()
        kind = recipe.reconstruction_of(prepared.step)
        fidelity = reconstruction_loss(kind, decoded, pictures.pixels, pictures.weights, recipe.demo.chroma_weight)
        self.terms = {"reconstruction": fidelity.detach()}
        if self.perceptual:
            distance = self.perceptual(decoded, pictures.pixels)
            self.terms["perceptual"] = distance.detach()
            fidelity = fidelity + recipe.losses.perceptual_weight * distance
        loss = fidelity
        if rows is not None and not recipe.drawing(prepared.step):
            assert tokens is not None
            self.counted += torch.bincount(tokens.flatten(), minlength=self.config.codebook_size)
            codebook_loss = (rows - vectors.detach()).square().sum(1).mean()
            commitment = (rows.detach() - vectors).square().sum(1).mean()
            self.terms |= {"codebook": codebook_loss.detach(), "commitment": commitment.detach()}
            loss = loss + recipe.losses.codebook * codebook_loss + recipe.losses.commitment * commitment
            if recipe.losses.entropy:
                some = vectors.permute(0, 2, 3, 1).flatten(0, 2)[:ENTROPY_VECTORS]
                entropy = entropy_loss(some, self.averaged.quantize.normalized())
                self.terms["entropy"] = entropy.detach()
                loss = loss + recipe.losses.entropy * entropy
        if recipe.discriminator.weight and prepared.step >= recipe.discriminator.begins:
            loss = loss + recipe.discriminator.weight * self._adversarial(decoded, fidelity)
        return loss

    def _adversarial(self, decoded: Tensor, fidelity: Tensor) -> Tensor:
        self.discriminator.requires_grad_(False)
        adversarial = generator_hinge(self.discriminator(decoded))
        self.discriminator.requires_grad_(True)
        self.terms["adversarial"] = adversarial.detach()
        if self.recipe.discriminator.adaptive:
            weight = adaptive_weight(fidelity, adversarial, self.averaged.decoder.conv_out.weight)
            weight = self.world.sum(weight) / self.world.size
            self.terms["adversarial_weight"] = weight
            adversarial = weight * adversarial
        return adversarial

    def discriminator_loss(self, prepared: Share, number: int) -> Tensor:
        pixels, decoded = prepared.pieces[number].pixels, prepared.decoded[number]
        # One pass over both halves: batch statistics that tell real from made would be a verdict without looking.
        real, made = self.wrapped_discriminator(torch.cat((pixels, decoded))).chunk(2)
        loss = discriminator_hinge(real, made)
        self.terms["discriminator"] = loss.detach()
        return self.recipe.discriminator.weight * loss

    def end(self, step: int, prepared: Share, average: Average) -> None:
        recipe, done = self.recipe, step + 1
        for name, value in self.terms.items():
            self.summed[name] = self.summed.get(name, torch.zeros(())).to(value.device) + value.float()
            self.steps_summed[name] = self.steps_summed.get(name, 0) + 1
        if not self.quantizing(step) or recipe.drawing(step):
            return
        self.usage += self.world.sum(self.counted).cpu()
        self.counted.zero_()
        if recipe.demo.restart_every and done % recipe.demo.restart_every == 0:
            if done < 0.8 * min(recipe.demo.decoder_from or recipe.schedule.steps, recipe.schedule.steps):
                assert prepared.vectors is not None
                self.restart_dead_rows(average, prepared.vectors)
            self.usage.zero_()

    def measures(self, done: int) -> dict[str, float]:
        terms = self._means()
        self.summed, self.steps_summed = {}, {}
        recipe = self.recipe
        weights = {
            "reconstruction": 1.0,
            "perceptual": recipe.losses.perceptual_weight,
            "codebook": recipe.losses.codebook,
            "commitment": recipe.losses.commitment,
            "entropy": recipe.losses.entropy,
            "adversarial": recipe.discriminator.weight * terms.get("adversarial_weight", 1.0),
        }
        total = sum(weight * terms[name] for name, weight in weights.items() if name in terms)
        values_now = {"loss": total, **{f"loss_{name}": value for name, value in terms.items()}}
        if not recipe.demo.restart_every and self.quantizing(done - 1) and not recipe.drawing(done - 1):
            values_now["codebook_used_in_training"] = float((self.usage > 0).float().mean())
            self.usage.zero_()
        return values_now

    def _means(self) -> dict[str, float]:
        """The terms' means over the steps since the last line of the log, and over the processes."""
        names = list(self.summed)
        if not names:
            return {}
        means = self.world.sum(torch.stack([self.summed[name] / self.steps_summed[name] for name in names]))
        return dict(zip(names, (means / self.world.size).tolist()))

    def unlogged(self) -> dict[str, Any]:
        return {"terms": self._means(), "steps": self.steps_summed}

    def load_unlogged(self, values: dict[str, Any]) -> None:
        self.steps_summed = values["steps"]
        self.summed = {name: torch.tensor(mean * self.steps_summed[name]) for name, mean in values["terms"].items()}

    def describe(self, prepared: Share) -> str:
        return self.source.describe(prepared.step, prepared.whose)

    def state(self) -> dict[str, Tensor]:
        return {"usage": self.usage, "generator": self.generator.get_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.usage.copy_(state["usage"])
        self.generator.set_state(state["generator"])

    # The codebook.

    @torch.no_grad()
    def place_codebook(self) -> None:
        """Put the codebook's rows where the encoder's vectors lie."""
        model = self.averaged
        vectors = []
        for i in range(KMEANS_BATCHES):
            pixels = self.source.batch(2**41 + i, slice(None), KMEANS_PICTURES).pixels.to(self.world.device)
            vectors.append(F.normalize(model.encode_features(pixels), dim=1).permute(0, 2, 3, 1).flatten(0, 2).cpu())
        centres = kmeans(torch.cat(vectors), self.config.codebook_size, 12, self.generator)
        model.quantize.embedding.weight.copy_(centres)
        self.world.from_first(model.quantize.embedding.weight)

    @torch.no_grad()
    def restart_dead_rows(self, average: Average, vectors: Tensor) -> None:
        """Move rows that were never chosen onto vectors [B, d, h, w] of the current batch."""
        dead = (self.usage == 0).nonzero().flatten()
        pool = vectors.permute(0, 2, 3, 1).flatten(0, 2)
        dead = dead[: len(pool)]
        fresh = pool[torch.randperm(len(pool), generator=self.generator)[: len(dead)].to(pool.device)]
        self.world.from_first(fresh)
        for table in (self.averaged.quantize.embedding.weight, average.values["quantize.embedding.weight"]):
            table[dead.to(table.device)] = fresh

    # What comes of it.

    def publish(self, done: int, average: Average) -> None:
        """The tokenizer, once it is finished: before, its tokens still change."""
        if done == self.steps:
            weights = {name: value.cpu() for name, value in average.values.items()}
            self.run.save("vq.pt", {"model": weights, "config": self.config.to_dict(), "recipe": self.run.recipe})

    def averaged_model(self, average: Average) -> VQModel:
        model = VQModel(self.config).to(self.world.device, memory_format=torch.channels_last)
        model.load_state_dict(average.values)
        return model.eval()

    @torch.no_grad()
    def score(self, done: int, average: Average) -> None:
        if self.world.is_first:
            pixels = self.source.held_out().to(self.world.device)
            self.run.log(done, **self.scores(self.averaged_model(average), pixels, self.quantizing(done - 1)))
        self.world.wait()

    @torch.no_grad()
    def show(self, done: int, average: Average, sinks: Sinks) -> None:
        """Pictures not trained on above what the tokenizer makes of them."""
        if self.world.is_first:
            pixels = self.source.held_out()[:SHOWN].to(self.world.device)
            decoded, _ = reconstruct(self.averaged_model(average), pixels, self.quantizing(done - 1))
            path = self.run.folder / f"samples-{done:08d}.png"
            sinks.picture("reconstructions", save_grid([pixels, decoded], path), done)
        self.world.wait()


def train(
    folder: Path | str,
    recipe: Recipe,
    execution: Execution | None = None,
    pictures: Path | None = None,
    fid_encoder: Path | None = None,
    inception: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train (or go on training) a tokenizer; returns the finished checkpoint, `vq.pt`, or `last.pt` before the end.

    Args:
        pictures: folder of pictures to train on; the procedural world when None.
        fid_encoder, inception: models over whose features Fréchet distances are taken, see
            `training.vq_metrics.Scores`; none is reported without.
        report: is told of the first pictures that cannot be read.

    Raises:
        TrainingError, CheckpointError: parts that do not fit each other, or are missing.
    """
    execution = execution or Execution()
    with (
        join(execution.device, execution.parallel) as world,
        RunFolder(folder, recipe, writes=world.is_first) as run,
    ):
        source: PictureSource
        if pictures is None:
            source = WorldPictures(recipe.seed, recipe.data.batch, recipe.data.picture_size, recipe.object_weight_of)
        else:
            source = FolderPictures(pictures, recipe.seed, recipe.data.batch, recipe.data.picture_size, report)
            run.inputs = {"pictures": of_files(source.paths)} if world.is_first else {}
        task = VQTask(run, recipe, execution, source, Scores(fid_encoder, inception), world)
        Engine(run, task, execution, world).run()
        del task  # with what it holds of the process group
    finished = run.folder / "vq.pt"
    return finished if finished.exists() else run.folder / LAST
