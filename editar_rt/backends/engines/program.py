"""An engine with its buffers on host and device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editar_rt import names
from editar_rt.backends.engines.device import Engines, aligned
from editar_rt.backends.engines.plan import Shape, memory_type
from editar_rt.backends.sampler import SamplerInputs
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.manifest import TensorInfo

LAST = (names.PREFIX, names.NOISE)


class Program:
    """An engine with buffers at fixed addresses for all its tensors except the cache.

    On each side, the inputs form one block and are copied together. The decoder's prefix and the sampler's noise are
    last: most runs omit them.

    Args:
        lent: addresses of inputs that are another program's outputs.
    """

    def __init__(self, bundle: Bundle, engines: Engines, shape: Shape, lent: Mapping[str, int]) -> None:
        part, self.memory, self.shape = bundle.manifest.parts[shape.part], engines.memory, shape
        self.passes = 0
        """Number of times that inputs were set for a step."""
        self.noisy = False
        """Whether a sampler's noise is set, so that it must be copied too."""
        self.engine = engines.open(shape)
        own = [t for t in part.inputs if t.name not in lent and not t.name.startswith(names.PAST_BEGINNINGS)]
        own.sort(key=lambda tensor: tensor.name in LAST)
        outputs = [t for t in part.outputs if not t.name.startswith(names.PRESENT_BEGINNINGS)]
        self._in, self._out = Block(shape, own), Block(shape, outputs)
        self._in_address, out_address = (self.memory.allocate(block.size) for block in (self._in, self._out))
        self.addresses = {**self._in.addresses(self._in_address), **self._out.addresses(out_address), **lent}
        self.engine.bind(self.addresses)
        self._sent = self.memory.host_array(self._in.size)
        self.inputs = self._in.views(self._sent)
        returned = Block(shape, [tensor for tensor in outputs if tensor.name != names.NEW_ROWS])
        self.outputs = returned.views(self.memory.host_array(returned.size))
        if names.LOGIT_POSITIONS in self.inputs:
            self.inputs[names.LOGIT_POSITIONS][:] = np.arange(shape.positions)
        self.upload()
        self.memory.synchronize()

    def set_inputs(self, inputs: SamplerInputs) -> None:
        """Set a sampler's inputs, for all of its rows."""
        self.noisy = inputs.noise is not None
        for name, array in inputs.arrays().items():
            self.inputs[name][:] = array

    def upload(self, last: bool = True) -> None:
        """Queue the inputs' copy to the device.

        Args:
            last: include the decoder's prefix or the sampler's noise; otherwise its value on the device stays.
        """
        end = self._in.size if last else min((self._in.offsets[n] for n in LAST if n in self._in.offsets), default=None)
        self.memory.to_device(self._in_address, self._sent[:end])

    def download(self) -> None:
        """Queue the copy of the outputs to the host, except the new keys and values."""
        for name, array in self.outputs.items():
            self.memory.to_host(array, self.addresses[name])


class Block:
    """The layout of tensors in one block of bytes, each at an aligned offset."""

    def __init__(self, shape: Shape, tensors: Sequence[TensorInfo]) -> None:
        self.tensors = {tensor.name: (shape.of(tensor), memory_type(tensor.dtype)) for tensor in tensors}
        self.offsets: dict[str, int] = {}
        self.size = 0
        for name, (dimensions, dtype) in self.tensors.items():
            self.offsets[name] = self.size
            self.size += aligned(math.prod(dimensions) * dtype.itemsize)

    def addresses(self, start: int) -> dict[str, int]:
        return {name: start + offset for name, offset in self.offsets.items()}

    def views(self, block: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """The tensors in a block on the host."""
        return {
            name: block[offset:][: math.prod(dimensions) * dtype.itemsize].view(dtype).reshape(dimensions)
            for (name, (dimensions, dtype)), offset in zip(self.tensors.items(), self.offsets.values())
        }
