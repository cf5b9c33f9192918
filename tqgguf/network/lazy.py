"""A layer's weights that are read, in float64, when they are used, and not kept."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from tqgguf.models.model import Model, Tensor
from tqgguf.network.ops import Array
from tqgguf.output.tiles import Tile, tiles
from tqgguf.rotation.rotation import Rotation

TILE = 1 << 19  # weights that a thread reads and rotates at a time


@dataclass(frozen=True)
class LazyWeights(Mapping[str, Array]):
    """The tensors of layer `index`, by their name without "blk.N.".

    rotation: what the model's tensors are turned by as they are read, which says what must be read
    together. readers: threads that do it side by side.
    """

    model: Model
    index: int
    rotation: Rotation
    readers: Executor

    def __getitem__(self, name: str) -> Array:
        tensor = self.model.tensors[self._prefix + name]
        out = np.empty((tensor.n_rows, tensor.n_in))

        def put(tile: Tile) -> None:
            out[slice(*tile.rows), slice(*tile.columns)] = _read(tensor, tile)

        for _ in self.readers.map(put, self._tiles(tensor)):
            pass
        return out.reshape(tensor.shape)

    def times(self, x: Array, name: str) -> Array:
        """A matrix applied to x, (..., n_in) -> (..., n_out), never whole in memory."""
        tensor = self.model.tensors[self._prefix + name]
        rows = x.reshape(-1, tensor.n_in)
        out = np.zeros((len(rows), tensor.n_rows))

        def product(tile: Tile) -> Array:
            return rows[:, slice(*tile.columns)] @ _read(tensor, tile).T

        cut = self._tiles(tensor)
        for tile, part in zip(cut, self.readers.map(product, cut), strict=True):
            out[:, slice(*tile.rows)] += part
        return out.reshape(*x.shape[:-1], tensor.n_rows)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._prefix + name in self.model.tensors

    def __iter__(self) -> Iterator[str]:
        names = (n for n in self.model.tensors if n.startswith(self._prefix))
        return (n.removeprefix(self._prefix) for n in names)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def _prefix(self) -> str:
        return f"blk.{self.index}."

    def _tiles(self, tensor: Tensor) -> list[Tile]:
        return tiles(tensor.shape, granule=self.rotation.granule(tensor.name), weights=TILE)


def _read(tensor: Tensor, tile: Tile) -> Array:
    return tensor.read_tile(tile.rows, tile.columns).astype(np.float64)
