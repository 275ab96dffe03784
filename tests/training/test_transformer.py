"""The transformer's three ways (training, scoring, generation) agree, and its sizes are the published ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from training.config import TRANSFORMER_PRESETS, VQ_PRESETS, TransformerConfig  # noqa: E402
from training.models.transformer import Transformer, sample  # noqa: E402

TINY = TransformerConfig(
    dim=32, n_layer=3, n_head=2, vocab_size=50, block_size=16, cls_token_num=5, caption_dim=12, multiple_of=8
)
PICTURES = 2
# Logits here span about 30; the ways differ only in the order of float32 sums.
TOLERANCE = {"rtol": 0.0, "atol": 1e-4}


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TINY).eval()
    for parameter in model.parameters():  # wide enough that every path matters to the logits
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=2 * parameter.shape[1] ** -0.5)
    return model


def draw(rows: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Condition tokens [PICTURES, N], text states [rows, T, C], target tokens [rows, N]."""
    generator = torch.Generator().manual_seed(seed)
    condition = torch.randint(TINY.vocab_size, (PICTURES, TINY.block_size), generator=generator)
    text = torch.randn(rows, TINY.cls_token_num, TINY.caption_dim, generator=generator)
    target = torch.randint(TINY.vocab_size, (rows, TINY.block_size), generator=generator)
    return condition, text, target


@pytest.mark.parametrize("drop_text", [False, True])
@pytest.mark.parametrize("drop_picture", [False, True])
@pytest.mark.parametrize("instructions", [1, 3])
@torch.no_grad()
def test_shared_prefix_training_agrees_with_scoring(
    model: Transformer, instructions: int, drop_picture: bool, drop_text: bool
) -> None:
    """Rows alternate between the drops asked for and none, so that both kinds stand side by side."""
    rows = PICTURES * instructions
    condition, text, target = draw(rows)
    odd = torch.arange(rows) % 2 == 1
    logits = model(condition, text, target, odd & drop_picture, odd & drop_text)
    for r in range(rows):
        picture = None if drop_picture and odd[r] else condition[r // instructions][None]
        cond, null = model.score(text[r : r + 1], picture, target[r : r + 1])
        torch.testing.assert_close(logits[r], (null if drop_text and odd[r] else cond)[0], **TOLERANCE)


@pytest.mark.parametrize(("instructions", "plain"), [(1, True), (3, False)])
@torch.no_grad()
def test_attention_needs_no_mask_where_a_picture_has_one_row(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, instructions: int, plain: bool
) -> None:
    asked: list[tuple[bool, bool]] = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def watched(*qkv: torch.Tensor, attn_mask: Any = None, is_causal: bool = False) -> Any:
        asked.append((attn_mask is None, is_causal))
        return attention(*qkv, attn_mask=attn_mask, is_causal=is_causal)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    rows = PICTURES * instructions
    keep = torch.zeros(rows, dtype=torch.bool)
    model(*draw(rows), keep, keep)
    assert (set(asked) == {(True, True)}) == plain


@pytest.mark.parametrize("dropped", [False, True])
@torch.no_grad()
def test_the_stand_in_for_a_picture_is_run_where_a_row_asks_for_it(model: Transformer, dropped: bool) -> None:
    run: list[int] = []
    watch = model.layers[0].register_forward_pre_hook(lambda layer, inputs: run.append(len(inputs[0])))
    drop = torch.zeros(PICTURES * 3, dtype=torch.bool)
    drop[1] = dropped
    model(*draw(len(drop)), drop, torch.zeros_like(drop))
    watch.remove()
    assert run == [PICTURES + dropped]


def test_the_stand_in_for_a_picture_has_a_gradient_where_no_row_asks_for_it() -> None:
    """Of zeros: processes that train together wait for each other's, whatever their rows drop."""
    model, keep = Transformer(TINY), torch.zeros(PICTURES * 3, dtype=torch.bool)
    model(*draw(len(keep)), keep, keep).sum().backward()
    assert model.img_uncond_embedding.grad is not None and not model.img_uncond_embedding.grad.any()


@torch.no_grad()
def test_training_returns_the_hidden_states_behind_its_logits(model: Transformer) -> None:
    condition, text, target = draw(PICTURES)
    keep = torch.zeros(PICTURES, dtype=torch.bool)
    logits, hidden = model(condition, text, target, keep, keep, return_hidden=True)
    assert hidden.shape == (PICTURES, TINY.block_size, TINY.dim)
    torch.testing.assert_close(model.logits(hidden), logits)


@torch.no_grad()
def test_hidden_target_tokens_are_not_seen(model: Transformer) -> None:
    condition, text, target = draw(PICTURES)
    keep = torch.zeros(PICTURES, dtype=torch.bool)
    hide = torch.zeros(target.shape, dtype=torch.bool)
    hide[:, 3:7] = True
    other = torch.where(hide, (target + 1) % TINY.vocab_size, target)
    hidden, changed = (model(condition, text, t, keep, keep, hide) for t in (target, other))
    assert torch.equal(hidden, changed)
    seen = model(condition, text, target, keep, keep)
    assert torch.equal(seen[:, :4], hidden[:, :4]) and not torch.allclose(seen[:, 4:], hidden[:, 4:])


def test_every_parameter_is_trained() -> None:
    """With a dropped picture and a dropped text in the batch, gradients reach the learned stand-ins too."""
    model = Transformer(TINY)
    torch.nn.init.normal_(model.output.weight)
    condition, text, target = draw(2 * PICTURES)
    one_dropped = torch.arange(2 * PICTURES) == 1
    model(condition, text, target, one_dropped, one_dropped).logsumexp(-1).sum().backward()
    untrained = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert untrained == []


@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
def test_greedy_generation_agrees_with_scoring(model: Transformer, cfg_scale: float) -> None:
    condition, text, _ = draw(PICTURES)
    tokens = model.generate(text, condition, cfg_scale, greedy=True)
    cond, null = model.score(text, condition, tokens)
    assert torch.equal((null + cfg_scale * (cond - null)).argmax(-1), tokens)


@torch.no_grad()
def test_chunks_over_a_cache_agree_with_one_pass(model: Transformer) -> None:
    x = torch.randn(2, TINY.max_positions, TINY.dim, generator=torch.Generator().manual_seed(2))
    whole = model.forward_chunk(x, 0, model.make_cache(2))
    cache = model.make_cache(2)
    position = 0
    for length in (7, 1, 20, 1, 8):
        hidden = model.forward_chunk(x[:, position : position + length], position, cache)
        torch.testing.assert_close(hidden, whole[:, position : position + length], **TOLERANCE)
        position += length
    # A cache is rewound by writing at an earlier position again.
    torch.testing.assert_close(model.forward_chunk(x[:, 9:12], 9, cache), whole[:, 9:12], **TOLERANCE)


def test_drawn_tokens_follow_from_the_generator(model: Transformer) -> None:
    condition, text, _ = draw(PICTURES)
    first, again, other = (
        model.generate(text, condition, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def drawn(logits: list[float], top_k: int, top_p: float) -> set[int]:
    """Which tokens 2000 draws from these logits give."""
    rows = torch.tensor(logits).expand(2000, -1)
    return set(sample(rows, 1.0, top_k, top_p, torch.Generator().manual_seed(0)).tolist())


def test_top_k_keeps_ties_with_the_last_that_stays() -> None:
    assert drawn([0.0, 1.0, 1.0, 2.0], top_k=2, top_p=1.0) == {1, 2, 3}


def test_top_p_keeps_tokens_until_their_sum_passes_it() -> None:
    logits = torch.tensor([0.1, 0.5, 0.25, 0.15]).log().tolist()
    assert drawn(logits, top_k=0, top_p=0.6) == {1, 2}
    assert drawn(logits, top_k=0, top_p=0.0) == {1}


PUBLISHED_PARAMETERS = {"GPT-B": 111e6, "GPT-L": 343e6, "GPT-XL": 775e6, "GPT-XXL": 1.4e9, "GPT-3B": 3.1e9}


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_presets_have_the_published_number_of_parameters(name: str) -> None:
    config = TRANSFORMER_PRESETS[name]
    with torch.device("meta"):
        model = Transformer(config)
    count = sum(p.numel() for p in model.parameters())
    # The published counts are of class-conditional models: a table of 1001 classes in place of text and picture.
    conditioning = sum(p.numel() for p in model.cls_embedding.parameters()) + model.img_uncond_embedding.numel()
    published = PUBLISHED_PARAMETERS[name]
    digits = 1e6 if published < 1e9 else 1e8
    assert round((count - conditioning + 1001 * config.dim) / digits) == published / digits


def test_the_released_model_has_779_million_parameters() -> None:
    with torch.device("meta"):
        model = Transformer(TRANSFORMER_PRESETS["GPT-XL"])
    assert sum(p.numel() for p in model.parameters()) == 779_234_560


@pytest.mark.parametrize("config", [*VQ_PRESETS.values(), *TRANSFORMER_PRESETS.values()])
def test_configurations_survive_json(config: TransformerConfig) -> None:
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_configuration_keys_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="n_kv_head"):
        TransformerConfig.from_dict({**TINY.to_dict(), "n_kv_head": 2})


@pytest.mark.parametrize("wrong", [{"block_size": 15}, {"n_head": 3}, {"n_head": 16}])
def test_impossible_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be a"):
        TransformerConfig.from_dict({**TINY.to_dict(), **wrong})
