"""Traces: the sampled tokens of an edit, their probabilities and times.

A file is JSON lines (a header, one line per target position, an end) or, if named `.npz`, the same data as arrays.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from base64 import b64decode, b64encode
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from editar_rt.arguments import as_path
from editar_rt.bundle.manifest import decode_json
from editar_rt.errors import OptionError, TraceError
from editar_rt.files import placing, read_regular
from editar_rt.generation.decoding import Step
from editar_rt.generation.sampling import Sampling, distribution, softmax
from editar_rt.generation.strategy import check_speculate
from editar_rt.images.pixels import open_picture
from editar_rt.images.writing import picture_bytes
from editar_rt.npz import read_arrays
from editar_rt.request import MAX_VARIANTS

FORMAT, FORMAT_VERSION = "editar-trace", 1
SUFFIXES = (".jsonl", ".npz")
MAX_BYTES = 256 << 20  # 64 variants of 512×512 pixels with their tokens take less
MAX_TOKENS = 1 << 16


@dataclass(frozen=True)
class Header:
    """How the tokens were made."""

    bundle: str  # fingerprint
    backend: str
    version: str  # of this package
    instruction: str
    task: str
    sampling: dict[str, Any]  # `Sampling.settings`
    seeds: list[int]  # one per variant, R
    condition_tokens: list[int]  # [N]
    done: int  # number of target positions that were reached; N unless cancelled
    timings: dict[str, float]  # seconds by stage
    text_states: str | None = None  # SHA-256 of the text states that the edit was given
    speculate: int | str | None = None  # `Request.speculate`
    passes: list[int] | None = None  # runs of the decoder after the prefill, one number per variant
    format: str = FORMAT
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Trace:
    """A header, arrays over the N target positions, and the resulting pictures of an edit.

    Log-probabilities and entropies (nats) are those of the distribution that was sampled, after guidance, temperature,
    top-k and top-p; with `greedy`, those of the softmax of the guided logits.
    """

    header: Header
    tokens: NDArray[np.int32]  # [R, N]
    drawn: NDArray[np.bool_]  # [N], false where known
    log_probabilities: NDArray[np.float32]  # [R, N], NaN where no token was sampled
    entropy: NDArray[np.float32]  # [R, N], likewise
    seconds: NDArray[np.float32]  # [N]; the time of a run of known tokens is at its first position
    pictures: list[Image.Image] = field(default_factory=list)  # one per variant

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `.jsonl` or `.npz` atomically.

        Raises:
            OptionError: another suffix.
            TraceError: the file cannot be written.
        """
        final = as_path("where a trace is written", path)
        check_name(final)
        with placing(final, TraceError) as partial, open(partial, "wb") as f:
            f.write(_npz_bytes(self) if final.suffix == ".npz" else _line_bytes(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read a file that `save` wrote. Pickled data is rejected.

        Raises:
            TraceError: the file does not exist or is not a trace.
        """
        path = as_path("a trace", path)
        try:
            raw = read_regular(path, MAX_BYTES)
        except OSError as e:
            raise TraceError(f"{path} cannot be read: {e.strerror or e}") from None
        except ValueError as e:  # too large, or a null character in the name
            raise TraceError(f"{path} is not a trace ({e}); make one with: editar edit --trace") from None
        try:
            trace = _from_npz(raw) if raw[:2] == b"PK" else _from_lines(raw)
            _check(trace)
        except Exception as e:  # JSON, NumPy, zipfile and Pillow raise a dozen classes on damaged input
            raise TraceError(
                f"{path} is not a trace ({str(e) or type(e).__name__:.100}); make one with: editar edit --trace"
            ) from None
        return trace


def check_name(path: Path) -> None:
    """Reject a name whose suffix is not a trace format."""
    if path.suffix not in SUFFIXES:
        raise OptionError(f"a trace must be named .jsonl or .npz, got {path.name}")


class Recorder:
    """A watcher of the loop that records a trace's arrays.

    Args:
        rows: R, the number of variants.
        count: N.
    """

    def __init__(self, rows: int, count: int, sampling: Sampling) -> None:
        self._sampling = sampling
        self.drawn = np.zeros(count, bool)
        self.log_probabilities = np.full((rows, count), np.nan, np.float32)
        self.entropy = np.full((rows, count), np.nan, np.float32)
        self.seconds = np.zeros(count, np.float32)
        self.begin()

    def begin(self) -> None:
        """Start the clock: the steps begin now."""
        self._last = time.perf_counter()

    def __call__(self, step: Step, tokens: NDArray[np.int32]) -> None:
        at = step.position
        self.seconds[at] = time.perf_counter() - self._last
        if step.logits is not None:
            self.drawn[at] = True
            for row, (logits, token) in enumerate(zip(step.logits, step.tokens[:, 0], strict=True)):
                self.log_probabilities[row, at], self.entropy[row, at] = uncertainty(logits, int(token), self._sampling)
        self._last = time.perf_counter()

    def trace(self, header: Header, tokens: NDArray[np.int32], pictures: list[Image.Image]) -> Trace:
        """The trace of an edit with these tokens [R, N] and pictures, one per variant."""
        return Trace(header, tokens, self.drawn, self.log_probabilities, self.entropy, self.seconds, pictures)


def uncertainty(logits: NDArray[np.float32], token: int, sampling: Sampling) -> tuple[float, float]:
    """(log-probability of a token, entropy), in nats, of the distribution given by guided logits [V]."""
    if sampling.greedy:
        kept, probabilities = np.arange(len(logits)), softmax(logits)
    else:
        kept, probabilities = distribution(logits, sampling)
    positive = probabilities[probabilities > 0]
    entropy = float(-(positive * np.log(positive)).sum())
    own = float(probabilities[kept == token].sum())
    return (float(np.log(own)) if own > 0 else -np.inf), max(entropy, 0.0)


def states_digest(states: NDArray[np.float32]) -> str:
    """SHA-256 of text states."""
    return hashlib.sha256(np.ascontiguousarray(states, np.float32).tobytes()).hexdigest()


# Files.


def _line_bytes(trace: Trace) -> bytes:
    lines: list[dict[str, Any]] = [asdict(trace.header)]
    for at in range(trace.header.done):
        line: dict[str, Any] = {"position": at, "drawn": bool(trace.drawn[at]), "tokens": trace.tokens[:, at].tolist()}
        if trace.drawn[at]:
            line["log_probability"] = trace.log_probabilities[:, at].tolist()
            line["entropy"] = trace.entropy[:, at].tolist()
        lines.append(line | {"seconds": float(trace.seconds[at])})
    rest = trace.tokens[:, trace.header.done :].tolist()
    lines.append({"rest": rest, "pictures": [b64encode(picture_bytes(picture)).decode() for picture in trace.pictures]})
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _from_lines(raw: bytes) -> Trace:
    first, *middle, last = [json.loads(line) for line in raw.decode().splitlines()]
    header = _header(first)
    rows, count = len(header.seeds), len(header.condition_tokens)
    if [line["position"] for line in middle] != list(range(header.done)):
        raise ValueError("its positions are not complete")
    recorded = Recorder(rows, count, Sampling())
    tokens = np.empty((rows, count), np.int32)
    tokens[:, header.done :] = np.asarray(last["rest"], np.int32).reshape(rows, count - header.done)
    for at, line in enumerate(middle):
        tokens[:, at] = np.asarray(line["tokens"], np.int32).reshape(rows)
        recorded.seconds[at] = line["seconds"]
        if line["drawn"]:
            recorded.drawn[at] = True
            recorded.log_probabilities[:, at] = np.asarray(line["log_probability"], np.float32).reshape(rows)
            recorded.entropy[:, at] = np.asarray(line["entropy"], np.float32).reshape(rows)
    pictures = [open_picture(Image.open(io.BytesIO(b64decode(each)), formats=["PNG"])) for each in last["pictures"]]
    return recorded.trace(header, tokens, pictures)


ARRAYS: dict[str, type] = {
    "tokens": np.int32,
    "drawn": np.bool_,
    "log_probabilities": np.float32,
    "entropy": np.float32,
    "seconds": np.float32,
}


def _npz_bytes(trace: Trace) -> bytes:
    buffer = io.BytesIO()
    arrays = {name: getattr(trace, name) for name in ARRAYS}
    arrays |= {f"picture_{n}": np.asarray(picture) for n, picture in enumerate(trace.pictures)}
    np.savez_compressed(buffer, header=np.asarray(json.dumps(asdict(trace.header))), **arrays)
    return buffer.getvalue()


def _from_npz(raw: bytes) -> Trace:
    file = read_arrays(raw, MAX_BYTES)
    header = _header(json.loads(str(file["header"])))
    pictures = [open_picture(file[f"picture_{n}"]) for n in range(len(header.seeds)) if f"picture_{n}" in file]
    return Trace(header=header, pictures=pictures, **{name: file[name] for name in ARRAYS})


def _header(raw: Any) -> Header:
    if not isinstance(raw, dict) or raw.get("format") != FORMAT or raw.get("format_version") != FORMAT_VERSION:
        raise ValueError(f'it does not say "format": "{FORMAT}", "format_version": {FORMAT_VERSION}')
    if unknown := sorted(raw.keys() - {each.name for each in fields(Header)}):
        raise ValueError(f"its header has unknown fields: {', '.join(unknown)}")
    header: Header = decode_json(Header, raw, "header")
    if not 1 <= len(header.seeds) <= MAX_VARIANTS or not 1 <= len(header.condition_tokens) <= MAX_TOKENS:
        raise ValueError(f"it must have 1 to {MAX_VARIANTS} seeds and 1 to {MAX_TOKENS} tokens per picture")
    return header


def _check(trace: Trace) -> None:
    """Reject a trace whose fields contradict each other."""
    header = trace.header
    Sampling(**header.sampling)
    check_speculate(header.speculate)
    shape = (len(header.seeds), len(header.condition_tokens))
    shapes = (shape, shape[1:], shape, shape, shape[1:])
    for (name, kind), wanted in zip(ARRAYS.items(), shapes, strict=True):
        array = getattr(trace, name)
        if array.shape != wanted or array.dtype != kind:
            raise ValueError(f"{name} must be {np.dtype(kind)} {list(wanted)}, got {array.dtype} {list(array.shape)}")
    if not 0 <= header.done <= shape[1] or (trace.tokens < 0).any():
        raise ValueError("its tokens are not complete")
    for seed in header.seeds:
        Sampling(seed=seed)
