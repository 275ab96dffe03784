"""Decode steps on ONNX Runtime's CUDA provider as CUDA graphs: one launch per step instead of hundreds.

A step has one position of each row, or several whose tokens were drafted.

A graph replays kernels with the addresses and host values of its capture. So everything that changes from step to step
is in fixed buffers on the device, which are overwritten before each replay. `total_length`, the only value that
GroupQueryAttention reads on the host, is fixed to the cache's capacity: the operator uses it only for the sizes of its
launches, and takes the length of each row from `last_row` on the device.

To detect values frozen into the graph, it is captured at the next position, where the cache is still empty; a replay at
the real position must then match an ordinary step, whose `total_length` is the real one. If capture fails, at opening,
at the first step or in this comparison, steps continue as ordinary runs; `OnnxRuntimeBackend.name` says why.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from editar_rt import names
from editar_rt.backends.engines.device import CaptureError
from editar_rt.bundle.compare import largest_difference, relative_error

GRAPH_ID = "gpu_graph_id"  # of ONNX Runtime's run options; 0 is its own
NO_GRAPH = "-1"
ENABLE = {"enable_cuda_graph": "1"}  # of the CUDA provider's options


def run_options(ort: Any, graph: str) -> Any:
    """Options of a run that captures or replays a graph."""
    options = ort.RunOptions()
    options.add_run_config_entry(GRAPH_ID, graph)
    return options


class Graph(NamedTuple):
    """A step of contiguous rows, bound to fixed buffers."""

    binding: Any
    options: Any
    tokens: Any  # int32 [R, S], on the device
    last_row: Any  # int32 [R], on the device
    logits: Any  # float32 [R, S, V], on the device
    held: list[Any]  # other bound values, to keep them alive


class CapturedSteps:
    """The steps of one cache.

    Args:
        ort: the onnxruntime module.
        ids: unused ids of graphs.
        capacity: number of positions of a row of the cache.
        width: of hidden states.
        close: how far a replay may be from an ordinary step, as a share of the largest logit.
    """

    def __init__(
        self, ort: Any, ids: Iterator[int], session: Any, capacity: int, width: int, vocab: int, close: float
    ) -> None:
        self._ort, self._unused_ids, self._session = ort, ids, session
        self._capacity, self._width, self._vocab, self._close = capacity, width, vocab, close
        self._inputs = {tensor.name for tensor in session.get_inputs()}
        self._graphs: dict[tuple[int, int, int], Graph] = {}  # by first row, number of rows and of positions
        self._ids: list[int] = []
        weakref.finalize(self, _release, session, self._ids)

    def run(
        self,
        bind: Callable[[], Any],
        ordinary: Callable[[], NDArray[np.float32]],
        first_row: int,
        tokens: NDArray[np.int32],
        past: NDArray[np.int32],
    ) -> NDArray[np.float32]:
        """One step, [R, S] -> a new array of logits [R, S, V].

        Args:
            bind: creates a binding of the rows' cache, for their first step.
            ordinary: the same step without this class, for the comparison at the first step.
            past: numbers of cached positions, [R].

        Raises:
            CaptureError: the step cannot be captured. The contents of the cache are unchanged.
        """
        rows, positions = tokens.shape
        key = first_row, rows, positions
        try:
            if key not in self._graphs:
                self._graphs[key] = self._bind(bind(), rows, positions)
                self._launch(self._graphs[key], tokens, np.minimum(past + 1, self._capacity - positions))
                self._check(self._launch(self._graphs[key], tokens, past).copy(), ordinary())
            return self._launch(self._graphs[key], tokens, past)
        except CaptureError:
            raise
        except Exception as e:  # the binding's own classes derive directly from Exception
            raise CaptureError(str(e)) from None

    def _bind(self, binding: Any, rows: int, positions: int) -> Graph:
        make = self._ort.OrtValue.ortvalue_from_numpy

        def on_device(array: NDArray[Any]) -> Any:
            return make(array, "cuda", 0)

        tokens, last_row = on_device(np.zeros((rows, positions), np.int32)), on_device(np.zeros(rows, np.int32))
        logits = on_device(np.zeros((rows, positions, self._vocab), np.float32))
        inputs = {
            names.TOKENS: tokens,
            names.LAST_ROW: last_row,
            names.PREFIX: on_device(np.zeros((1, 1, self._width), np.float32)),
            names.LOGIT_POSITIONS: on_device(np.arange(positions, dtype=np.int32)),
            names.CHUNK_LENGTHS: on_device(np.full(rows, positions, np.int32)),
            names.TOTAL_LENGTH: make(np.asarray(self._capacity, np.int32)),  # stays on the host
        }
        for name, value in inputs.items():
            if name in self._inputs:
                binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(names.LOGITS, logits)
        self._ids.append(next(self._unused_ids))
        options = run_options(self._ort, str(self._ids[-1]))
        return Graph(binding, options, tokens, last_row, logits, list(inputs.values()))

    def _launch(self, graph: Graph, tokens: NDArray[np.int32], past: NDArray[np.int32]) -> NDArray[np.float32]:
        graph.tokens.update_inplace(np.ascontiguousarray(tokens))
        graph.last_row.update_inplace(past + np.int32(tokens.shape[1] - 1))
        self._session.run_with_iobinding(graph.binding, graph.options)
        logits: NDArray[np.float32] = graph.logits.numpy()
        return logits

    def _check(self, found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        """Compare the logits of a replay with those of an ordinary step."""
        error = relative_error(largest_difference(found, expected), float(np.abs(expected).max()))
        if not error <= self._close:
            raise CaptureError(
                f"a replay differs from an ordinary step by {error:.1e} of the largest logit, but at most "
                f"{self._close:g} is allowed"
            )


def _release(session: Any, ids: list[int]) -> None:
    """Release a cache's graphs; older versions keep them as long as the session."""
    if hasattr(session, "release_captured_graph"):
        for graph in ids:
            with suppress(Exception):  # there is no graph if capture failed
                session.release_captured_graph(graph)


def why_not(wanted: bool, inputs: Iterator[str]) -> str | None:
    """Why a decoder's steps cannot be captured, as far as is known without the provider; None if they may be.

    Args:
        wanted: whether capture is enabled.
        inputs: names of the graph's inputs.
    """
    if not wanted:
        return "CUDA graphs are disabled"
    if names.LAST_ROW not in inputs:
        return (
            "its graph computes lengths on the host, which a CUDA graph would freeze; export it with --provider cuda "
            "and the dialect ort"
        )
    return None
