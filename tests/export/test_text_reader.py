"""Text encoders from Hugging Face folders: what is read, and what is said about folders that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch

from editar_rt import names
from editar_rt.text.tokenizer import TextTokenizer
from export import graph_writer
from export.module_graphs import half_copy, text_encoder_graph
from export.text_reader import read_text_encoder
from tests.conftest import WORDS, write_text_encoder
from training.checkpoints import CheckpointError
from training.models.text_encoder import encode

PIECES = (
    *("make", "the ball", "RED", "naïve café", "e\u0301", "n\u0303\u0323", "ß", "İ", "ﬁne", "①②", "Ａ", "𝒜𝒷"),
    *("红色的球", "赤いボール", "빨간 공", "красный шар", "الكرة حمراء", "הכדור", "ลูกบอล", "\U00020bb7"),
    *(
        "🙂",
        "👩\u200d👩\u200d👧",
        "🏳️\u200d🌈",
        "\U0001f1e9\U0001f1ea",
        "\u00a0",
        "\u200b",
        "\ufeff",
        "\u3000",
        "\ufffd",
    ),
    *("\t", "\n", "\r\n", "  ", "   ", "▁", "▁▁red", "\x00", "\x1b[0m", "</s>", "<pad>", "<unk>", "<extra_id_0>"),
    *("a" * 40, "1,234.5e-6", "don't", "http://a.b/c?d=e", "..", "!?", "-", "_"),
)


def awkward_strings(count: int = 1000) -> list[str]:
    """Strings that tokenizers have differed on: the pieces alone, and mixed by a seeded generator."""
    rng = np.random.default_rng(0)
    mixed = ["", " ", "red " * 500, "红" * 500, *PIECES]
    while len(mixed) < count:
        chosen = rng.choice(len(PIECES), int(rng.integers(2, 12)))
        mixed.append(str(rng.choice(["", " ", "  "])).join(PIECES[i] for i in chosen))
    return mixed


def assert_as_transformers(folder: Path, tmp_path: Path) -> None:
    """The runtime's tokenizer gives what transformers gives for the folder: ids, padding, truncation and mask."""
    from transformers import AutoTokenizer

    read_text_encoder(folder).tokenizer.save(str(tmp_path / "exported.json"))
    runtime = TextTokenizer.read(tmp_path / "exported.json", 120)
    reference = AutoTokenizer.from_pretrained(folder)
    texts = awkward_strings()
    expected = reference(texts, max_length=120, padding="max_length", truncation=True)
    encoded = runtime.encode(texts)
    for text, ids, mask, right, right_mask in zip(
        texts, encoded.ids.tolist(), encoded.mask.tolist(), expected.input_ids, expected.attention_mask, strict=True
    ):
        assert (ids, mask) == (right, right_mask), repr(text)
    assert sum(encoded.truncated) >= 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_text_encoder(tmp_path / "t5", states_dim=32)


def test_a_folder_with_a_tokenizer_file(folder: Path) -> None:
    encoder = read_text_encoder(folder)
    assert encoder.dim == 32
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    assert encoder.parameters == sum(tensor.numel() for tensor in weights.values())
    assert encoder.tokenizer.encode("make the ball red").tokens == ["▁make", "▁the", "▁ball", "▁red", "</s>"]


def test_weights_in_shards_and_as_bin(folder: Path) -> None:
    expected = read_text_encoder(folder).build().state_dict()
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    encoder = read_text_encoder(folder)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in encoder.build().state_dict().items())
    encoder.build().save_pretrained(folder, max_shard_size="20KB")  # type: ignore[operator]
    (folder / "pytorch_model.bin").unlink()
    assert len(list(folder.glob("*.safetensors"))) > 1
    sharded = read_text_encoder(folder).build().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in sharded.items())


@pytest.fixture
def sentencepiece_folder(folder: Path) -> Path:
    """A folder whose tokenizer is a sentencepiece model, as T5's was published."""
    import sentencepiece

    (folder / "tokenizer.json").unlink()
    corpus = folder / "words.txt"
    corpus.write_text("\n".join(WORDS.split()) + "\n" + WORDS)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "spiece"), vocab_size=48, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    return folder


def test_a_folder_with_sentencepiece_alone(sentencepiece_folder: Path, tmp_path: Path) -> None:
    assert_as_transformers(sentencepiece_folder, tmp_path)


def test_a_folder_with_both_tokenizer_files(sentencepiece_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(sentencepiece_folder).save_pretrained(sentencepiece_folder)
    assert (sentencepiece_folder / "tokenizer.json").is_file()
    assert_as_transformers(sentencepiece_folder, tmp_path)


def edit_json(name: str, **values: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | values))

    return edit


def drop_a_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    del weights["encoder.block.1.layer.0.SelfAttention.q.weight"]
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})


def outside_of_the_folder(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"shared.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "holds no readable config.json"),
        (edit_json("config.json", model_type="bert"), "of type 'bert'; the text encoder must be a T5"),
        (lambda f: (f / "model.safetensors").unlink(), "the text encoder cannot be loaded"),
        (lambda f: (f / "model.safetensors").write_bytes(b"1234"), "model.safetensors is not a whole safetensors file"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "holds no readable config.json"),
        (lambda f: (f / "config.json").write_text(f'{{"model_type": "t5", "x": "{" " * (2 << 20)}"}}'), "no readable"),
        (edit_json("config.json", num_layers=10**8), "claims num_layers = 100000000, and its weights are 21 tensors"),
        (edit_json("config.json", d_ff=10**9), "its config.json claims a model of "),
        (outside_of_the_folder, "names weights outside of its folder"),
        (drop_a_weight, "lacks weights of the text encoder: encoder.block.1.layer.0.SelfAttention.q.weight"),
        (lambda f: (f / "tokenizer.json").unlink(), "contains no tokenizer: neither tokenizer.json nor spiece.model"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "the tokenizer cannot be read"),
        (edit_json("tokenizer.json", post_processor=None), "does not end texts with the end token, id 1"),
    ],
)
def test_folders_that_do_not_fit(folder: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(folder)
    with pytest.raises(CheckpointError) as error:
        read_text_encoder(folder)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tokenizer_with_more_tokens_than_the_encoder_embeds(folder: Path, tmp_path: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    size = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["vocab"]["zzz"] = size
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=f"has {size + 1} tokens, but the encoder embeds only {size}"):
        read_text_encoder(folder)


def test_half_precision_keeps_the_overflowing_products_in_float32(folder: Path) -> None:
    model = read_text_encoder(folder).build()
    kept = {name for name, tensor in half_copy(model).state_dict().items() if tensor.dtype == torch.float32}
    assert kept == {f"encoder.block.{i}.layer.1.DenseReluDense.wo.weight" for i in range(2)}
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


@torch.inference_mode()
def test_half_precision_is_finite_where_plain_float16_overflows(folder: Path, tmp_path: Path) -> None:
    """As in Flan-T5: the feed-forwards' outputs, summed in the residual stream, lie beyond float16's 65504."""
    model: Any = read_text_encoder(folder).build()
    for block in model.encoder.block:
        block.layer[1].DenseReluDense.wo.weight *= 1e7
    ids = torch.randint(3, 50, (2, 24), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    mask = torch.ones_like(ids)
    seen: list[torch.Tensor] = []
    handle = model.encoder.block[0].layer[1].DenseReluDense.wo.register_forward_hook(lambda *a: seen.append(a[2]))
    expected = encode(model, ids, mask)
    handle.remove()
    assert seen[0].abs().max() > 65504 and expected.isfinite().all()

    graph_writer.save(text_encoder_graph(half_copy(model), 24), tmp_path / "text_encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "text_encoder.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {names.INPUT_IDS: ids.numpy(), names.ATTENTION_MASK: mask.numpy()})
    assert np.abs(found - expected.numpy()).max() < 1e-2 * expected.abs().max().item()

    plain = model.half()
    assert not encode(plain, ids, mask).isfinite().all()
