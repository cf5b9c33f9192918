"""Cut a tensor into tiles that a rotation and a block type can work on one by one."""

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Tile:
    """A range of rows and a range of columns."""

    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def weights(self) -> int:
        """Weights in the tile."""
        return (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0])


def tiles(shape: tuple[int, ...], *, granule: tuple[int, int], weights: int) -> list[Tile]:
    """Cut a tensor of this shape into tiles of about `weights` weights, at least one granule each.

    granule: how many rows and columns must stay together. Whole rows are taken where a granule of
    them fits, otherwise strips of columns.
    """
    n_rows, n_in = prod(shape[:-1]), shape[-1]
    rows, columns = granule
    if rows * n_in <= weights or rows == 1:
        rows *= max(1, weights // (rows * n_in))
        columns = n_in
    else:
        columns *= max(1, weights // (rows * columns))
    return [
        Tile((r, min(r + rows, n_rows)), (c, min(c + columns, n_in)))
        for r in range(0, n_rows, rows)
        for c in range(0, n_in, columns)
    ]
