"""Translations are measured as by hand and as by the libraries: FID, depth, edges, classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("torchmetrics")

import editar_rt  # noqa: E402
from editar_rt.images.canny import canny_edges  # noqa: E402
from tests.training.data_sets import world_samples  # noqa: E402
from tests.training.metric_networks import write_depth_estimator, write_inception, write_segmenter  # noqa: E402
from training.cli import cli  # noqa: E402
from training.data.folder import write_folder  # noqa: E402
from training.data.records import DataError  # noqa: E402
from training.data.sources import Plan, Source  # noqa: E402
from training.evaluation import consistency  # noqa: E402
from training.evaluation.frechet import InceptionFeatures, frechet_distance, resize  # noqa: E402
from training.evaluation.translation import TranslationNetworks, evaluate_translation  # noqa: E402

DEMO = Path(__file__).parents[2] / "engines/demo"


def picture(seed: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def test_frechet_distance_is_that_of_two_normal_distributions() -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(50, 4)), 0.5 + rng.normal(size=(40, 4)) @ rng.normal(size=(4, 4))
    (m1, c1), (m2, c2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (real, made))
    expected = np.square(m1 - m2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_distance(real.astype(np.float32), made.astype(np.float32)) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(real[:1].astype(np.float32), made.astype(np.float32)) is None


def test_features_are_of_the_resized_picture_in_the_networks_units(tmp_path: Path) -> None:
    path = write_inception(tmp_path / "inception.pt")
    one = picture(1)
    x = (torch.from_numpy(resize(one)).permute(2, 0, 1)[None] - 128) / 128
    expected = torch.jit.load(str(path)).layers(x).flatten().detach().numpy()
    np.testing.assert_allclose(InceptionFeatures(path)(one), expected, rtol=1e-5)
    assert resize(picture(2, 299)).tolist() == picture(2, 299).tolist()


def test_a_file_that_is_no_torchscript_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no TorchScript file"):
        InceptionFeatures(tmp_path / "x.pt")


def test_a_picture_is_made_smaller_by_the_whole_of_a_wide_cubic_kernel() -> None:
    # From 4 to 2, Keys' kernel (a = -1/2) is stretched to twice its width: at -1/4, 1/4, 3/4 and 5/4 it is 111, 111, 29
    # and -9 parts of 128, which are made to sum to 1.
    assert resize(np.full((4, 4, 3), 242, np.uint8), 2).tolist() == np.full((2, 2, 3), 242.0).tolist()
    column = np.zeros((4, 4, 3), np.uint8)
    column[:, 2] = [242, 121, 0]
    expected = np.array([[29, 14.5, 0], [111, 55.5, 0]])  # fractions are kept
    np.testing.assert_allclose(resize(column, 2), np.stack([expected, expected]), atol=1e-4)
    row = np.zeros((4, 4, 3), np.uint8)
    row[3] = 242
    np.testing.assert_allclose(resize(row, 2)[..., 0], [[0, 0], [111, 111]], atol=1e-4)  # -9 is cut off


def test_a_picture_is_made_larger_by_the_narrow_kernel_and_stays_in_range() -> None:
    # From 2 to 4 it has its own width: the inner pixels are 111 and 29 parts of the two, the outer ones 111 and -9.
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[:, 1] = [102, 140, 255]
    expected = [[0, 0, 0], [102 * 29 / 140, 29, 255 * 29 / 140], [102 * 111 / 140, 111, 255 * 111 / 140]]
    expected.append([111, 140 * 111 / 102, 255])  # -9 of 102 is cut off at the left, 277.5 at the right
    np.testing.assert_allclose(resize(picture, 4), np.stack([expected] * 4), atol=1e-3)


def test_depth_error_is_a_root_mean_square_of_0_to_255() -> None:
    condition = np.full((8, 8, 3), 100, np.uint8)
    condition[0], condition[1] = 0, 255
    depth = condition[..., 0].astype(np.float32)
    depth[4:6] += 20
    assert consistency.depth_error(condition, depth) == pytest.approx(10)  # a quarter of the pixels is 20 off


def test_the_condition_is_stretched_before_it_is_compared_and_the_estimate_is_not() -> None:
    condition = np.full((4, 4, 3), 50, np.uint8)
    condition[0], condition[1] = 20, 120  # 30 of 100 for the rest: 76.5, rounded down
    stretched = np.full((4, 4), 76, np.float32)
    stretched[0], stretched[1] = 0, 255
    assert consistency.depth_error(condition, stretched) == 0
    assert consistency.depth_error(condition, stretched / 2) == pytest.approx(np.sqrt(np.square(stretched / 2).mean()))
    assert consistency.depth_error(np.full((4, 4, 3), 9, np.uint8), np.zeros((4, 4), np.float32)) == 0


def test_estimated_depth_is_scaled_by_its_greatest_value_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = consistency.DepthEstimator(write_depth_estimator(tmp_path / "depth"))
    said = torch.tensor([[[2.0, 4.0], [1.0, 3.0]]])
    monkeypatch.setattr(estimator, "outputs", lambda picture: said)
    assert estimator(picture(3, 2)).tolist() == [[127, 255], [63, 191]]  # the least is not 0; rounded down
    # A pixel made two is a quarter of the way to its neighbour.
    assert estimator(picture(3, 4))[0].tolist() == [127, 159, 223, 255]
    said.zero_()
    assert estimator(picture(3, 2)).tolist() == [[0, 0], [0, 0]]


def test_a_depth_estimator_is_shown_the_picture_in_its_own_size_and_units(tmp_path: Path) -> None:
    folder = write_depth_estimator(tmp_path / "depth")
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 64, "width": 64}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    )
    shown, estimator = [], consistency.DepthEstimator(folder)
    estimator._model.register_forward_pre_hook(
        lambda module, args, given: shown.append(given["pixel_values"]), with_kwargs=True
    )
    given = picture(3, 128)
    depth = estimator(given)
    small = np.asarray(Image.fromarray(given).resize((64, 64), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(shown[0][0].permute(1, 2, 0).numpy(), (small / 255 - 0.5) / 0.25, atol=1e-5)
    assert depth.shape == (128, 128) and 0 <= depth.min() < depth.max() <= 255


def test_weights_that_a_network_lacks_are_refused_unless_nothing_depends_on_them(tmp_path: Path) -> None:
    # Intel/dpt-large lacks these, which its first fusion layer never uses.
    unused = "neck.fusion_stage.layers.0.residual_layer1."
    whole = consistency.DepthEstimator(write_depth_estimator(tmp_path / "whole"))
    rest = consistency.DepthEstimator(write_depth_estimator(tmp_path / "rest", without=unused))
    assert rest(picture(5, 64)).tolist() == whole(picture(5, 64)).tolist()
    with pytest.raises(DataError, match=r"lacks weights of the network \(head\.head\.0\.bias and 5 more\).*dpt-large"):
        consistency.DepthEstimator(write_depth_estimator(tmp_path / "headless", without="head."))


def test_a_network_of_another_kind_does_not_estimate_depth_or_classes(tmp_path: Path) -> None:
    from transformers import GLPNConfig, GLPNForDepthEstimation, SegformerForImageClassification

    sizes = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4}
    GLPNForDepthEstimation(GLPNConfig(**sizes, decoder_hidden_size=8)).save_pretrained(tmp_path / "glpn")
    with pytest.raises(DataError, match="a model of the type glpn, which does not measure this; give a DPT"):
        consistency.DepthEstimator(tmp_path / "glpn")
    segmenter = write_segmenter(tmp_path / "segmenter", classes=3)
    encoder = SegformerForImageClassification.from_pretrained(segmenter)
    encoder.save_pretrained(tmp_path / "encoder")  # as nvidia/mit-b0 is
    with pytest.raises(DataError, match=r"lacks weights of the network \(decode_head.*give a semantic segmenter"):
        consistency.Segmenter(tmp_path / "encoder")
    with pytest.raises(DataError, match="glpn cannot be loaded: Unrecognized configuration.*give a semantic segmenter"):
        consistency.Segmenter(tmp_path / "glpn")


def test_edges_of_the_same_picture_agree_and_others_do_by_hand() -> None:
    one = np.zeros((32, 32, 3), np.uint8)
    one[8:24, 8:24] = 200
    edges = canny_edges(one)
    assert consistency.edge_agreement(edges, one) == {"f1": 1.0, "edge_ssim": pytest.approx(1)}
    half = edges.copy()
    half[16:] = 0
    shown, wanted = edges[..., 0] > 0, half[..., 0] > 0
    precision, recall = wanted.sum() / shown.sum(), 1.0
    expected = 2 * precision * recall / (precision + recall)
    assert consistency.edge_agreement(half, one)["f1"] == pytest.approx(expected)


def test_multi_scale_similarity_needs_a_large_picture() -> None:
    assert "edge_ms_ssim" in consistency.edge_agreement(canny_edges(picture(4, 176)), picture(4, 176))


def test_classes_are_told_by_colour_in_the_middle_square() -> None:
    palette = np.asarray([[0, 0, 0], [250, 0, 0], [0, 0, 250]])
    mask = np.zeros((4, 6, 3), np.uint8)
    mask[:, 2] = [248, 5, 3]  # nearly red, as JPEG leaves it
    mask[:, 3] = [0, 0, 250]
    mask[0, 3] = [90, 90, 90]  # no class's colour
    mask[:, 0] = [250, 0, 0]  # outside of the square
    found = consistency.classes_of(mask, palette)
    assert found.tolist() == [[0, 1, consistency.UNKNOWN, 0]] + [[0, 1, 2, 0]] * 3


def test_mean_iou_agrees_with_torchmetrics() -> None:
    from torchmetrics.functional.classification import multiclass_jaccard_index

    rng = np.random.default_rng(5)
    wanted, found = rng.integers(0, 3, (4, 8, 8)), rng.integers(0, 4, (4, 8, 8))
    wanted[0, :3] = consistency.UNKNOWN
    records = [[consistency.overlap(w, f)] for w, f in zip(wanted, found, strict=True)]
    mine = consistency.mean_iou(consistency.overlap_counts(records).sum(axis=0))
    theirs = multiclass_jaccard_index(
        torch.from_numpy(found), torch.from_numpy(wanted), num_classes=4, ignore_index=consistency.UNKNOWN
    )
    assert mine == pytest.approx(theirs.item(), rel=1e-6)
    # By hand: each class has one pixel in common of two.
    counts = consistency.overlap_counts([[consistency.overlap(np.array([0, 0, 1]), np.array([0, 1, 1]))]])
    assert counts.tolist() == [[[1, 2], [1, 2]]] and consistency.mean_iou(counts[0]) == (1 / 2 + 1 / 2) / 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("translations") / "set"
    write_folder(folder, world_samples(2, ("canny", "depth", "segmentation"), size=64))
    return folder


def world_palette(data: Path) -> list[list[int]]:
    """Colours of the procedural world's masks."""
    masks = [s.condition.reshape(-1, 3) for s in world_samples(2, ("segmentation",), size=64)]
    colours, counts = np.unique(np.concatenate(masks), axis=0, return_counts=True)
    return colours[np.argsort(-counts)][:4].tolist()


@pytest.mark.parametrize("task", ["canny", "depth", "segmentation"])
def test_each_task_is_measured_and_goes_on_where_it_was(data: Path, tmp_path: Path, task: str) -> None:
    palette = tmp_path / "palette.json"
    palette.write_text(json.dumps(world_palette(data)))
    networks = TranslationNetworks.load(
        write_inception(tmp_path / "inception.pt"),
        write_depth_estimator(tmp_path / "depth"),
        write_segmenter(tmp_path / "segmenter", classes=4),
        palette,
        "cpu",
    )
    editor, plan, output = editar_rt.load(DEMO), Plan((Source(data),)), tmp_path / "out"
    bare = evaluate_translation(plan, task, editor, output, TranslationNetworks())
    assert bare.report["measures"]["fid"] is None and "FID is not measured" in bare.table
    made = {p.name: p.stat().st_mtime_ns for p in (output / "pictures").iterdir()}
    assert len(made) == 2

    whole = evaluate_translation(plan, task, editor, output, networks)
    assert {p.name: p.stat().st_mtime_ns for p in (output / "pictures").iterdir()} == made
    measures = whole.report["measures"]
    assert measures["fid"] >= 0 and "FID over 2 pictures is only a hint" in whole.table
    main = {"canny": "f1", "depth": "rmse", "segmentation": "miou"}[task]
    assert 0 <= measures[main] <= (255 if task == "depth" else 1)
    assert evaluate_translation(plan, task, editor, output, networks).report == whole.report

    low, high = whole.report["intervals"][main]
    assert low <= measures[main] <= high


def test_a_depth_error_by_another_protocol_is_not_gone_on_with(data: Path, tmp_path: Path) -> None:
    editor, plan = editar_rt.load(DEMO), Plan((Source(data),))
    evaluate_translation(plan, "depth", editor, tmp_path, TranslationNetworks())
    settings = json.loads((tmp_path / "settings.json").read_text())
    del settings["depth_protocol"]
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match=r"other settings \(depth_protocol\)"):
        evaluate_translation(plan, "depth", editor, tmp_path, TranslationNetworks())


def test_damaged_features_are_taken_again(data: Path, tmp_path: Path) -> None:
    editor, plan, output = editar_rt.load(DEMO), Plan((Source(data),)), tmp_path / "out"
    networks = TranslationNetworks.load(write_inception(tmp_path / "inception.pt"), None, None, None, "cpu")
    whole = evaluate_translation(plan, "canny", editor, output, networks)
    for damaged in (b"", b"PK\x03\x04 half", (output / "features.npz").read_bytes()[:300]):
        (output / "features.npz").write_bytes(damaged)
        assert evaluate_translation(plan, "canny", editor, output, networks).report == whole.report


def test_the_distances_of_several_seeds_are_averaged(data: Path, tmp_path: Path) -> None:
    editor, plan, output = editar_rt.load(DEMO), Plan((Source(data),)), tmp_path / "out"
    networks = TranslationNetworks.load(write_inception(tmp_path / "inception.pt"), None, None, None, "cpu")
    one = evaluate_translation(plan, "depth", editor, output, networks)
    two = evaluate_translation(plan, "depth", editor, output, networks, seeds=2)
    assert two.report["pictures"] == 2 and two.report["seeds"] == [0, 1]
    assert len(list((output / "pictures").iterdir())) == 4
    distances = two.report["fid_of_seeds"]
    assert distances[0] == one.report["measures"]["fid"]
    assert two.report["measures"]["fid"] == pytest.approx(np.mean(distances))


def test_the_command_prints_the_table(data: Path, tmp_path: Path) -> None:
    words = ["evaluate", "translation", str(data), "--task", "canny", "--bundle", str(DEMO), "-o", str(tmp_path)]
    said = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert said.exit_code == 0 and "| FID | lower | not measured | – | 13.91 |" in said.stdout
    assert "FID is not measured: give --inception" in said.stderr


def test_a_data_set_without_the_task_is_one_sentence(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", world_samples(1, ("recolour",), size=64))
    with pytest.raises(DataError, match="no record of the task depth"):
        evaluate_translation(
            Plan((Source(tmp_path / "set"),)), "depth", editar_rt.load(DEMO), tmp_path / "out", TranslationNetworks()
        )


def test_a_palette_that_does_not_fit_the_segmenter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "palette.json").write_text("[[0, 0, 0], [1, 2, 3]]")
    segmenter = write_segmenter(tmp_path / "segmenter", classes=3)
    with pytest.raises(DataError, match="has 2 colours, but .* knows 3 classes"):
        TranslationNetworks.load(None, None, segmenter, tmp_path / "palette.json", "cpu")
    with pytest.raises(DataError, match="belong together"):
        TranslationNetworks.load(None, None, segmenter, None, "cpu")
    (tmp_path / "palette.json").write_text("[[0, 0, 300]]")
    with pytest.raises(DataError, match="0 to 255"):
        consistency.read_palette(tmp_path / "palette.json")
