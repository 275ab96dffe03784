"""PIE-Bench's measures are those of its protocol: by hand where that is possible, else as their libraries have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("torchmetrics")

import editar_rt  # noqa: E402
from tests.training.metric_networks import write_clip, write_dino, write_lpips_network  # noqa: E402
from training.cli import cli  # noqa: E402
from training.data.records import BadRecords, DataError  # noqa: E402
from training.evaluation import pie_bench  # noqa: E402
from training.evaluation.example import make_example  # noqa: E402
from training.evaluation.networks import (  # noqa: E402
    ClipSimilarity,
    Networks,
    PictureLpips,
    StructureDistance,
)
from training.evaluation.pie_bench import Item, PieBench, decode_mask, encode_mask, measure, measures_of  # noqa: E402
from training.evaluation.results import ResultFolder, spread  # noqa: E402
from training.evaluation.runs import evaluate_pie_bench  # noqa: E402
from training.lpips import Lpips  # noqa: E402

DEMO = Path(__file__).parents[2] / "engines/demo"


def random_picture(seed: int, side: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    folder = tmp_path_factory.mktemp("networks")
    return Networks.load(
        write_clip(folder / "clip"), write_dino(folder / "dino"), write_lpips_network(folder / "squeezenet.pth")
    )


def test_a_mask_is_its_runs_in_row_order_and_the_border() -> None:
    mask = decode_mask([8, 2, 23, 100], 5, 6)
    inner = np.array([[False, True, True, False], [False] * 4, [False] * 4])
    assert np.array_equal(mask[1:-1, 1:-1], inner)
    assert mask[0].all() and mask[-1].all() and mask[:, 0].all() and mask[:, -1].all()
    assert np.array_equal(decode_mask("8 2 23 100", 5, 6), mask)
    assert decode_mask("0 30", 5, 6).all()


def test_runs_are_read_back_as_they_were_written() -> None:
    mask = np.random.default_rng(0).random((9, 7)) < 0.4
    mask[[0, -1]] = mask[:, [0, -1]] = True
    assert np.array_equal(decode_mask(encode_mask(mask), 9, 7), mask)


@pytest.mark.parametrize("runs", [[1], [1, 2.5], [-1, 3], None, {"0": 1}, [True, 2]])
def test_what_is_no_mask_is_refused(runs: Any) -> None:
    with pytest.raises(ValueError, match=r"pairs of whole numbers|NoneType"):
        decode_mask(runs, 4, 4)


def item_of(picture: np.ndarray, mask: np.ndarray, prompt: str = "a ball") -> Item:
    return Item("0", picture, mask, "edit", prompt, 0)


def test_the_unedited_part_is_measured_over_all_pixels_with_the_rest_set_to_zero() -> None:
    source = np.full((16, 16, 3), 100, np.uint8)
    mask = np.zeros((16, 16), bool)
    mask[:4] = True  # a quarter may change
    result = source.copy()
    result[:4] += 51  # 0.2
    result[8:] += 51  # half of the pixels, all of them to be left alone
    values = measure(item_of(source, mask), result, Networks(), ("mse", "mse_unedited", "psnr", "psnr_unedited"))
    assert values["mse"] == pytest.approx(0.75 * 0.04) and values["mse_unedited"] == pytest.approx(0.5 * 0.04)
    assert values["psnr"] == pytest.approx(-10 * np.log10(0.03))
    assert values["psnr_unedited"] == pytest.approx(-10 * np.log10(0.02))


def test_what_has_no_value_is_none_and_left_out_of_the_mean() -> None:
    picture = random_picture(0)
    everything = item_of(picture, np.ones((40, 40), bool))
    names = ("psnr", "ssim", "mse_unedited", "ssim_unedited")
    values = measure(everything, picture, Networks(), names)
    assert values["psnr"] is None and values["mse_unedited"] is None and values["ssim_unedited"] is None
    assert values["ssim"] == pytest.approx(1)
    half = {"editing_type": 0, "psnr": 20.0}
    summary = pie_bench.summarize({"a": [{"editing_type": 6, **values}], "b": [half]})
    assert summary["all"]["psnr"] == 20 and summary["all"]["psnr_pictures"] == 1
    assert summary["by_type"]["change colour"]["ssim"] == pytest.approx(100)


def test_ssim_agrees_with_scikit_image() -> None:
    from skimage.metrics import structural_similarity

    one = random_picture(1)
    other = np.clip(one.astype(int) + np.random.default_rng(2).integers(-60, 60, one.shape), 0, 255).astype(np.uint8)
    for picture in (one, other):  # a flat rim: the two libraries mirror the border in different ways
        picture[:8] = picture[-8:] = picture[:, :8] = picture[:, -8:] = 90
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    # The benchmark's library averages over the whole picture, scikit-image's own mean leaves the border out.
    expected = structural_similarity(one, other, channel_axis=2, full=True, **settings)[1].mean()
    value = measure(item_of(one, np.zeros((40, 40), bool)), other, Networks(), ["ssim"])["ssim"]
    assert value == pytest.approx(expected, abs=1e-4)  # float32 against float64


@pytest.mark.parametrize("name", ["squeeze", "vgg"])
def test_lpips_agrees_with_torchmetrics(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchmetrics.functional.image.lpips as library

    mine = Lpips(name, write_lpips_network(tmp_path / "network.pth", name))
    # The library takes the network itself from torchvision, which is not there.
    monkeypatch.setattr(library, "_get_tv_model_features", lambda net, pretrained=False: mine.features)
    theirs = library._LPIPS(net=name)
    one, other = (
        torch.from_numpy(random_picture(seed).astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None] for seed in (3, 4)
    )
    pairs = torch.cat((one, one)), torch.cat((other, one))
    distances = mine(*pairs)
    assert distances[0].item() == pytest.approx(theirs(one, other).item(), rel=1e-4)  # order of float32 sums
    assert distances[1] == 0 < distances[0]


def test_lpips_of_arrays_is_that_of_tensors(tmp_path: Path) -> None:
    path = write_lpips_network(tmp_path / "squeezenet.pth")
    one, other = (random_picture(seed).astype(np.float32) / 255 for seed in (3, 4))
    tensors = (torch.from_numpy(x).permute(2, 0, 1)[None] * 2 - 1 for x in (one, other))
    assert PictureLpips(path)(one, other) == pytest.approx(Lpips("squeeze", path)(*tensors).item(), rel=1e-6)


def test_other_weights_than_the_networks_are_refused(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(editar_rt.errors.EditarError, match=r"is not SqueezeNet 1\.1; give torchvision's squeezenet1_1"):
        PictureLpips(tmp_path / "other.pth")
    with pytest.raises(editar_rt.errors.EditarError, match=r"is not VGG-16; give torchvision's vgg16-397923af\.pth"):
        Lpips("vgg", tmp_path / "other.pth")


def test_clip_similarity_agrees_with_torchmetrics(tmp_path: Path) -> None:
    from torchmetrics.multimodal import CLIPScore
    from transformers import CLIPModel, CLIPProcessor

    folder = write_clip(tmp_path / "clip")

    class Plain(torch.nn.Module):
        """The library asks for embeddings as tensors, as `transformers` gave them before version 5."""

        def __init__(self) -> None:
            super().__init__()
            self.model = CLIPModel.from_pretrained(folder).eval()
            self.config = self.model.config

        def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.model.visual_projection(self.model.vision_model(pixels).pooler_output)

        def get_text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.model.text_projection(self.model.text_model(ids, mask).pooler_output)

    theirs = CLIPScore(lambda: (Plain(), CLIPProcessor.from_pretrained(folder)))
    mine = ClipSimilarity(folder)
    scores = []
    for seed, text in enumerate(("red ball", "a cube", "snow", "the cone")):
        picture = random_picture(seed, 24)
        scores.append(mine(picture, text))
        expected = theirs(torch.from_numpy(picture).permute(2, 0, 1), text).item()
        assert scores[-1] == pytest.approx(max(expected, 0), abs=1e-3)  # of 100; order of float32 sums
    assert max(scores) > 0
    assert mine(random_picture(0), "a text of more characters than there are positions") >= 0  # cut, not refused


def test_clip_is_shown_what_pillow_makes_of_a_picture(networks: Networks) -> None:
    assert networks.clip is not None
    picture = random_picture(3, 40)
    small = np.asarray(Image.fromarray(picture).resize((16, 16), Image.Resampling.BICUBIC), np.float64) / 255
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    shown = networks.clip.pixels(picture)[0].permute(1, 2, 0).numpy()
    assert np.abs(shown - (small - mean) / std).max() < 1e-5  # a rounding of another kind would be 1/255 / std = 0.014


def test_clip_sees_the_edited_part_alone(networks: Networks) -> None:
    assert networks.clip is not None
    picture, mask = random_picture(7), np.zeros((40, 40), bool)
    mask[5:20, 5:20] = True
    values = measure(item_of(picture, mask, "red ball"), picture, networks, ("clip_whole", "clip_edited"))
    alone = np.where(mask[..., None], picture, 0).astype(np.uint8)
    assert values["clip_edited"] == networks.clip(alone, "red ball")
    assert values["clip_whole"] == networks.clip(picture, "red ball")


def test_structure_distance_compares_the_last_layers_keys(tmp_path: Path) -> None:
    from transformers import ViTModel

    folder = write_dino(tmp_path / "dino")
    distance, model = StructureDistance(folder), ViTModel.from_pretrained(folder).eval()
    pictures = [random_picture(seed, 16) for seed in (8, 9)]
    maps = []
    for picture in pictures:
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        pixels = (picture.astype(np.float64) - mean) / std  # 0 … 255, as the published code has them
        tensor = torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float()
        with torch.no_grad():
            before = model(pixel_values=tensor, output_hidden_states=True).hidden_states[-2]
            layer = model.layers[-1]
            keys = layer.attention.k_proj(layer.layernorm_before(before))[0].numpy().astype(np.float64)
        lengths = np.linalg.norm(keys, axis=1)
        maps.append(keys @ keys.T / np.outer(lengths, lengths))
    assert maps[0].shape == (5, 5)
    assert distance(*pictures) == pytest.approx(np.square(maps[0] - maps[1]).mean(), rel=1e-3)
    assert distance(pictures[0], pictures[0]) == 0 < distance(*pictures)


def test_structure_distance_is_that_of_resized_pictures_without_and_with_anti_aliasing(tmp_path: Path) -> None:
    distance = StructureDistance(write_dino(tmp_path / "dino"))
    pictures = [random_picture(seed, 48) for seed in (8, 9)]

    def resized(picture: np.ndarray) -> np.ndarray:
        """Each channel in floating point by Pillow, whose bilinear filter is as wide as the reduction wants."""
        channels = [Image.fromarray(c.astype(np.float32)) for c in np.moveaxis(picture, 2, 0)]
        return np.stack([np.asarray(c.resize((16, 16), Image.Resampling.BILINEAR)) for c in channels], axis=2)

    # At a third of the side the middle of every three pixels is all that a filter of two pixels sees.
    without = distance(*(picture[1::3, 1::3] for picture in pictures))
    with_it = distance(*map(resized, pictures))
    assert distance(*pictures) == pytest.approx(without, rel=1e-4)
    assert distance(*pictures, antialias=True) == pytest.approx(with_it, rel=1e-4)
    assert abs(without - with_it) > 0.01 * without


def test_both_structure_distances_stand_in_the_table_and_the_papers_beside_the_second(networks: Networks) -> None:
    picture, other = random_picture(8, 48), random_picture(9, 48)
    mask = np.zeros((48, 48), bool)
    measured = {"editing_type": 0, **measure(item_of(picture, mask), other, networks, measures_of(networks))}
    table = pie_bench.table(pie_bench.summarize({"a": [measured]}), [0], [])
    rows = {line.split(" | ")[0]: line for line in table.splitlines()}
    first = rows["| structure distance ×10³, resized without anti-aliasing"]
    second = rows["| structure distance ×10³, resized with anti-aliasing"]
    assert first.endswith("| – |") and second.endswith("| 39.43 |")
    assert measured["structure_distance"] != measured["structure_distance_antialiased"]
    assert networks.structure is not None
    assert measured["structure_distance_antialiased"] == networks.structure(picture, other, antialias=True)


def test_only_dino_whole_measures_structure(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    with pytest.raises(DataError, match="a model of the type clip, which does not measure this; give DINO"):
        StructureDistance(write_clip(tmp_path / "clip"))
    folder = write_dino(tmp_path / "dino")
    supervised = ViTForImageClassification(ViTConfig.from_pretrained(folder))
    supervised.save_pretrained(tmp_path / "supervised")
    with pytest.raises(DataError, match=r"weights of another network \(classifier\.bias\); give DINO"):
        StructureDistance(tmp_path / "supervised")
    supervised.vit.save_pretrained(tmp_path / "half", state_dict={"layernorm.weight": supervised.vit.layernorm.weight})
    with pytest.raises(DataError, match=r"half lacks weights of the network \(.* more\)"):
        StructureDistance(tmp_path / "half")


def test_only_clip_whole_compares_pictures_with_words(tmp_path: Path) -> None:
    from transformers import CLIPModel

    with pytest.raises(DataError, match="a model of the type vit, which does not measure this; give CLIP"):
        ClipSimilarity(write_dino(tmp_path / "dino"))
    folder = write_clip(tmp_path / "clip")
    model = CLIPModel.from_pretrained(folder)
    pictures = {k: v for k, v in model.state_dict().items() if not k.startswith("text_")}
    model.save_pretrained(folder, state_dict=pictures)
    with pytest.raises(DataError, match=r"lacks weights of the network \(text_.*give CLIP whole"):
        ClipSimilarity(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [("model.safetensors", b""), ("model.safetensors", b"junk" * 9), ("config.json", b"["), ("config.json", b"\xff")],
)
def test_a_damaged_model_folder_is_one_sentence(tmp_path: Path, file: str, content: bytes) -> None:
    folder = write_dino(tmp_path / "dino")
    (folder / file).write_bytes(content)
    with pytest.raises(DataError, match="cannot be loaded: |is not JSON|is not a whole safetensors file") as said:
        StructureDistance(folder)
    assert "\n" not in str(said.value)


def test_each_missing_network_is_named_and_nothing_stands_in_for_it() -> None:
    names = measures_of(Networks())
    assert set(names) == {n for n in pie_bench.MEASURES if n.startswith(("psnr", "mse", "ssim"))}
    assert [s.split(" is not")[0] for s in Networks().missing()] == ["CLIP similarity", "structure distance", "LPIPS"]
    summary = pie_bench.summarize({"a": [{"editing_type": 0, "psnr": 20.0}]})
    table = pie_bench.table(summary, [0], Networks().missing())
    assert "| CLIP, whole | higher | not measured | – | 24.87 |" in table


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "pie"
    assert make_example(folder, size=128, count=1) == 6
    return folder


def test_the_example_masks_what_differs(benchmark: Path) -> None:
    bench = PieBench(benchmark)
    items = bench.items(bench.keys(), BadRecords())
    assert sorted({i.editing_type for i in items}) == [1, 2, 3, 6, 7, 8]
    recoloured = next(i for i in items if i.editing_type == 6)
    assert 0 < recoloured.mask[1:-1, 1:-1].mean() < 0.5 and "[" not in recoloured.prompt


def test_a_stopped_evaluation_goes_on_and_adds_measures(benchmark: Path, tmp_path: Path, networks: Networks) -> None:
    editor = editar_rt.load(DEMO)
    first = evaluate_pie_bench(benchmark, editor, tmp_path, Networks(), limit=3, batch=2)
    assert first.report["all"]["pictures"] == 3 and "clip_whole" not in first.report["all"]
    made = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "pictures").iterdir()}
    assert len(made) == 3
    lines = (tmp_path / "results.jsonl").read_text()
    (tmp_path / "results.jsonl").write_text(lines + lines.splitlines()[0][:20])  # stopped while writing

    again = evaluate_pie_bench(benchmark, editor, tmp_path, networks, limit=3)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "pictures").iterdir()} == made
    for part in (lambda report: report["all"], lambda report: report["all"]["intervals"]):
        earlier, later = part(first.report), part(again.report)
        assert all(later[name] == value for name, value in earlier.items() if name != "intervals")
    assert set(pie_bench.MEASURES) <= set(again.report["all"])
    entries = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(entries) == 6 and not any("psnr" in e and "clip_whole" in e for e in entries)
    assert json.loads((tmp_path / "report.json").read_text())["all"] == again.report["all"]

    with pytest.raises(DataError, match=r"other settings \(sampling\)"):
        evaluate_pie_bench(benchmark, editor, tmp_path, networks, editar_rt.Sampling(temperature=0.5), limit=3)


def test_several_seeds_are_averaged_by_record_and_go_on_where_one_was(benchmark: Path, tmp_path: Path) -> None:
    editor = editar_rt.load(DEMO)
    sampling = editar_rt.Sampling(temperature=1.5, seed=3)
    one = evaluate_pie_bench(benchmark, editor, tmp_path, Networks(), sampling, limit=2)
    made = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "pictures").iterdir()}
    two = evaluate_pie_bench(benchmark, editor, tmp_path, Networks(), sampling, limit=2, seeds=2)
    pictures = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "pictures").iterdir()}
    assert len(made) == 2 and len(pictures) == 4 and made.items() <= pictures.items()
    assert one.report["seeds"] == [3] and two.report["seeds"] == [3, 4]

    values = ResultFolder(tmp_path, json_settings(tmp_path), {}).values
    by_record = [[values[f"{key}-seed{seed}"]["mse"] for seed in (3, 4)] for key in sorted({k[:12] for k in values})]
    assert by_record[0][0] != by_record[0][1]
    means = 1e4 * np.mean(by_record, axis=1)
    low, high = two.report["all"]["intervals"]["mse"]
    assert two.report["all"]["pictures"] == 2 and two.report["all"]["mse"] == pytest.approx(means.mean())
    assert (low, high) == pytest.approx((means.min(), means.max()))  # of two records, one is drawn twice at times
    assert "sampling seeds 3, 4" in two.table


def json_settings(folder: Path) -> dict[str, Any]:
    settings = json.loads((folder / "settings.json").read_text())
    del settings["networks"]
    return settings


@pytest.mark.parametrize("damage", ["empty", "cut"])
def test_a_picture_that_cannot_be_read_is_made_again(benchmark: Path, tmp_path: Path, damage: str) -> None:
    editor = editar_rt.load(DEMO)
    first = evaluate_pie_bench(benchmark, editor, tmp_path, Networks(), limit=2)
    pictures = sorted((tmp_path / "pictures").iterdir())
    before, kept = pictures[0].read_bytes(), pictures[1].stat().st_mtime_ns
    pictures[0].write_bytes(b"" if damage == "empty" else before[: len(before) // 2])
    again = evaluate_pie_bench(benchmark, editor, tmp_path, Networks(), limit=2)
    assert again.report == first.report
    assert pictures[0].read_bytes() == before and pictures[1].stat().st_mtime_ns == kept


@pytest.mark.parametrize("junk", [b"", b"[]", b"{", b"{}", b'{"networks": 3}', b"\xff\xfe"])
def test_settings_that_no_evaluation_wrote_are_one_sentence(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "settings.json").write_bytes(junk)
    with pytest.raises(DataError, match=r"settings\.json does not say what the results depend on.*another folder"):
        ResultFolder(tmp_path, {}, {})


@pytest.mark.parametrize(
    "junk",
    [
        b"junk",
        b"[1]",
        b'{"psnr": 3}',
        b'{"key": 3, "psnr": 3}',
        b'{"key": "a", "psnr": "high"}',
        b'{"key": "a", "overlap": {"0": [1]}}',
        b"\xff",
        b"",
    ],
)
def test_results_that_no_evaluation_wrote_are_named_by_their_line(tmp_path: Path, junk: bytes) -> None:
    ResultFolder(tmp_path, {}, {}).record("a", {"psnr": 3.5, "ssim": None, "overlap": {"0": [1, 2]}})
    good = (tmp_path / "results.jsonl").read_bytes()
    (tmp_path / "results.jsonl").write_bytes(good + junk + b"\n" + good)
    with pytest.raises(DataError, match=r"results\.jsonl holds no measures in line 2; remove that line"):
        ResultFolder(tmp_path, {}, {})
    (tmp_path / "results.jsonl").write_bytes(good + good)
    assert ResultFolder(tmp_path, {}, {}).values == {"a": {"psnr": 3.5, "ssim": None, "overlap": {"0": [1, 2]}}}


def test_entries_are_spread_evenly() -> None:
    assert spread(10, 3) == [0, 3, 6] and spread(3, 10) == spread(3, None) == [0, 1, 2]


def test_what_is_measured_is_what_the_bundle_makes(benchmark: Path, tmp_path: Path) -> None:
    editor = editar_rt.load(DEMO)
    evaluate_pie_bench(benchmark, editor, tmp_path, Networks(), limit=1)
    bench = PieBench(benchmark)
    item = bench.item(bench.keys()[0])
    result = np.asarray(editor.edit(item.picture, item.instruction).image)
    values = json.loads((tmp_path / "results.jsonl").read_text())
    error = np.square(item.picture.astype(float) / 255 - result / 255.0)
    assert values["mse"] == pytest.approx(error.mean(), rel=1e-5)
    assert values["mse_unedited"] == pytest.approx((error * ~item.mask[..., None]).mean(), rel=1e-5)


def test_the_command_prints_the_table_and_the_report_last(benchmark: Path, tmp_path: Path) -> None:
    words = ["evaluate", "pie-bench", str(benchmark), "--bundle", str(DEMO), "-o", str(tmp_path), "--limit", "2"]
    said = CliRunner().invoke(cli, [*words, "--sample-seed", "3", "--top-k", "5", "--json"], catch_exceptions=False)
    report = json.loads(said.stdout.splitlines()[-1])
    assert said.exit_code == 0 and "| PSNR, unedited part | higher |" in said.stdout
    assert report["all"]["pictures"] == 2 and report["seeds"] == [3] and report["sampling"]["top_k"] == 5
    assert "structure distance is not measured: give --dino" in said.stderr and (tmp_path / "sheet.png").exists()


def test_entries_that_cannot_be_used_are_named_and_skipped(benchmark: Path, tmp_path: Path) -> None:
    bench = PieBench(benchmark)
    whole = bench._entries[bench.keys()[0]]
    bench._entries = {
        "a": whole,
        "b": {**whole, "image_path": "../../secret.png"},
        "c": {**whole, "mask": [1]},
        "d": {**whole, "editing_instruction": ""},
        "e": {**whole, "editing_type_id": "12"},
        "../f": whole,
    }
    bad = BadRecords()
    assert [i.key for i in bench.items(bench.keys(), bad)] == ["a"]
    for said, word in zip(bad.messages, ("inside", "pairs", "instruction", "0 to 9", "not an entry"), strict=True):
        assert word in said


def test_a_folder_without_the_benchmark_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--make-example"):
        PieBench(tmp_path)


def test_the_old_dialect_of_evaluate_still_scores_the_demo_world() -> None:
    for words in (["evaluate", str(DEMO), "--help"], ["evaluate", "--count", "3", "--help"]):
        assert "Score BUNDLE strictly" in CliRunner().invoke(cli, words).output
    assert "pie-bench" in CliRunner().invoke(cli, ["evaluate", "--help"]).output
