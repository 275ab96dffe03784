"""`python -m export official` against a Hub on loopback that serves small seeded parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from editar_rt.bundle.folder import Bundle
from export import official
from export.official import REPOSITORIES, DownloadError, check_disk
from tests.commands import Command, Done
from tests.conftest import golden_weights, write_text_encoder
from tests.export.hub_stand_in import Hub, serve
from training.config import TransformerConfig, VQConfig
from training.models.vq import VQModel

TEMPLATE = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], Path]:
    """Small parts under the published names, as the Hub would list them."""
    folder = tmp_path_factory.mktemp("published")
    config = TransformerConfig(
        dim=128, n_layer=3, n_head=4, vocab_size=256, block_size=16, caption_dim=64, multiple_of=32
    )
    weights = golden_weights("gpt_tiny")
    # The rest of a training state, as published files carry it; large enough to be fetched in several pieces.
    extra = {"optimizer": {"state": torch.zeros(8 << 20)}, "steps": 1}
    torch.save({"model": weights, "config": config.to_dict(), **extra}, folder / "editar_release.pt")
    torch.manual_seed(0)
    small = VQConfig(
        channels=16, channel_multipliers=(1, 1, 2, 2), res_blocks=1, z_channels=32, codebook_size=256, norm_groups=8
    )
    torch.save({"model": VQModel(small).state_dict(), "config": small.to_dict()}, folder / "vq_ds16_t2i.pt")
    write_text_encoder(folder / "t5", states_dim=64)
    transformer, vq, text = REPOSITORIES
    files = {
        (transformer.kind, transformer.name, "checkpoints/editar_release.pt"): folder / "editar_release.pt",
        (vq.kind, vq.name, "vq_ds16_t2i.pt"): folder / "vq_ds16_t2i.pt",
    }
    files |= {(text.kind, text.name, p.name): p for p in (folder / "t5").iterdir()}
    (folder / "unrelated.msgpack").write_bytes(b"x" * 1000)
    files[(text.kind, text.name, "flax_model.msgpack")] = folder / "unrelated.msgpack"
    return files


@pytest.fixture
def hub(published: dict[tuple[str, str, str], Path]) -> Iterator[Hub]:
    with serve(published) as running:
        yield running


@pytest.fixture
def export_official(exporter: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command against a Hub at an address, with a home of its own; the library reads both when it is imported."""

    def run(endpoint: str, home: Path, *arguments: object) -> Done:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + TEMPLATE)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        return exporter("official", *arguments)

    return run


def test_one_command_fetches_and_exports_and_a_stopped_download_goes_on(
    export_official: Command, hub: Hub, tmp_path: Path
) -> None:
    home, bundle = tmp_path / "home", tmp_path / "bundle"
    hub.cut_short = {"checkpoints/editar_release.pt"}
    first = export_official(hub.endpoint, home, "-o", bundle, "--precision", "fp32")
    # The library may try again by itself; where it gives up, the next run goes on.
    if first.code:
        assert first.code == 1 and "run the command again to resume" in first.stderr, first.stderr
        assert not bundle.exists()
        first = export_official(hub.endpoint, home, "-o", bundle, "--precision", "fp32")
    assert first.code == 0, first.stderr
    assert any(not r.startswith("bytes=0-") for r in hub.ranges)  # it went on in the middle
    assert "flax_model.msgpack" not in hub.fetched
    assert "licence apache-2.0" in first.stdout and "to download" in first.stdout
    assert set(Bundle.open(bundle).manifest.parts) >= {"vq_encoder", "vq_decoder", "text_encoder", "decoder"}
    hub.fetched.clear()
    again = export_official(hub.endpoint, home, "-o", tmp_path / "again", "--precision", "fp16")
    assert again.code == 0, again.stderr
    assert hub.fetched == []  # all of it was there
    assert "to download: 0.00" in again.stdout


def test_a_bundle_needs_a_name(export_official: Command, hub: Hub, tmp_path: Path) -> None:
    done = export_official(hub.endpoint, tmp_path)
    assert done.code == 2 and "Missing option '-o' / '--output'" in done.stderr


def test_looking_fetches_nothing(export_official: Command, hub: Hub, tmp_path: Path) -> None:
    done = export_official(hub.endpoint, tmp_path, "--only-look")
    assert done.code == 0 and len(done.stdout.splitlines()) == 3
    assert hub.fetched == []


def test_without_a_network_one_sentence_says_so(export_official: Command, tmp_path: Path) -> None:
    done = export_official("http://127.0.0.1:9", tmp_path, "-o", tmp_path / "bundle")
    assert done.code == 1
    assert "cannot be reached" in done.stderr and "python -m export onnx" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_wrong_name_is_named(
    export_official: Command, hub: Hub, published: dict[tuple[str, str, str], Path], tmp_path: Path
) -> None:
    vq = REPOSITORIES[1]
    hub.files = {key: path for key, path in published.items() if key[1] != vq.name}
    done = export_official(hub.endpoint, tmp_path, "-o", tmp_path / "bundle")
    assert done.code == 1 and f"no model repository {vq.name}" in done.stderr
    hub.files |= {(vq.kind, vq.name, "README.md"): next(iter(published.values()))}
    done = export_official(hub.endpoint, tmp_path, "-o", tmp_path / "bundle")
    assert done.code == 1 and "contains no file vq_ds16_t2i.pt" in done.stderr


def test_a_full_disk_is_seen_before_the_first_byte(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Usage:
        free = 10_000_000_000

    monkeypatch.setattr(official.shutil, "disk_usage", lambda path: Usage)
    check_disk(4e9, 5e9, tmp_path / "bundle")
    with pytest.raises(DownloadError, match=r"10\.00 GB free, but .* are needed; free some"):
        check_disk(11e9, 11e9, tmp_path / "bundle")


def test_an_existing_bundle_is_not_replaced_unasked(export_official: Command, tmp_path: Path) -> None:
    done = export_official("http://127.0.0.1:9", tmp_path, "-o", tmp_path)
    assert done.code == 1 and "--force" in done.stderr
