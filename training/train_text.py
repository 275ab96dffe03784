"""Makes the demo's text encoder: its tokenizer, and a small T5 encoder pre-trained to understand the instructions.

EditAR's transformer reads text through keys rotated to zero, so it sees the *mean* over all text positions, padding
included. The encoder is therefore trained until that mean answers, through one linear layer a question, everything a
text says (`training.data.edits.SLOTS`). The linear layers are thrown away; the encoder stays frozen afterwards, as
T5 does in the paper. The result is a folder in Hugging Face layout.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from editar_rt.text.prompts import build_prompt
from training.data.edits import KINDS, SLOTS, random_example, slot_indices
from training.loop import RunFolder, batch_rng
from training.models.text_encoder import PAD, T5_PRESETS, build_text_encoder, encode, tokenize
from training.optimizers import MuonAdam
from training.pretraining import pretrain, replace_folder

TOKENIZER_TEXTS, HELD_OUT = 20_000, 1000  # that the tokenizer is made from, and that are looked at after training
END, UNKNOWN = "</s>", "<unk>"  # ids 1 and 2, after that of padding, as T5 has them


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the demo's text encoder is trained."""

    preset: str = "T5-demo"
    seed: int = 2
    vocabulary: int = 512
    text_tokens: int = 40
    steps: int = 1200
    batch: int = 64
    muon_lr: float = 4e-3  # of the blocks' matrices
    adam_lr: float = 1e-2  # of embeddings, position biases, norms and the linear layers
    warmup: int = 50


def random_texts(rng: np.random.Generator, count: int) -> tuple[list[str], np.ndarray]:
    """Prompts as the model reads them, and their slots [count, len(SLOTS)]."""
    examples = [random_example(rng, str(rng.choice(KINDS))) for _ in range(count)]
    return [build_prompt(e.task, e.text) for e in examples], np.stack([slot_indices(e.slots) for e in examples])


def train_tokenizer(recipe: Recipe) -> Tokenizer:
    """A byte-pair tokenizer over words, in which every word of the world is one token; case does not matter."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[PAD, END, UNKNOWN],
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"-▁"),
        show_progress=False,
    )
    texts, _ = random_texts(batch_rng(recipe.seed, 2**40), TOKENIZER_TEXTS)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer


@torch.no_grad()
def look_at_neighbours(model: nn.Module) -> None:
    """Start the heads on near words: the one before, the two before, the one after, and all with distance.

    "a red ball" means something only if `ball` looks at the word before it; found by training alone, that takes
    thousands of steps. T5's buckets 1..7 are the distances to earlier tokens, 17..23 to later ones.
    """
    bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # type: ignore[union-attr]
    bias.zero_()
    for head, buckets in enumerate(((1,), (2, 3), (17,))):
        bias[list(buckets), head] = 4.0  # type: ignore[index]
    distance = torch.arange(bias.shape[0]) % (bias.shape[0] // 2)  # type: ignore[index]
    bias[:, 3] = -0.3 * distance  # type: ignore[index]


def slot_losses(heads: nn.Linear, states: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over the slots, and the share of texts with every slot right.

    Args:
        states: encoder output [B, T, C].
        slots: [B, len(SLOTS)] class indices.
    """
    sizes = [1 + len(values) for values in SLOTS.values()]
    answers = heads(states.mean(dim=1)).split(sizes, dim=-1)
    losses = [F.cross_entropy(a, slots[:, i]) for i, a in enumerate(answers)]
    right = torch.stack([a.argmax(-1) == slots[:, i] for i, a in enumerate(answers)]).all(dim=0)
    return torch.stack(losses).sum(), right.float().mean()


def train(folder: Path | str, recipe: Recipe, log_every: int = 50) -> Path:
    """Train the tokenizer and the encoder; returns the finished folder, `text_encoder/`."""
    with RunFolder(folder, recipe) as run:
        return _train(run, recipe, log_every)


def _train(run: RunFolder, recipe: Recipe, log_every: int) -> Path:
    torch.manual_seed(recipe.seed)
    tokenizer = train_tokenizer(recipe)
    model = build_text_encoder(T5_PRESETS[recipe.preset], vocab_size=tokenizer.get_vocab_size())
    look_at_neighbours(model)
    heads = nn.Linear(model.config.d_model, sum(1 + len(v) for v in SLOTS.values()))
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".block." in name and "bias" not in name]
    optimizer = MuonAdam(nn.ModuleList([model, heads]), matrices, recipe.muon_lr, recipe.adam_lr, weight_decay=0.01)

    def batch_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        texts, slots = random_texts(batch_rng(recipe.seed, step), recipe.batch)
        ids, mask = tokenize(tokenizer, texts, recipe.text_tokens)
        loss, right = slot_losses(heads, encode(model, ids, mask), torch.from_numpy(slots))
        return loss, {"all_slots_right": right.item()}

    pretrain(run, model, heads, optimizer, batch_loss, recipe.steps, recipe.warmup, log_every)
    with torch.no_grad():
        texts, slots = random_texts(batch_rng(recipe.seed, 2**41), HELD_OUT)
        ids, mask = tokenize(tokenizer, texts, recipe.text_tokens)
        _, right = slot_losses(heads, encode(model, ids, mask), torch.from_numpy(slots))
    truncated = float((mask[:, -1] == 1).float().mean())
    run.log(recipe.steps, validation_all_slots_right=right.item(), filled_to_the_end=truncated)
    return save_folder(run.folder / "text_encoder", model, tokenizer)


def save_folder(folder: Path, model: nn.Module, tokenizer: Tokenizer) -> Path:
    """A text encoder and its tokenizer as a Hugging Face folder, replacing what was there."""
    from transformers import PreTrainedTokenizerFast

    tokenizer.no_padding()
    tokenizer.no_truncation()

    def write(partial: Path) -> None:
        model.save_pretrained(partial, safe_serialization=True)  # type: ignore[operator]
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)
        fast.save_pretrained(partial)

    return replace_folder(folder, write)
