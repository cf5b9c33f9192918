"""The arrays of a calibration on a device: one process, so that they need no files."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tqgguf.calibration.desk import Sizes
from tqgguf.kernels.arrays import namespace
from tqgguf.machine.devices import Device

# From the first to the last that are tried where memory does not do.
SMALLER = tuple(
    Sizes(
        tokens, 4096, narrowest=4096, sums=1, rows=rows, pieces=1, fewest=rows, holds=holds, slots=2
    )
    for tokens, rows, holds in ((8192, 32768, True), (2048, 8192, False), (512, 2048, False))
)


class DeviceDesk:
    """What `Desk` is, in a device's memory.

    Bytes for files stay in this process's memory, and so does what was put there from elsewhere
    until it is first read.
    """

    folder = None

    def __init__(self, device: Device, sizes: Sizes) -> None:
        self.device, self.sizes = device, sizes
        self._arrays: dict[str, Any] = {}
        self._objects: dict[str, Any] = {}

    def make(self, name: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Any:
        """An array that is to be written, whatever is in it now."""
        found = self._arrays.get(name)
        if found is None or tuple(found.shape) != tuple(shape):
            self._arrays.pop(name, None)
            found = self._arrays[name] = self._empty(shape, np.dtype(dtype))
        return found

    def _empty(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> Any:
        if dtype == np.uint8:
            return np.empty(shape, np.uint8)
        sample = self.device.put(np.empty(1, dtype))
        xp = namespace(sample)
        return xp.empty(shape, dtype=sample.dtype, device=sample.device)

    def put(self, name: str, array: Any) -> None:
        """Put an array on the desk."""
        self._arrays[name] = array

    def put_rows(self, name: str, rows: Any, begin: int, n_rows: int) -> None:
        """Put rows `begin` and after of an array of n_rows, of which others put the rest."""
        whole = self.make(name, (n_rows, *rows.shape[1:]))
        whole[begin : begin + rows.shape[0], ...] = rows

    def put_parts(self, name: str, shape: tuple[int, ...], parts: Iterable[NDArray[Any]]) -> None:
        """Put an array that comes in runs of rows."""
        whole = self.device.room(shape)
        rows, at = whole.reshape(-1, shape[-1]), 0
        for part in parts:
            rows[at : at + len(part)] = part
            at += len(part)
        self._arrays[name] = whole

    def get(self, name: str) -> Any:
        """An array, to be read."""
        found = self._arrays[name]
        if isinstance(found, np.ndarray) and found.dtype != np.uint8:
            found = self._arrays[name] = self.device.put(found)
        return found

    change = get

    def drop(self, name: str) -> None:
        """Let go of an array that is not read again."""
        self._arrays.pop(name, None)

    def put_object(self, name: str, value: object) -> None:
        """Something that is no array."""
        self._objects[name] = value

    def get_object(self, name: str) -> Any:
        """What was put there."""
        return self._objects[name]
