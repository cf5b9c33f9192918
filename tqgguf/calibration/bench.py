"""What work on a layer needs to know, and the layer's weights on the desk."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from tqgguf.calibration.desk import Desk
from tqgguf.calibration.device_desk import DeviceDesk
from tqgguf.calibration.kept import Kept
from tqgguf.models import Tensor
from tqgguf.models.roles import layer_prefix
from tqgguf.network.forward import Context

CONTEXT = "context"  # on the desk
_COPIED = 1 << 18  # weights that are put there at a time

AnyDesk = Desk | DeviceDesk


def on_desk(desk: AnyDesk, name: str) -> str:
    """A tensor's name on the desk: the slot of its layer, which take turns, and its own."""
    layer = layer_prefix(name)
    if not layer:
        return name
    return f"{int(layer.split('.')[1]) % desk.sizes.slots}.{name.removeprefix(layer)}"


def put_weights(desk: AnyDesk, name: str, tensor: Tensor) -> None:
    """Put a tensor's weights on the desk, some rows at a time."""
    step, n_rows = max(1, _COPIED // tensor.n_in), tensor.n_rows
    parts = (tensor.rows(at, min(at + step, n_rows)) for at in range(0, n_rows, step))
    desk.put_parts(name, tensor.shape, parts)


@dataclass(frozen=True)
class Step:
    """Some matrices of a layer that read the same, and how many tokens are in their inputs.

    number: of the layer's steps. shared: whether all tokens go into all of the matrices. aims:
    whether these make up for drift, streams: whether their product is added to the stream, and
    ends: whether that is the layer's end.
    """

    number: int
    matrices: tuple[str, ...]
    counts: tuple[int, ...]
    shared: bool
    aims: bool
    streams: bool
    ends: bool = False

    @property
    def weights(self) -> list[str]:
        """The matrices' names without "blk.N."."""
        return [f"{matrix}.weight" for matrix in self.matrices]


@dataclass(frozen=True)
class Bench:
    """What work on a layer needs to know.

    edges: of the chunks in all tokens. kept: where what the original computes is kept. holds:
    whether passes wait, with all they have computed, for the rest of their layer's matrices. layer:
    its number. tensors: their names without "blk.N.". todo: those that are to be rounded. done:
    those that are on the desk rounded. steps: of the layer, if they are known.
    """

    desk: AnyDesk
    edges: tuple[int, ...]
    kept: Kept | None
    holds: bool
    layer: int
    tensors: tuple[str, ...]
    todo: frozenset[str]
    done: frozenset[str] = frozenset()
    steps: tuple[Step, ...] = ()

    @property
    def slot(self) -> int:
        """The layer's, on the desk."""
        return self.layer % self.desk.sizes.slots

    @property
    def waits(self) -> bool:
        """Whether a pass waits inside the layer for matrices that make up for drift."""
        return any(step.aims and not step.ends for step in self.steps)


class Weights(Mapping[str, Any]):
    """A layer's tensors on the desk, each as it is by now."""

    def __init__(self, bench: Bench, *, original: bool) -> None:
        self.bench, self.original = bench, original

    def __getitem__(self, name: str) -> Any:
        """The tensor. Raises KeyError."""
        if name not in self.bench.tensors:
            raise KeyError(name)
        kind = "q" if name in self.bench.done and not self.original else "w"
        return self.bench.desk.get(f"{kind}.{self.bench.slot}.{name}")

    def __contains__(self, name: object) -> bool:
        return name in self.bench.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.bench.tensors)

    def __len__(self) -> int:
        return len(self.bench.tensors)


def context(bench: Bench) -> Context:
    """What all layers of the network share."""
    return cast("Context", bench.desk.get_object(CONTEXT))
