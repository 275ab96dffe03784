"""ONNX Runtime on the CPU or a CUDA device: one session per part. `decoder` runs the decoder's."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editar_rt import machine, names
from editar_rt.backends.base import Arrays
from editar_rt.backends.engines.cuda import memory_in_use
from editar_rt.backends.failures import running
from editar_rt.backends.ort.captured_steps import ENABLE, why_not
from editar_rt.backends.ort.cuda_provider import CudaProvider, open_session
from editar_rt.backends.ort.decoder import OnnxRuntimeDecoder
from editar_rt.backends.ort.library import import_onnxruntime
from editar_rt.backends.ort.pages import drop_file_pages, trim_heap
from editar_rt.backends.ort.plugin import RtxProvider
from editar_rt.backends.ort.prepacked import forget, prepacked, weights_of
from editar_rt.backends.ort.rows import bytes_counted_twice
from editar_rt.backends.ort.threads import set_threads
from editar_rt.backends.process import Process
from editar_rt.backends.sampler import SamplerInputs
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.words import INT8
from editar_rt.errors import BackendError, MissingPartError

# Matmuls with dequantized weights (INT4 for TensorRT) run in float32, without rounded activations.
WEIGHT_ONLY = ("session.qdq_matmulnbits_accuracy_level", "1")
ONCE_AN_EDIT = {names.PREFIX_GRAPH}  # parts whose weights need not stay in memory
READS_INT8 = (1, 27)  # first version whose attention reads an int8 cache; earlier ones fail in the first run
CHUNK_LENGTHS = (1, 32)  # first version whose attention knows the lengths of several rows' chunks


def takes_chunk_lengths(version: str) -> bool:
    """Whether a version of ONNX Runtime runs the part `DECODER_CHUNKS`."""
    return _numbers(version) >= CHUNK_LENGTHS


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


class OnnxRuntimeBackend:
    """See the module's docstring and `base.Backend`.

    Args:
        cache: store weights prepacked for this machine's CPU on disk (see `prepacked`).
        profile: folder for ONNX Runtime's profile of the decoder.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str = "auto",
        threads: int | None = None,
        cache: bool = True,
        profile: Path | None = None,
    ) -> None:
        self.ort = import_onnxruntime()
        self.cuda: CudaProvider | None = None
        """None on the CPU."""
        self._why_cpu = ""  # why CUDA is not used, if it should be
        if device == "cuda" or (device == "auto" and "cuda" in bundle.manifest.providers):
            try:
                self.cuda = CudaProvider.find(self.ort)
            except BackendError as e:
                if device == "cuda":
                    raise
                self._why_cpu = str(e)
        if device == "cuda" and self.cuda is None:
            raise BackendError(
                "this ONNX Runtime has no CUDA provider; run in a clone of the project: "
                'pip uninstall onnxruntime && pip install ".[gpu]", or choose --device cpu'
            )
        self._device = "cpu" if self.cuda is None else "cuda"
        self._bundle = bundle
        self._threads = threads
        self._cache, self._profile = cache, profile
        self.plugin: RtxProvider | None = None
        """The plug-in provider that opens sessions in place of the CPU's; set without `cache`."""
        self.prepack = True
        """Whether new sessions prepack weights: faster matmuls, but twice the memory while they open."""
        self.capture = profile is None
        """Whether new sessions may run decode steps on CUDA as CUDA graphs; not while operators are profiled."""
        self.uncaptured: str | None = None
        """Why steps on CUDA are ordinary runs; None if they are captured, or if no decoder is open."""
        self.graph_ids = itertools.count(1)
        self._closed = False
        self._process = Process()
        self._sessions: dict[str, Any] = {}
        self._graphs: dict[str, Path] = {}  # the graph of each session
        self._weights: dict[str, list[Path]] = {}  # and the files with its weights

    @property
    def name(self) -> str:
        if self.plugin is not None:
            return self.plugin.name
        note = f"; {self._why_cpu}" if self._why_cpu else ""
        if self.device == "cuda" and names.DECODER in self._sessions:
            note = f"; steps are not captured: {self.uncaptured}" if self.uncaptured else "; steps are captured"
        return f"ONNX Runtime {self.ort.__version__} ({self.device.upper()}){note}"

    @property
    def device(self) -> str:
        return self._device

    def read_bandwidth(self) -> float | None:
        return machine.read_bandwidth(self._threads) if self.cuda is None else self.cuda.read_bandwidth()

    def memory_in_use(self) -> int | None:
        return None if self.cuda is None else memory_in_use()

    def shared_bytes(self) -> int:
        return bytes_counted_twice()

    @property
    def needs_trial(self) -> bool:
        return False

    @property
    def samplers(self) -> tuple[tuple[int, int], ...]:
        return ()

    def sample(self, logits: NDArray[np.float32], inputs: SamplerInputs) -> NDArray[np.int32]:
        raise MissingPartError(f"{self.name} draws tokens on the host")

    def end_profile(self) -> Path:
        return Path(self.session(names.DECODER).end_profiling())

    @property
    def decoder_part(self) -> str:
        """The decoder's graph to open: the one that also runs chunks of several rows, where there is one."""
        has_chunks = names.DECODER_CHUNKS in self._bundle.manifest.parts
        return names.DECODER_CHUNKS if has_chunks and takes_chunk_lengths(self.ort.__version__) else names.DECODER

    def session(self, part: str) -> Any:
        """The session of a part, created on first use, and again in a forked process."""
        if self._process.is_left:
            self._enter_fork()
        if self._closed:
            raise BackendError("the editor is closed; load the bundle again")
        if part not in self._sessions:
            if part not in self._bundle.manifest.parts:
                held = ", ".join(self._bundle.manifest.parts) or "nothing"
                raise MissingPartError(f"the bundle {self._bundle.folder} has no part {part}; its parts are {held}")
            if part == names.DECODER and self.device not in self._bundle.manifest.providers:
                manifest = self._bundle.manifest
                raise BackendError(
                    f"ONNX Runtime does not run {self._bundle.folder} on {self.device}: its decoder (precision "
                    f"{manifest.precision}, dialect {manifest.dialect}) is for {', '.join(manifest.providers)}; "
                    f"export it again with --provider {self.device}" + (f" ({self._why_cpu})" if self._why_cpu else "")
                )
            if part == names.DECODER and self._bundle.manifest.kv_cache == INT8:
                self._check_version()
            options = self.ort.SessionOptions()
            if self._profile is not None and part == names.DECODER:
                options.enable_profiling, options.profile_file_prefix = True, str(self._profile / part)
            if part in ONCE_AN_EDIT:
                options.enable_cpu_mem_arena = False  # the arena would keep the memory of a run
            described = self.decoder_part if part == names.DECODER else part
            kept = self._cache and self.device == "cpu" and prepacked(self._bundle, described, self.ort, self._open)
            self._graphs[part] = kept or self._bundle.part_path(described)
            try:
                self._sessions[part] = self._open_part(part, options)
            except BackendError:
                if not kept:
                    raise
                forget(kept)
                kept = None
                self._graphs[part] = self._bundle.part_path(described)
                self._sessions[part] = self._open_part(part, options)
            self._weights[part] = [weights_of(kept)] if kept else self._bundle.weight_paths(described)
            drop_file_pages(self._weights[part])  # opening reads more than running needs
            trim_heap()
        return self._sessions[part]

    def _enter_fork(self) -> None:
        """Drop the parent's sessions, whose threads do not exist in the fork.

        Raises:
            BackendError: the device is a GPU, which a fork cannot use.
        """
        if self.cuda is not None:
            self._process.check("the GPU", "start workers with multiprocessing's spawn, or load the bundle in each")
        self._sessions, self._process = {}, Process()

    def _check_version(self) -> None:
        version: str = self.ort.__version__
        if _numbers(version) < READS_INT8:
            raise BackendError(
                f"the cache of {self._bundle.folder} is int8, which needs ONNX Runtime "
                f"{'.'.join(map(str, READS_INT8))} or newer, but this is {version}; run pip install -U onnxruntime "
                "(with Python 3.11 or newer), or export the bundle again with --kv-cache same"
            )

    def _open_part(self, part: str, options: Any) -> Any:
        if part == names.DECODER and self.cuda is not None:
            self.cuda.check(self._bundle)
            inputs = (tensor.name for tensor in self._bundle.manifest.parts[self.decoder_part].inputs)
            self.uncaptured = self.uncaptured or why_not(self.capture, inputs)
            if self.uncaptured is None:
                try:
                    return self._open(self._graphs[part], options, ENABLE)
                except BackendError as e:
                    self.uncaptured = str(e)
        return self._open(self._graphs[part], options)

    def give_up_capture(self, reason: str) -> Any:
        """Open the decoder again for ordinary runs: a stream whose capture failed cannot be used any more."""
        self.uncaptured = reason
        self._sessions.pop(names.DECODER, None)
        return self.session(names.DECODER)

    def _open(self, path: Path, options: Any, cuda: dict[str, str] | None = None) -> Any:
        """Open a session of a graph on the device.

        Args:
            cuda: options of the CUDA provider, if that is the device.
        """
        options.log_severity_level = 3
        options.add_session_config_entry(*WEIGHT_ONLY)
        if not self.prepack:
            options.add_session_config_entry("session.disable_prepacking", "1")
        set_threads(options, self.ort.__version__, self._threads)
        try:
            if self.plugin is not None:
                return self.plugin.open(str(path), options)
            return open_session(self.ort, str(path), options, None if self.device == "cpu" else cuda or {})
        except BackendError:
            raise
        except Exception as e:  # the binding's own classes derive directly from Exception
            raise BackendError(f"ONNX Runtime {self.ort.__version__} cannot load {path}: {e}") from None

    def run(self, part: str, inputs: Arrays) -> dict[str, NDArray[Any]]:
        session = self.session(part)
        wanted = [o.name for o in session.get_outputs()]
        with running(part):
            outputs = dict(zip(wanted, session.run(wanted, dict(inputs)), strict=True))
        if part in ONCE_AN_EDIT:
            drop_file_pages(self._weights[part])
        return outputs

    def make_decoder(self, rows: int, capacity: int) -> OnnxRuntimeDecoder:
        return OnnxRuntimeDecoder(self, self._bundle, rows, capacity)

    def close(self) -> None:
        self._closed = True
        self._sessions.clear()
