"""Data sets become token shards that say what their models say, and a stopped run goes on where it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")

from editar_rt.images.fit import fit_square  # noqa: E402
from editar_rt.text.prompts import build_prompt  # noqa: E402
from tests.commands import Command  # noqa: E402
from tests.conftest import write_text_encoder  # noqa: E402
from tests.training.data_sets import world_samples  # noqa: E402
from tests.training.metric_networks import write_clip, write_dinov2  # noqa: E402
from training.checkpoints import CheckpointError, open_vq  # noqa: E402
from training.cli import cli  # noqa: E402
from training.config import VQConfig  # noqa: E402
from training.data.check import check_shards  # noqa: E402
from training.data.extract import Encoders, TextStates, extract  # noqa: E402
from training.data.features import PatchFeatures  # noqa: E402
from training.data.folder import write_folder  # noqa: E402
from training.data.records import DataError  # noqa: E402
from training.data.sources import Plan, Source, read_plan  # noqa: E402
from training.data.tokens import encode_pictures  # noqa: E402
from training.models.vq import VQModel  # noqa: E402

SIZE, COUNT = 32, 5
TINY_VQ = VQConfig(
    channels=8, channel_multipliers=(1, 1, 2), res_blocks=1, z_channels=8, codebook_size=64, norm_groups=4
)


@pytest.fixture(scope="module")
def vq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vq") / "vq.pt"
    torch.save({"model": VQModel(TINY_VQ).state_dict(), "config": TINY_VQ.to_dict()}, path)
    return path


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five edits, the third of them broken."""
    folder = tmp_path_factory.mktemp("edits") / "set"
    write_folder(folder, world_samples(COUNT, ("recolour",), size=64))
    (folder / "pictures/000002-target.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_dinov2(tmp_path_factory.mktemp("dinov2"))
    settings = {"crop_size": {"height": 28, "width": 28}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def load(folder: Path) -> dict[str, np.ndarray]:
    """All shards of a folder as one."""
    shards = [dict(np.load(p)) for p in sorted(folder.glob("shard-*.npz"))]
    return {name: np.concatenate([np.atleast_1d(s[name]) for s in shards]) for name in shards[0]}


def test_shards_hold_the_tokens_of_the_fitted_pictures(vq: Path, edits: Path, tmp_path: Path) -> None:
    encoders = Encoders(open_vq(vq))
    written, bad = extract(Plan((Source(edits),)), tmp_path, encoders, SIZE, groups=3, batch=2)
    found = load(tmp_path)
    assert written == COUNT - 1 and bad.counts == {"folder": 1} and "000002-target.png" in bad.messages[0]
    assert found["condition"].dtype == np.uint16 and found["target"].shape == (COUNT - 1, 1, 64)
    samples = [s for i, s in enumerate(world_samples(COUNT, ("recolour",), size=64)) if i != 2]
    from PIL import Image

    fitted = np.stack([np.asarray(fit_square(Image.fromarray(s.target), SIZE)) for s in samples])
    assert np.array_equal(found["target"][:, 0], encode_pictures(encoders.vq, fitted))
    assert found["text"][:, 0].tolist() == [s.text for s in samples] and set(found["source"]) == {"folder"}


def test_a_stopped_run_goes_on_with_the_shards_it_lacks(vq: Path, edits: Path, tmp_path: Path) -> None:
    plan, encoders = Plan((Source(edits),)), Encoders(open_vq(vq))
    extract(plan, tmp_path, encoders, SIZE, groups=2)
    whole = load(tmp_path)
    kept, lost = tmp_path / "shard-folder-00000.npz", tmp_path / "shard-folder-00001.npz"
    before = kept.stat().st_mtime_ns
    lost.unlink()
    lost.with_suffix(".partial").write_bytes(b"half")
    written, bad = extract(plan, tmp_path, encoders, SIZE, groups=2)
    assert kept.stat().st_mtime_ns == before and written == COUNT - 1 and bad.total == 1
    for name, again in load(tmp_path).items():
        assert np.array_equal(whole[name], again), name
    with pytest.raises(DataError, match=r"made in another way \(groups 2 instead of 3\)"):
        extract(plan, tmp_path, encoders, SIZE, groups=3)


def test_several_processes_write_what_one_does(vq: Path, edits: Path, tmp_path: Path) -> None:
    words = ["data", "extract", str(edits), "--vq", str(vq), "--size", str(SIZE), "--groups", "1"]
    for rank in ("1", "0"):
        environment = {"RANK": rank, "WORLD_SIZE": "2"}
        done = CliRunner().invoke(cli, [*words, str(tmp_path / "two")], env=environment, catch_exceptions=False)
        assert f"2 records by process {rank} of 2" in done.output
    extract(Plan((Source(edits),)), tmp_path / "one", Encoders(open_vq(vq)), SIZE, groups=1)
    found, wanted = ({p.name for p in (tmp_path / n).glob("*.npz")} for n in ("two", "one"))
    assert found == wanted and len(found) == COUNT
    for name, array in load(tmp_path / "one").items():
        assert np.array_equal(load(tmp_path / "two")[name], array), name


def test_any_number_of_processes_goes_on_with_what_another_left(vq: Path, edits: Path, tmp_path: Path) -> None:
    plan, encoders = Plan((Source(edits),)), Encoders(open_vq(vq))
    extract(plan, tmp_path, encoders, SIZE, groups=1, rank=2, processes=3)
    first = next(tmp_path.glob("*.npz"))
    before = first.stat().st_mtime_ns
    written, bad = extract(plan, tmp_path, encoders, SIZE, groups=1)
    assert (written, bad.total, len(list(tmp_path.glob("*.npz")))) == (COUNT - 1, 1, COUNT)
    assert first.stat().st_mtime_ns == before


def test_models_are_rounded_where_asked_and_in_no_folder_of_others(
    vq: Path, edits: Path, dinov2: Path, tmp_path: Path
) -> None:
    command = ["data", "extract", str(edits), "--vq", str(vq), "--size", str(SIZE), "--features", str(dinov2)]
    for name, more in (("exact", []), ("rounded", ["--bfloat16", "features"])):
        CliRunner().invoke(cli, [*command, str(tmp_path / name), *more], catch_exceptions=False)
    exact, rounded = (load(tmp_path / name) for name in ("exact", "rounded"))
    assert np.array_equal(exact["target"], rounded["target"])
    # bfloat16 keeps 8 bits: 1/256 of values up to 4, in each of two layers.
    difference = np.abs(exact["features"].astype(np.float32) - rounded["features"])
    assert 0 < difference.max() < 0.1
    said = CliRunner().invoke(cli, [*command, str(tmp_path / "exact"), "--bfloat16", "vq"])
    assert r"bfloat16 None instead of ['vq']" in str(said.exception)


def test_a_folder_with_a_damaged_shard_or_note_is_not_added_to(vq: Path, edits: Path, tmp_path: Path) -> None:
    plan, encoders = Plan((Source(edits),)), Encoders(open_vq(vq))
    extract(plan, tmp_path, encoders, SIZE)
    shard = tmp_path / "shard-folder-00000.npz"
    shard.write_bytes(shard.read_bytes()[:500])
    with pytest.raises(DataError, match=r"shard-folder-00000\.npz is no whole token shard \(.+\); remove it"):
        extract(plan, tmp_path, encoders, SIZE)
    (tmp_path / "extraction.json").write_text("{")
    with pytest.raises(DataError, match="extraction.json is not the JSON object"):
        extract(plan, tmp_path, encoders, SIZE)


def test_shares_may_change_without_new_shards(vq: Path, edits: Path, tmp_path: Path) -> None:
    encoders = Encoders(open_vq(vq))
    for share in (1.0, 2.5):
        extract(Plan((Source(edits, share),)), tmp_path, encoders, SIZE)
        noted = json.loads((tmp_path / "extraction.json").read_text())
        assert noted["shares"] == {"folder": share} and "seed" not in noted
        (tmp_path / "extraction.json").write_text(json.dumps({**noted, "seed": 0}))  # as it was noted once


def test_shards_of_different_grids_are_told_apart(vq: Path, edits: Path, tmp_path: Path) -> None:
    for size in (16, 32):
        extract(Plan((Source(edits),)), tmp_path / str(size), Encoders(open_vq(vq)), size)
    (tmp_path / "16/shard-folder-00000.npz").rename(tmp_path / "32/shard-other-00000.npz")
    with pytest.raises(DataError, match=r"different grids: \(16, 16\), \(64, 64\)"):
        check_shards(tmp_path / "32")
    (tmp_path / "32/shard-other-00000.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="no whole token shard"):
        check_shards(tmp_path / "32")


def test_a_shard_of_bad_records_alone_is_remembered_but_not_trained_on(vq: Path, edits: Path, tmp_path: Path) -> None:
    for _ in range(2):
        written, bad = extract(Plan((Source(edits),)), tmp_path, Encoders(open_vq(vq)), SIZE, groups=1)
        assert written == COUNT - 1 and bad.total == 1
    assert (tmp_path / "empty-folder-00002.npz").exists() and len(list(tmp_path.glob("shard-*.npz"))) == COUNT - 1


def test_text_states_are_those_of_the_task_prompt(vq: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "set", world_samples(2, ("depth",)))
    text = TextStates(write_text_encoder(tmp_path / "t5", states_dim=32), length=20)
    extract(Plan((Source(tmp_path / "set"),)), tmp_path / "out", Encoders(open_vq(vq), text), SIZE)
    found = load(tmp_path / "out")
    prompts = [build_prompt("depth", str(t)) for t in found["text"][:, 0]]
    assert found["text_states"].dtype == np.float16 and found["text_states"].shape == (2, 1, 20, 32)
    # Alone or in a batch, only the order of float32 sums differs; that is far below half precision's steps.
    np.testing.assert_allclose(found["text_states"][1, 0], text(prompts[1:])[0], atol=2e-3)


def test_features_are_the_encoders_patches_in_their_places(vq: Path, edits: Path, dinov2: Path, tmp_path: Path) -> None:
    from transformers import Dinov2Model

    features = PatchFeatures(dinov2)
    extract(Plan((Source(edits),)), tmp_path, Encoders(open_vq(vq), features=features), SIZE)
    with np.load(tmp_path / "shard-folder-00000.npz") as shard:
        assert shard["features_from"] == "dinov2" and shard["features_view"] == "both"  # nothing is cut off
        found = shard["features"]
    assert found.shape == (COUNT - 1, 1, 4, 4, 24) and found.dtype == np.float16
    picture = world_samples(1, ("recolour",))[0].target[:28, :28]  # of the encoder's own size: nothing is resized
    pixels = (picture.astype(np.float32) / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]
    model = Dinov2Model.from_pretrained(dinov2).eval()
    with torch.no_grad():
        states = model(torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float()).last_hidden_state
    expected = states[0, 1:].reshape(4, 4, 24).numpy()
    # Half precision keeps 11 bits of values up to 4.
    np.testing.assert_allclose(features(picture[None])[0], expected, atol=4e-3)


def test_clip_is_a_teacher_too(tmp_path: Path) -> None:
    features = PatchFeatures(write_clip(tmp_path / "clip"))
    picture = world_samples(1)[0].target[None]
    assert features(picture).shape == (1, 2, 2, 16) and features.kind.startswith("clip")


def test_a_teacher_without_all_of_its_weights_is_refused(dinov2: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(dinov2, tmp_path / "teacher")
    weights = load_file(dinov2 / "model.safetensors")
    unused = {name: value for name, value in weights.items() if "mask_token" not in name}
    save_file(unused, tmp_path / "teacher/model.safetensors", {"format": "pt"})
    assert len(unused) == len(weights) - 1 and PatchFeatures(tmp_path / "teacher").kind == "dinov2"
    first = next(name for name in weights if "layer.0" in name)
    save_file({n: v for n, v in unused.items() if n != first}, tmp_path / "teacher/model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match="lacks weights of the network .*answer by chance; give DINOv2, CLIP or"):
        PatchFeatures(tmp_path / "teacher")


@pytest.mark.parametrize("settings", ["{", '{"image_mean": [1, 2]}', '{"size": {"height": "x"}}', "[]"])
def test_an_encoder_with_senseless_settings_is_refused(dinov2: Path, tmp_path: Path, settings: str) -> None:
    shutil.copytree(dinov2, tmp_path / "encoder")
    (tmp_path / "encoder/preprocessor_config.json").write_text(settings)
    with pytest.raises(DataError, match=r"preprocessor_config\.json cannot be used"):
        PatchFeatures(tmp_path / "encoder")


def test_an_official_tokenizer_needs_no_configuration(
    vq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.config import VQ_PRESETS

    torch.save({"model": torch.load(vq)["model"]}, tmp_path / "official.pt")
    monkeypatch.setitem(VQ_PRESETS, "VQ-16", TINY_VQ)
    picture = world_samples(1, size=SIZE)[0].target[None]
    expected = encode_pictures(open_vq(vq), picture)
    assert np.array_equal(encode_pictures(open_vq(tmp_path / "official.pt"), picture), expected)
    with pytest.raises(CheckpointError, match="choose its --vq-preset"):
        open_vq(tmp_path / "official.pt", "VQ-16-demo")


def test_what_does_not_fit_is_refused_in_a_sentence(vq: Path, edits: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be a multiple of 4 pixels, which a token spans; got 30"):
        extract(Plan((Source(edits),)), tmp_path / "out", Encoders(open_vq(vq)), 30)
    torch.save({"model": {"x": torch.zeros(1)}, "config": {"dim": 8}}, tmp_path / "transformer.pt")
    with pytest.raises(CheckpointError, match="lacks encoder.conv_in.weight; it holds x"):
        open_vq(tmp_path / "transformer.pt")
    encoder = write_text_encoder(tmp_path / "t5", states_dim=32)
    (encoder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="t5 cannot be loaded"):
        TextStates(encoder, 8)


def test_a_device_that_is_not_there_is_a_bad_option(vq: Path, edits: Path, tmp_path: Path) -> None:
    words = ["data", "extract", str(edits), str(tmp_path / "out"), "--vq", str(vq), "--device", "nonsense"]
    said = CliRunner().invoke(cli, words)
    assert said.exit_code == 2 and "Invalid value for '--device': nonsense" in said.stderr


def test_two_data_sets_of_one_name_are_refused(vq: Path, edits: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="different names without slashes, got folder, folder"):
        extract(Plan((Source(edits), Source(edits))), tmp_path, Encoders(open_vq(vq)), SIZE)


def test_the_commands_say_what_a_data_set_and_its_shards_hold(
    trainer: Command, vq: Path, edits: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(f'[[source]]\npath = "{edits}"\nshare = 1\nname = "edits"\n')
    checked = trainer("data", "check", plan, "--sheet", tmp_path / "sheet.png", "--json")
    assert checked.code == 0, checked.stderr
    said = checked.document["sources"]["edits"]
    assert said["records"] == said["read"] == COUNT and said["bad"] == 1 and said["tasks"] == {"edit": COUNT - 1}
    assert "bad: " in checked.stderr and "000002-target.png" in checked.stderr and (tmp_path / "sheet.png").exists()

    words = ["data", "extract", str(plan), str(tmp_path / "tokens"), "--vq", str(vq), "--size", str(SIZE)]
    made = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert "4 records, 1 bad ones left out" in made.output
    report = check_shards(tmp_path / "tokens")
    assert report["groups"] == 4 and report["sources"] == {"edits": 4} and report["tokens_a_picture"] == 64


def test_a_wrong_path_is_one_sentence(tmp_path: Path) -> None:
    said = CliRunner().invoke(cli, ["data", "check", str(tmp_path)])
    assert isinstance(said.exception, DataError) and "holds no data set" in str(said.exception)


def test_a_data_set_without_a_good_record_is_refused(edits: Path) -> None:
    from training.data.check import check_plan

    broken = edits.parent / "broken"
    broken.mkdir(exist_ok=True)
    (broken / "samples.jsonl").write_text("{\n{\n")
    with pytest.raises(DataError, match="no good record among the 2 read; the first: .*line 1 is not JSON"):
        check_plan(read_plan(broken, "folder"), None)
