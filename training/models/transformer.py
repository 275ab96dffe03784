"""The transformer that turns a condition picture and a text into a target picture, token by token.

The sequence is [condition picture (N) | text (T) | target picture (N)], causal throughout. Three ways through it:

- `Transformer.forward` trains: all target tokens at once, the condition picture run once for several instructions;
- `Transformer.score` forces target tokens and gives the logits of each step, with and without the text;
- `Transformer.generate` draws them one at a time with a KV cache.

The last two are the plain path that every faster one is tested against. Parameter names are those of the official
checkpoints, so that they load strictly.

Shapes in comments: B rows, P pictures, S positions of a chunk, N tokens of a picture, T text positions, C the text
encoder's width, D the model's width, H heads, V tokens in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.config import TransformerConfig
from training.models.rotary import rotary_table


class CaptionProjection(nn.Module):
    """Text encoder output to the model's width: [..., C] -> [..., D]."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.caption_dim, config.dim, bias=False)
        self.fc2 = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(states), approximate="tanh"))


class CaptionEmbedding(nn.Module):
    """The projection of text, and what stands in for a dropped text before it."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.cap_proj = CaptionProjection(config)
        self.uncond_embedding = nn.Parameter(torch.empty(config.cls_token_num, config.caption_dim))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns adjacent pairs of elements: x [B, S, heads, head_dim] by angles [S, head_dim // 2]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]  # the same for every head
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention in two steps, so that the caller decides where keys and values come from."""

    def __init__(self, config: TransformerConfig, resid_dropout: float) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.wqkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)
        self.resid_dropout = nn.Dropout(resid_dropout)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, S, D] -> rotated queries, rotated keys and values, [B, S, H, head_dim] each."""
        queries_keys, values = self.wqkv(x).split((2 * x.shape[-1], x.shape[-1]), dim=-1)
        queries_keys = rotate(queries_keys.unflatten(-1, (-1, self.head_dim)), cos, sin)  # [B, S, 2H, head_dim]
        queries, keys = queries_keys.chunk(2, dim=2)
        return queries, keys, values.unflatten(-1, (-1, self.head_dim))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, first: int = 0) -> Tensor:
        """Queries [B, S, H, head_dim], keys and values [B, past + S, H, head_dim] -> [B, S - first, D].

        Args:
            mask: bool [S, past + S], true where a query sees a key; None for a causal chunk without a past and for
                a single query that sees everything.
            first: the first query whose result is wanted.
        """
        q, k, v = (t.transpose(1, 2) for t in (queries, keys, values))
        causal = mask is None and queries.shape[1] > 1
        if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # Backwards, PyTorch's fused attention takes several times as long in bfloat16 as in float32 on a CPU.
            with torch.autocast("cpu", enabled=False):
                h = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, is_causal=causal)
        else:
            h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)  # [B, H, S, head_dim]
        return self.resid_dropout(self.wo(h[:, :, first:].transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: TransformerConfig, ffn_dropout: float) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.ffn_dropout = nn.Dropout(ffn_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn_dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class Block(nn.Module):
    """One layer: `forward` trains; `project`, then `attend` to whatever keys and values, runs over a cache."""

    def __init__(self, config: TransformerConfig, resid_dropout: float, ffn_dropout: float) -> None:
        super().__init__()
        self.attention = Attention(config, resid_dropout)
        self.feed_forward = FeedForward(config, ffn_dropout)
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.attention.project(self.attention_norm(x), cos, sin)

    def attend(
        self, x: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, first: int = 0
    ) -> Tensor:
        """What becomes of x [B, S, D] from position `first` on."""
        x = x[:, first:] + self.attention(queries, keys, values, mask, first)
        return x + self.feed_forward(self.ffn_norm(x))

    def forward(
        self,
        picture: Tensor | None,
        x: Tensor,
        picture_of_row: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        first: int,
    ) -> tuple[Tensor | None, Tensor]:
        """Pictures [P, N, D], and rows [R, S, D] that each see one of them before themselves.

        All of a layer's training is this one call, so that sharding, recomputing and compiling take a layer whole.

        Args:
            picture: None where each row has its picture in itself; attention is then plainly causal.
            picture_of_row: int64 [R]; None without pictures.
            cos, sin: of the whole sequence, [N + S, head_dim // 2].
            mask: bool [S, N + S]; None without pictures.
            first: the first position of a row that anything after this layer needs; above 0, which only the last
                layer has, the pictures are not needed either, and None.
        """
        if picture is None or picture_of_row is None or mask is None:
            return None, self.attend(x, *self.project(x, cos, sin), None, first)
        split = picture.shape[1]
        picture_queries, picture_keys, picture_values = self.project(picture, cos[:split], sin[:split])
        queries, keys, values = self.project(x, cos[split:], sin[split:])
        keys = torch.cat((picture_keys.index_select(0, picture_of_row), keys), dim=1)
        values = torch.cat((picture_values.index_select(0, picture_of_row), values), dim=1)
        if first:
            return None, self.attend(x[:, first:], queries[:, first:], keys, values, mask[first:])
        picture = self.attend(picture, picture_queries, picture_keys, picture_values, None)
        return picture, self.attend(x, queries, keys, values, mask)


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Bool [queries, keys]: the last query sees all keys, the one before it all but the last, and so on."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


class KVCache:
    """Keys and values of every layer for whole sequences. Rewinding needs no call: write at an earlier position.

    A head's positions lie one behind the other, which attention reads twice as fast as heads side by side.
    """

    def __init__(self, config: TransformerConfig, batch: int, like: Tensor) -> None:
        shape = (config.n_layer, batch, config.n_head, config.max_positions, config.head_dim)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros(shape, dtype=like.dtype, device=like.device)

    def extend(self, layer: int, position: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes [B, S, H, head_dim] at `position`; returns views of all positions up to there."""
        end = position + keys.shape[1]
        self.keys[layer, :, :, position:end] = keys.transpose(1, 2)
        self.values[layer, :, :, position:end] = values.transpose(1, 2)
        return self.keys[layer, :, :, :end].transpose(1, 2), self.values[layer, :, :, :end].transpose(1, 2)


def sample(logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None) -> Tensor:
    """One draw a row.

    Args:
        logits: [B, V] float32.
        temperature: above 0.
        top_k: how many of the largest logits stay (ties with the last of them too); 0 keeps all.
        top_p: the most likely tokens stay until their probabilities sum to more than this; 1 keeps all.

    Returns:
        tokens [B], int64.
    """
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # of the more likely tokens: 0 for the first, so one stays
        ordered = ordered.masked_fill(before > top_p, -torch.inf)
        logits = torch.empty_like(logits).scatter(-1, order, ordered)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


class Transformer(nn.Module):
    """See the module's docstring.

    Args:
        token_dropout, resid_dropout, ffn_dropout: dropout rates while training, of the embedded sequence, of each
            attention's output and of each feed-forward's output. The paper trains with 0.1 in all three.
        token_dropout_on: `all` of the sequence, or the projected `text` alone, as the paper's code has it: a tenth of
            a picture's elements zeroed is a tenth less of what is to be copied exactly.

    Attributes:
        recompute: run every layer again in the backward pass in place of keeping what is inside of it: a third more
            work for a fraction of the memory.
    """

    rotary_cos: Tensor
    rotary_sin: Tensor

    def __init__(
        self,
        config: TransformerConfig,
        token_dropout: float = 0.0,
        resid_dropout: float = 0.0,
        ffn_dropout: float = 0.0,
        token_dropout_on: str = "all",
    ) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.img_uncond_embedding = nn.Parameter(torch.empty(config.block_size, config.dim))
        self.cls_embedding = CaptionEmbedding(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.tok_dropout = nn.Dropout(token_dropout)
        self.picture_dropout = nn.Dropout(token_dropout if token_dropout_on == "all" else 0.0)
        self.layers = nn.ModuleList(Block(config, resid_dropout, ffn_dropout) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        cos, sin = rotary_table(config)
        self.register_buffer("rotary_cos", torch.from_numpy(cos), persistent=False)
        self.register_buffer("rotary_sin", torch.from_numpy(sin), persistent=False)
        self.initialize()

    def initialize(self) -> None:
        """Random weights to train from; `output` starts at zero, so that the first loss is log(V)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        self.draw_null_embeddings(self.null_embeddings())
        nn.init.zeros_(self.output.weight)

    def null_embeddings(self) -> dict[str, nn.Parameter]:
        """What stands in for a dropped picture and a dropped text, by name; guidance subtracts what follows from it."""
        return {
            "img_uncond_embedding": self.img_uncond_embedding,
            "cls_embedding.uncond_embedding": self.cls_embedding.uncond_embedding,
        }

    def draw_null_embeddings(self, names: Iterable[str], generator: torch.Generator | None = None) -> None:
        """Random stand-ins, of the given names, with rows of about length 1."""
        for name, parameter in self.null_embeddings().items():
            if name in names:
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)

    # Embedding.

    def embed_picture(self, tokens: Tensor | None, dropped: Tensor | None = None) -> Tensor:
        """Condition picture tokens [B, N] -> [B, N, D].

        Args:
            tokens: None for one dropped picture, [1, N, D].
            dropped: bool [B] or [B, N], true where the picture or a token is replaced by the learned stand-in.
        """
        if tokens is None:
            return self.img_uncond_embedding[None]
        x = self.tok_embeddings(tokens)
        if dropped is None:
            return x
        return torch.where(dropped.view(len(x), -1, 1), self.img_uncond_embedding, x)

    def project_text(self, states: Tensor) -> Tensor:
        """Text encoder output [B, T, C], padding included -> [B, T, D]."""
        return self.cls_embedding.cap_proj(states)

    def null_text(self) -> Tensor:
        """What stands in for a dropped text, [1, T, D]."""
        return self.project_text(self.cls_embedding.uncond_embedding[None])

    # Inference.

    def make_cache(self, batch: int) -> KVCache:
        """An empty cache for `batch` rows, of the weights' type and device."""
        return KVCache(self.config, batch, like=self.tok_embeddings.weight)

    def forward_chunk(self, x: Tensor, position: int, cache: KVCache) -> Tensor:
        """Runs embedded inputs [B, S, D] at `position`, over and into the cache.

        Returns:
            hidden states after the final norm, [B, S, D].
        """
        end = position + x.shape[1]
        cos, sin = self.rotary_cos[position:end], self.rotary_sin[position:end]
        mask = causal_mask(x.shape[1], end, x.device) if position > 0 and x.shape[1] > 1 else None
        for i, layer in enumerate(self.layers):
            queries, keys, values = layer.project(x, cos, sin)
            x = layer.attend(x, queries, *cache.extend(i, position, keys, values), mask)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> logits [..., V], float32."""
        return self.output(hidden).float()

    def embed_prefix(self, text: Tensor, condition_tokens: Tensor | None) -> Tensor:
        """Projected text [B, T, D] and a picture [B, N], or None for a dropped one -> the prefix, [B, N + T, D]."""
        picture = self.embed_picture(condition_tokens)
        return torch.cat((picture.expand(len(text), -1, -1), text), dim=1)

    @torch.no_grad()
    def score(
        self, text_states: Tensor, condition_tokens: Tensor | None, target_tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits of every step with the target tokens forced.

        Args:
            text_states: text encoder output [B, T, C].
            condition_tokens: [B, N], or None to drop the picture.
            target_tokens: [B, N].

        Returns:
            (with the text, with the null text), [B, N, V] float32 each.
        """
        target = self.tok_embeddings(target_tokens[:, :-1])  # the last token predicts nothing
        both = []
        for text in (self.project_text(text_states), self.null_text().expand(len(text_states), -1, -1)):
            x = torch.cat((self.embed_prefix(text, condition_tokens), target), dim=1)
            hidden = self.forward_chunk(x, 0, self.make_cache(len(x)))
            both.append(self.logits(hidden[:, -self.config.block_size :]))
        return both[0], both[1]

    @torch.no_grad()
    def generate(
        self,
        text_states: Tensor,
        condition_tokens: Tensor | None,
        cfg_scale: float = 3.0,
        cfg_interval: int = -1,
        greedy: bool = False,
        temperature: float = 1.0,
        top_k: int = 1000,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        count: int | None = None,
    ) -> Tensor:
        """Target tokens [B, N], int64, drawn one at a time; the first `count` of them where given.

        Args:
            text_states: text encoder output [B, T, C].
            condition_tokens: [B, N], or None to drop the picture (with the text and without).
            cfg_scale: logits are null + cfg_scale * (cond - null); at 1 and below, cond alone.
            cfg_interval: single steps after this one, counted from 0, take cond alone; -1 never does. The prefill
                always uses guidance.
            greedy: take the largest logit; temperature, top_k, top_p (see `sample`) and generator are then unused.
        """
        guided = cfg_scale > 1
        rows = len(text_states)
        prefix = self.embed_prefix(self.project_text(text_states), condition_tokens)
        if guided:  # rows [cond | null]
            null = self.embed_prefix(self.null_text().expand(rows, -1, -1), condition_tokens)
            prefix = torch.cat((prefix, null))
        cache = self.make_cache(len(prefix))
        hidden = self.forward_chunk(prefix, 0, cache)

        tokens: list[Tensor] = []
        while True:
            logits = self.logits(hidden[:, -1])
            if guided:
                cond, null = logits.chunk(2)
                single_step = len(tokens) - 1
                logits = cond if 0 <= cfg_interval < single_step else null + cfg_scale * (cond - null)
            tokens.append(logits.argmax(-1) if greedy else sample(logits, temperature, top_k, top_p, generator))
            if len(tokens) == (self.config.block_size if count is None else count):
                return torch.stack(tokens, dim=1)
            step = self.tok_embeddings(tokens[-1])[:, None]  # [B, 1, D]
            position = prefix.shape[1] + len(tokens) - 1
            hidden = self.forward_chunk(torch.cat((step, step)) if guided else step, position, cache)

    # Training.

    def forward(
        self,
        condition_tokens: Tensor,
        text_states: Tensor,
        target_tokens: Tensor,
        drop_picture: Tensor,
        drop_text: Tensor,
        hide_target: Tensor | None = None,
        return_hidden: bool = False,
        picture_is_dropped: bool | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of all target tokens, for K instructions on each of P condition pictures.

        Row r belongs to picture r // K. Where K is above 1 the pictures are run once and their keys and values handed
        out to their rows, as the picture comes first and attention is causal; a dropped picture is then one more
        picture, which is run where some row drops its own. (Dropout is therefore drawn once a picture, not once a row,
        over the picture's positions.) Where K is 1 a row is one plain causal sequence, for which attention needs no
        mask.

        Args:
            condition_tokens: [P, N].
            text_states: text encoder output [P * K, T, C].
            target_tokens: [P * K, N].
            drop_picture: bool [P * K], true where the row sees the stand-in for a picture.
            drop_text: bool [P * K], true where the row sees the null text.
            hide_target: bool [P * K, N], tokens that the positions after them see as a dropped picture's.
            return_hidden: also return the states after the final norm that the logits come from.
            picture_is_dropped: whether some row drops its picture; None looks into `drop_picture`, for which a GPU
                has to be waited for.

        Returns:
            logits [P * K, N, V] float32, and with `return_hidden` hidden [P * K, N, D].
        """
        config = self.config
        null_states = self.cls_embedding.uncond_embedding
        text = self.project_text(torch.where(drop_text[:, None, None], null_states, text_states.to(null_states.dtype)))
        target = self.embed_picture(target_tokens, hide_target)[:, :-1]  # the last token predicts nothing
        x = torch.cat((self.tok_dropout(text), self.picture_dropout(target)), dim=1)  # [P * K, T + N - 1, D]
        rows, length = x.shape[:2]
        cos, sin = (table[: config.block_size + length] for table in (self.rotary_cos, self.rotary_sin))

        # The last layer's results matter from the last text position on, which predicts the first target token.
        first = config.cls_token_num - 1
        picture, picture_of_row, mask = None, None, None
        if len(condition_tokens) == rows:
            x = torch.cat((self.picture_dropout(self.embed_picture(condition_tokens, drop_picture)), x), dim=1)
            first += config.block_size
        else:
            picture, picture_of_row = self._shared_pictures(condition_tokens, drop_picture, picture_is_dropped)
            mask = causal_mask(length, config.block_size + length, x.device)
        for layer in self.layers:
            arguments = (picture, x, picture_of_row, cos, sin, mask, first if layer is self.layers[-1] else 0)
            picture, x = checkpoint(layer, *arguments, use_reentrant=False) if self.recompute else layer(*arguments)

        hidden = self.norm(x)
        logits = self.logits(hidden)
        return (logits, hidden) if return_hidden else logits

    def _shared_pictures(
        self, tokens: Tensor, drop_picture: Tensor, picture_is_dropped: bool | None
    ) -> tuple[Tensor, Tensor]:
        """Embedded pictures [P or P + 1, N, D], the last one for rows that drop theirs; and which one a row sees."""
        pictures, rows = len(tokens), len(drop_picture)
        picture_of_row = torch.arange(rows, device=tokens.device) // (rows // pictures)
        # None is dropped here, but the stand-in has a gradient, of zeros, where no row asks for it: several processes
        # wait for one another's.
        picture = self.embed_picture(tokens, torch.zeros(pictures, dtype=torch.bool, device=tokens.device))
        if bool(drop_picture.any()) if picture_is_dropped is None else picture_is_dropped:
            picture = torch.cat((picture, self.embed_picture(None)))
            picture_of_row = torch.where(drop_picture, pictures, picture_of_row)
        return self.picture_dropout(picture), picture_of_row
