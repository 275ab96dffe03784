"""The tokenizer's losses against values worked out by hand, and LlamaGen's recipe at a tiny size."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402

from tests.training.metric_networks import write_dinov2, write_inception, write_lpips_network  # noqa: E402
from tests.training.tiny import EVERY_STEP, VQ, read_log, write_toml  # noqa: E402
from training import train_vq  # noqa: E402
from training.checkpoints import CheckpointError, open_vq  # noqa: E402
from training.config import VQ_PRESETS  # noqa: E402
from training.data.records import DataError  # noqa: E402
from training.data.scenes import random_scene, render  # noqa: E402
from training.errors import NotFinite, TrainingError  # noqa: E402
from training.pictures import FolderPictures  # noqa: E402
from training.recipes import files  # noqa: E402
from training.recipes.fields import changed  # noqa: E402
from training.vq_losses import (  # noqa: E402
    EdgeDistance,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_hinge,
    entropy_loss,
    generator_hinge,
    perceptual_term,
    reconstruction_loss,
)
from training.vq_metrics import Scores, psnr, ssim  # noqa: E402

LLAMAGEN, _ = files.combined(train_vq.Recipe, "vq-16", "vq", {})
SMALL = changed(
    LLAMAGEN,
    {
        "model.preset": "VQ-tiny",
        "data.picture_size": 32,
        "data.batch": 4,
        "schedule.steps": 4,
        "losses.perceptual": "edges",
        "losses.entropy": 0.1,
        "discriminator.begins": 2,
        "discriminator.channels": 4,
        "discriminator.adaptive": True,
    },
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures of the world and one file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(render(random_scene(rng, 2), 64)).save(folder / f"{i}.png")
    (folder / "3b.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vq")
    train_vq.train(folder, SMALL, EVERY_STEP, pictures)
    return folder


def test_reconstruction_weighs_pixels() -> None:
    pixels = torch.zeros(1, 3, 4, 4)
    decoded, weights = pixels.clone(), torch.ones(1, 1, 4, 4)
    decoded[:, :, 0, 0], weights[:, :, 0, 0] = 0.5, 4.0  # grey, in one of 16 pixels
    assert reconstruction_loss("l1", decoded, pixels).item() == 0.5 / 16
    assert reconstruction_loss("l1", decoded, pixels, weights).item() == 4 * 0.5 / 16
    assert reconstruction_loss("l2", decoded, pixels).item() == 0.25 / 16
    assert reconstruction_loss("l2", decoded, pixels, weights).item() == 4 * 0.25 / 16
    # One of three channels errs, by 0.5 at the pixel and 0.5 / 16 in the mean of the square.
    wanted = (4 * (0.5 + 2 * 0.25) / 16 + 0.5 / 16) / 3
    assert reconstruction_loss("colour", decoded, pixels, weights, 9.0).item() == pytest.approx(wanted, rel=1e-5)


def test_hinge_losses_ask_for_a_margin_of_one() -> None:
    real, made = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert discriminator_hinge(real, made).item() == 0.5 * (0.25 + 0.5)
    assert generator_hinge(made).item() == 1.5


def test_the_adaptive_weight_balances_both_pulls() -> None:
    last = torch.tensor([1.0, 1.0], requires_grad=True)
    first, second = (last * torch.tensor([3.0, 4.0])).sum(), (last * torch.tensor([0.0, 0.5])).sum()
    assert adaptive_weight(first, second, last).item() == pytest.approx(5 / (0.5 + 1e-4))
    assert adaptive_weight(first, 0 * second, last).item() == 1e4


def test_entropy_is_low_where_vectors_are_sure_and_rows_are_shared() -> None:
    rows = torch.eye(4)
    shared = entropy_loss(torch.eye(4), rows)
    # Sure of its row: nothing a vector; all four rows alike: minus log 4.
    assert shared.item() == pytest.approx(-np.log(4), abs=1e-3)
    assert entropy_loss(torch.eye(4)[:1].expand(4, -1), rows).item() == pytest.approx(0, abs=1e-3)  # one row for all
    unsure = torch.full((4, 4), 0.5)
    assert entropy_loss(unsure, rows).item() == pytest.approx(0, abs=1e-3)  # log 4 - log 4


def test_edges_see_shapes_and_not_brightness() -> None:
    flat = torch.zeros(1, 3, 16, 16)
    distance = EdgeDistance()
    assert distance(flat, flat + 0.5).item() == 0
    step = flat.clone()
    step[..., 8:] = 1.0
    # A step of height 1 has a slope of 1/2 in two of n columns, at sides 16, 8 and 4; two directions, one of them flat.
    assert distance(step, flat).item() == pytest.approx((1 / 16 + 1 / 8 + 1 / 4) / 2 / 3)


def test_a_patch_of_the_discriminator_spans_70_pixels() -> None:
    model = PatchDiscriminator(channels=2).eval()
    pixels = torch.zeros(1, 3, 128, 128, requires_grad=True)
    logits = model(pixels)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    seen = pixels.grad[0].abs().sum(0).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [70, 70]


def test_psnr_and_ssim_of_known_pictures() -> None:
    a = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    assert psnr(a + 0.2, a).tolist() == pytest.approx([20.0, 20.0], abs=1e-3)  # 10 log10(2² / 0.2²)
    assert ssim(a, a) == pytest.approx(1.0)
    # Of two flat pictures the luminance term alone is left: (2ab + c) / (a² + b² + c), c = (0.01 · 2)².
    flat = torch.full((1, 3, 32, 32), 0.5)
    assert ssim(flat, 0 * flat + 0.3) == pytest.approx((0.3 + 4e-4) / (0.34 + 4e-4), abs=1e-4)


def test_llamagens_recipe_trains_with_all_its_terms(trained: Path) -> None:
    lines = [line for line in read_log(trained) if "loss" in line]
    names = {"reconstruction", "perceptual", "codebook", "commitment", "entropy"}
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        adversary = {"adversarial", "adversarial_weight", "discriminator"} if line["step"] > 2 else set()
        assert {n.removeprefix("loss_") for n in line if n.startswith("loss_")} == names | adversary
        assert ("discriminator_gradient" in line) == bool(adversary)
        assert 0 < line["codebook_used_in_training"] <= 1
    last = [line for line in read_log(trained) if "validation_psnr" in line][-1]
    assert last["validation_psnr"] > 5 and -1 <= last["validation_ssim"] <= 1 and 0 < last["codebook_used"] <= 1
    assert open_vq(trained / "vq.pt").config == VQ_PRESETS["VQ-tiny"]


@pytest.mark.parametrize("stop", [1, 3])
def test_a_tokenizer_goes_on_from_any_step(trained: Path, pictures: Path, tmp_path: Path, stop: int) -> None:
    """Before the discriminator begins and after; what it is and what its optimizer knows are in the checkpoint."""
    train_vq.train(tmp_path, SMALL, dataclasses.replace(EVERY_STEP, until=stop), pictures)
    train_vq.train(tmp_path, SMALL, EVERY_STEP, pictures)
    found, wanted = ([line["loss"] for line in read_log(f) if "loss" in line] for f in (tmp_path, trained))
    assert found == pytest.approx(wanted, abs=1e-6)


def test_a_line_of_the_log_has_the_means_since_the_last_one(trained: Path, pictures: Path, tmp_path: Path) -> None:
    """Also of a run that was stopped in between; a term that begins later has the mean of its own steps."""
    for until in (3, 4):
        execution = dataclasses.replace(EVERY_STEP, log_every=4, until=until)
        train_vq.train(tmp_path, SMALL, execution, pictures)
    (line,) = [line for line in read_log(tmp_path) if "loss" in line]
    steps = [line for line in read_log(trained) if "loss" in line]
    for name in ("loss_reconstruction", "loss_codebook", "loss_adversarial"):
        values = [step[name] for step in steps if name in step]
        assert line[name] == pytest.approx(np.mean(values), rel=1e-5)


def test_pieces_of_a_batch_add_up(pictures: Path, tmp_path: Path) -> None:
    """Without the discriminator, whose batch normalization sees a piece alone."""
    recipe = changed(SMALL, {"discriminator.weight": 0.0, "losses.entropy": 0.0, "schedule.steps": 2})
    for pieces in (1, 2):
        train_vq.train(tmp_path / str(pieces), recipe, dataclasses.replace(EVERY_STEP, accumulate=pieces), pictures)
    one, two = (torch.load(tmp_path / str(n) / "vq.pt", weights_only=True)["model"] for n in (1, 2))
    # Sums in another order, which Adam's first steps turn into up to a hundredth of the learning rate.
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-6


def test_pictures_follow_from_the_seed_and_bad_ones_are_passed_over(pictures: Path) -> None:
    source = FolderPictures(pictures, seed=0, batch=9, size=32)
    assert len(source.paths) == 9 and len(source.held) == 1
    whole = source.batch(5, slice(None)).pixels
    assert whole.shape == (9, 3, 32, 32) and whole.min() >= -1 and whole.max() <= 1
    again = FolderPictures(pictures, seed=0, batch=9, size=32)
    parts = [again.batch(5, part).pixels for part in (slice(0, 4), slice(4, 9))]
    assert torch.equal(whole, torch.cat(parts))
    assert source.bad.total == 1 and "3b.png" in source.bad.messages[0]  # once, however often it is drawn
    assert not torch.equal(whole, source.batch(6, slice(None)).pixels)


def test_what_is_no_picture_in_a_folder_is_passed_over_and_named(pictures: Path, tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "deep").mkdir()
    for place, name in enumerate(("a.jfif", "deep/b.PNG", "c.ppm", "deep/._b.PNG", ".DS_Store", "notes.txt")):
        shutil.copy(pictures / f"{place}.png", tmp_path / name)
    source = FolderPictures(tmp_path, seed=0, batch=2, size=32, report=told.append)
    assert [path.name for path in (*source.paths, *source.held)] == ["a.jfif", "c.ppm", "b.PNG"]
    assert len(told) == 1 and "skipped 3 files that are not pictures: .DS_Store, deep/._b.PNG, notes.txt" in told[0]


def test_the_command_names_pictures_that_cannot_be_read_and_goes_on(pictures: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from training.cli import cli

    recipe = changed(SMALL, {"schedule.steps": 3, "discriminator.weight": 0.0})  # one epoch and a third
    write_toml(tmp_path / "tiny.toml", recipe, "vq")
    words = ["vq", str(tmp_path / "run"), "--recipe", str(tmp_path / "tiny.toml"), "--pictures", str(pictures)]
    done = CliRunner().invoke(cli, [*words, "--device", "cpu", "--log-every", "1"], catch_exceptions=False)
    named = [line for line in done.stderr.splitlines() if line.startswith("bad: ")]
    assert done.exit_code == 0 and len(named) == 1 and "3b.png cannot be read" in named[0]
    assert [line["bad_records"] for line in read_log(tmp_path / "run") if "loss" in line][-1] == 1


def test_the_frechet_distance_of_a_perfect_copy_is_nothing(tmp_path: Path) -> None:
    scores = Scores(write_dinov2(tmp_path / "dinov2"), write_inception(tmp_path / "inception.pt"))
    pixels = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = load_vq_tiny()
    model.decode_vectors = lambda z: next(copies)
    copies = iter(pixels.split(16))
    perfect = scores(model, pixels, quantizing=True)
    copies = iter((0.3 * pixels).split(16))
    worse = scores(model, pixels, quantizing=True)
    for name in ("validation_frechet_distance", "validation_rfid"):
        assert abs(perfect[name]) < 1e-3 * worse[name]


def test_a_text_model_is_no_encoder_for_the_frechet_distance(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=10, **sizes)).save_pretrained(tmp_path / "bert")
    with pytest.raises(DataError, match=r"bert cannot be shown a picture: .*; give DINOv2"):
        Scores(tmp_path / "bert")


def load_vq_tiny() -> Any:
    from training.models.vq import VQModel

    torch.manual_seed(0)
    return VQModel(VQ_PRESETS["VQ-tiny"]).eval()


def test_features_of_a_local_model_are_a_perceptual_term(tmp_path: Path) -> None:
    term = perceptual_term(f"dino:{write_dinov2(tmp_path / 'dinov2')}")
    a = torch.rand(2, 3, 32, 32).requires_grad_()
    assert term(a, a.detach()).item() == pytest.approx(0, abs=1e-9)
    term(a, 1 - a.detach()).backward()
    assert a.grad.abs().sum() > 0
    assert perceptual_term("none") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lpips", "LPIPS needs torchvision's VGG-16 weights in a file: --perceptual lpips:vgg16-397923af.pth"),
        ("vgg", "perceptual is none, edges, lpips:FILE or dino:FOLDER, got 'vgg'"),
        ("dino:/nowhere", "is no model folder"),
    ],
)
def test_perceptual_terms_that_are_not_there_are_named(name: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        perceptual_term(name)


def test_at_last_the_decoder_alone_is_trained_and_tokens_stay(tmp_path: Path) -> None:
    recipe = changed(
        VQ, {"schedule.steps": 8, "demo.decoder_from": 5, "demo.continuous_steps": 2, "schedule.warmup": 1}
    )
    train_vq.train(tmp_path, recipe, dataclasses.replace(EVERY_STEP, until=5))
    before = torch.load(tmp_path / "last.pt", weights_only=True)["average"]
    train_vq.train(tmp_path, recipe, dataclasses.replace(EVERY_STEP, until=7))
    after = torch.load(train_vq.train(tmp_path, recipe, EVERY_STEP), weights_only=True)["model"]
    same = {name: torch.equal(before[name], after[name]) for name in after}
    assert all(same[name] for name in same if name.startswith(("encoder.", "quant_conv.", "quantize.")))
    assert not any(same[name] for name in same if name.startswith(("decoder.", "post_quant_conv.")))
    learned = [{name for name in line if name.startswith("loss_")} for line in read_log(tmp_path) if "loss" in line]
    assert learned[4:6] == [{"loss_reconstruction", "loss_codebook", "loss_commitment"}, {"loss_reconstruction"}]
    assert [recipe.object_weight_of(step) for step in (4, 5)] == [2.0, 8.0]
    assert [recipe.reconstruction_of(step) for step in (4, 5)] == ["colour", "l2"]


def test_lpips_is_a_perceptual_term(tmp_path: Path) -> None:
    term = perceptual_term(f"lpips:{write_lpips_network(tmp_path / 'vgg.pth', 'vgg')}")
    assert not any(p.requires_grad for p in term.parameters())
    a = torch.rand(2, 3, 32, 32).requires_grad_()
    assert term(a, a.detach()).item() == 0
    term(a, 1 - a.detach()).backward()
    assert a.grad.abs().sum() > 0


def test_without_torchmetrics_lpips_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.functional.image.lpips", None)
    with pytest.raises(CheckpointError, match="LPIPS needs torchmetrics; pip install torchmetrics"):
        perceptual_term(f"lpips:{tmp_path / 'vgg.pth'}")


def test_a_learning_rate_that_breaks_the_tokenizer_stops_with_its_step(pictures: Path, tmp_path: Path) -> None:
    recipe = changed(SMALL, {"optimizer.lr": 1e30, "discriminator.weight": 0.0, "ema.decay": 0.5})
    with pytest.raises(NotFinite, match=r"step 1: the loss of optimizer is not finite; the batch is .*png"):
        train_vq.train(tmp_path, recipe, EVERY_STEP, pictures)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"data.picture_size": 30},
            "data.picture_size must be a multiple of 4, the side of a token of VQ-tiny in pixels",
        ),
        ({"losses.reconstruction": "l3"}, "losses.reconstruction is one of l1, l2, colour, got 'l3'"),
        ({"demo.decoder_reconstruction": "l3"}, "demo.decoder_reconstruction is one of l1, l2, colour, got 'l3'"),
    ],
)
def test_recipes_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        changed(SMALL, fields)


def test_the_published_recipe_says_that_it_lacks_a_perceptual_network(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="LPIPS needs torchvision's VGG-16 weights in a file"):
        train_vq.train(
            tmp_path, changed(SMALL, {"losses.perceptual": LLAMAGEN.losses.perceptual}), EVERY_STEP, pictures
        )


def test_what_a_tokenizer_cannot_do_is_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not made to be recomputed; leave --recompute out"):
        train_vq.train(tmp_path, SMALL, dataclasses.replace(EVERY_STEP, recompute=True), pictures)


def test_a_compiled_tokenizer_learns_the_same_and_shows_it(trained: Path, pictures: Path, tmp_path: Path) -> None:
    train_vq.train(tmp_path, SMALL, dataclasses.replace(EVERY_STEP, compile="eager", sample_every=2), pictures)
    found, wanted = ([line["loss"] for line in read_log(folder) if "loss" in line] for folder in (tmp_path, trained))
    assert len(found) == 4 and found == pytest.approx(wanted, rel=1e-4)
    assert sorted(path.name for path in tmp_path.glob("samples-*")) == ["samples-00000002.png", "samples-00000004.png"]
    with Image.open(tmp_path / "samples-00000004.png") as shown:
        assert shown.height == 2 * SMALL.data.picture_size


def test_a_finished_tokenizer_that_was_removed_is_made_again(trained: Path, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run/vq.pt").unlink()
    train_vq.train(tmp_path / "run", SMALL, EVERY_STEP, pictures)
    found, wanted = (torch.load(f / "vq.pt", weights_only=True)["model"] for f in (tmp_path / "run", trained))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds 0 pictures"):
        train_vq.train(tmp_path / "run", SMALL, EVERY_STEP, tmp_path)


def test_a_tokenizer_is_not_sharded(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="choose --parallel ddp"):
        train_vq.train(tmp_path, SMALL, dataclasses.replace(EVERY_STEP, parallel="fsdp"), pictures)
