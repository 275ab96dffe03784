"""Bundles that several tests share, each built once by the exporter from seeded weights."""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Models of these sizes gain nothing from a second thread, and threads that wait for work spin. Set before NumPy and
# PyTorch read it; the processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

from editar_rt.telemetry import refuse_telemetry
from tests.commands import Command, in_process
from tests.golden.seeded_checkpoint import gpt_state, vq_state

refuse_telemetry()  # before a test module imports onnxruntime itself

import onnxruntime  # noqa: E402

from editar_rt.backends import kept_folder  # noqa: E402
from editar_rt.backends.ort import backend, threads  # noqa: E402

if TYPE_CHECKING:
    from editar_rt.editor import Editor
    from export.model_info import Sources

GOLDEN = Path(__file__).parent / "golden"
GPT_TINY_HEADS = 4  # in the golden configuration, not in the weights
WORDS = "make the ball red blue green remove add a small large cube on left right of background wooden striped shiny"


class OneThread(onnxruntime.SessionOptions):  # type: ignore[misc]
    """ONNX Runtime's options for one thread where nobody asks for more: it reads no environment variable."""

    def __init__(self) -> None:
        super().__init__()
        self.intra_op_num_threads = 1


def set_one_thread(options: Any, version: str, count: int | None) -> None:
    """`set_threads`, with one thread where nobody asks for more."""
    threads.set_threads(options, version, count or 1)


onnxruntime.SessionOptions = OneThread
backend.set_threads = set_one_thread


@pytest.fixture(scope="session", autouse=True)
def own_caches() -> Iterator[None]:
    """Weights and kernels are kept in a folder of this run, and never in the user's.

    Whoever does not follow the variable, in this process or in another, finds a folder in place of the user's for
    caches, which must stay without one of editar_rt. What other programs have there is linked.
    """
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME", "/")) / ".cache")
    with tempfile.TemporaryDirectory(prefix="editar_rt-", ignore_cleanup_errors=True) as own:
        caches = Path(own) / "caches"
        caches.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(kept_folder.VARIABLE, str(Path(own) / "kept"))
            if os.name == "posix":
                for each in user.iterdir() if user.is_dir() else ():
                    if each.name != kept_folder.NAME:
                        (caches / each.name).symlink_to(each)
                patch.setenv("XDG_CACHE_HOME", str(caches))
            yield
        leaked = sorted(path.name for path in caches.glob(f"{kept_folder.NAME}/*"))
        assert not leaked, f"without {kept_folder.VARIABLE}, a test kept {leaked} in the user's folder for caches"


@pytest.fixture(scope="module", autouse=True)
def settled_heap() -> None:
    """Collections look at what a module's tests have made, and not each time at the libraries, whose objects are
    hundreds of thousands and stay: the exporter collects before every graph that it writes."""
    gc.collect()
    gc.freeze()


def golden_arrays(name: str) -> dict[str, np.ndarray]:
    """What the reference implementation answered: `gpt_tiny` or `vq16` (see tests/golden/README.md)."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def golden_weights(name: str) -> dict[str, Any]:
    """The weights it was asked with, as PyTorch tensors by their official names."""
    import torch

    spec = json.loads((GOLDEN / f"{name}.json").read_text())
    state = vq_state(spec["shapes"]) if name == "vq16" else gpt_state(f"{name}/", spec["config"])
    return {key: torch.from_numpy(value) for key, value in state.items()}


def write_text_encoder(folder: Path, states_dim: int) -> Path:
    """A random T5 encoder of two layers with a tokenizer of whole words and letters, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    from training.models.text_encoder import build_text_encoder

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator([WORDS], trainers.BpeTrainer(special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    torch.manual_seed(0)
    sizes = {"d_model": states_dim, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    model: Any = build_text_encoder(sizes, vocab_size=tokenizer.get_vocab_size())
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`python -m export` in this process."""
    from export.__main__ import main

    return in_process(main, monkeypatch, capsys)


@pytest.fixture(scope="session")
def tiny_sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """The golden transformer, and a random VQ tokenizer (32×32 pixels) and text encoder that fit it.

    4×4 picture tokens of 256, 120 text positions of width 64, 3 layers of width 128.
    """
    import torch

    from export.checkpoint_reader import read_transformer, read_vq
    from export.model_info import Sources
    from export.text_reader import read_text_encoder
    from tests.traces import share_traces
    from training.config import VQConfig
    from training.models.vq import VQModel

    share_traces()
    folder = tmp_path_factory.mktemp("tiny_sources")
    torch.save({"model": golden_weights("gpt_tiny")}, folder / "transformer.pt")
    torch.manual_seed(0)
    config = VQConfig(
        channels=16, channel_multipliers=(1, 1, 2, 2), res_blocks=1, z_channels=32, codebook_size=256, norm_groups=8
    )
    torch.save({"model": VQModel(config).state_dict(), "config": config.to_dict()}, folder / "vq.pt")
    return Sources(
        transformer=read_transformer(folder / "transformer.pt", heads=GPT_TINY_HEADS),
        vq=read_vq(folder / "vq.pt"),
        text_encoder=read_text_encoder(write_text_encoder(folder / "text_encoder", states_dim=64)),
    )


@pytest.fixture(scope="session")
def tiny_bundle(tiny_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete bundle of `tiny_sources`, float32. Do not write into it: copy it first."""
    from export.bundle_writer import Options, write_bundle

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    write_bundle(folder, tiny_sources, Options())
    return folder


@pytest.fixture(scope="session")
def golden_gpt_bundle(tiny_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden transformer alone, float32."""
    return transformer_bundle(tiny_sources, tmp_path_factory)


@pytest.fixture(scope="session")
def golden_gpt_bundle_fp16(tiny_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden transformer alone, float16."""
    return transformer_bundle(tiny_sources, tmp_path_factory, precision="fp16")


@pytest.fixture(scope="session")
def golden_gpt_bundle_cuda(tiny_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden transformer alone, float16, for CUDA."""
    return transformer_bundle(tiny_sources, tmp_path_factory, precision="fp16", provider="cuda")


@pytest.fixture(scope="session")
def golden_gpt_bundle_bf16(tiny_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden transformer alone, bfloat16, for CUDA."""
    return transformer_bundle(tiny_sources, tmp_path_factory, precision="bf16", provider="cuda")


@pytest.fixture(scope="session", params=["int8", "int8 and an int8 cache", "int4"])
def golden_gpt_bundle_quantized(
    request: pytest.FixtureRequest, tiny_sources: Sources, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The golden transformer alone, with quantized weights."""
    precision, _, cache = request.param.partition(" and ")
    return transformer_bundle(tiny_sources, tmp_path_factory, precision=precision, kv_cache="int8" if cache else "same")


@pytest.fixture(scope="session")
def golden_gpt_bundle_standard(tiny_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden transformer alone, float32, in operators of ONNX itself."""
    return transformer_bundle(tiny_sources, tmp_path_factory, dialect="standard")


@pytest.fixture(scope="session")
def golden_gpt_bundle_standard_fp16(tiny_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden transformer alone, float16, in operators of ONNX itself."""
    return transformer_bundle(tiny_sources, tmp_path_factory, dialect="standard", precision="fp16")


@pytest.fixture(scope="session")
def golden_gpt_bundle_delta(tiny_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden transformer alone, float32, as TensorRT runs it."""
    return transformer_bundle(tiny_sources, tmp_path_factory, dialect="delta")


@pytest.fixture(scope="session")
def golden_gpt_bundle_delta_fp16(tiny_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden transformer alone, float16, as TensorRT runs it."""
    return transformer_bundle(tiny_sources, tmp_path_factory, dialect="delta", precision="fp16")


@pytest.fixture(scope="session")
def golden_gpt_bundle_delta_head(tiny_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden transformer alone, float32, as TensorRT runs it, with a sampling head."""
    return transformer_bundle(tiny_sources, tmp_path_factory, dialect="delta", sampling_head=True)


@pytest.fixture(scope="session")
def golden_gpt_bundle_delta_int4(tiny_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden transformer alone, with the INT4 weights of TensorRT 10."""
    return transformer_bundle(tiny_sources, tmp_path_factory, dialect="delta", precision="int4")


@pytest.fixture(scope="session")
def golden_gpt_bundle_native(tiny_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden transformer alone, float32, as newer TensorRT runs it, with a sampling head."""
    return transformer_bundle(tiny_sources, tmp_path_factory, dialect="native", sampling_head=True)


@pytest.fixture(scope="session")
def golden_gpt_bundle_native_fp16(tiny_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden transformer alone, float16, as newer TensorRT runs it."""
    return transformer_bundle(tiny_sources, tmp_path_factory, dialect="native", precision="fp16")


def transformer_bundle(sources: Sources, folders: pytest.TempPathFactory, **storage: Any) -> Path:
    """The transformer of `sources` alone; `storage` as in `export.precision.Storage`."""
    from export.bundle_writer import Options, Sources, write_bundle
    from export.precision import Storage

    folder = folders.mktemp("golden_gpt") / "bundle"
    write_bundle(folder, Sources(transformer=sources.transformer), Options(storage=Storage(**storage)))
    return folder


@pytest.fixture(scope="session")
def golden_vq_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden VQ-16 alone, for pictures of 64×64 pixels."""
    import torch

    from export.bundle_writer import Options, Sources, write_bundle
    from export.checkpoint_reader import read_vq

    folder = tmp_path_factory.mktemp("golden_vq")
    torch.save({"model": golden_weights("vq16")}, folder / "vq16.pt")
    write_bundle(folder / "bundle", Sources(vq=read_vq(folder / "vq16.pt")), Options(image_size=64))
    (folder / "vq16.pt").unlink()  # 290 MB
    return folder / "bundle"


@pytest.fixture(scope="session")
def demo_editor() -> Editor:
    """The bundle that git keeps, on one thread; `tests.runtime.demo` has its sizes."""
    import editar_rt
    from tests.runtime.demo import BUNDLE

    return editar_rt.load(BUNDLE, device="cpu", threads=1)
