"""Some tokens on their way through one layer, a step at a time."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from tqgguf.calibration.kept import Arrays, Kept
from tqgguf.network.forward import Layer, Projection


class Pass(Protocol):
    """Tokens on their way through a layer; result is what came out at the end."""

    result: Any

    def advance(self) -> Projection | None:
        """Go on to the next step; None at the end of the layer."""

    def skip(self, steps: int) -> None:
        """Leave steps behind without looking at them."""


class Computed:
    """A pass through a layer of the forward pass."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self.result: Any = None

    def advance(self) -> Projection | None:
        """Compute as far as the next step."""
        try:
            return next(self._layer)
        except StopIteration as end:
            self.result = end.value
            return None

    def skip(self, steps: int) -> None:
        """Compute the steps without looking at them."""
        for _ in range(steps):
            self.advance()


class Noted:
    """A pass that keeps every step, and computes only what was not kept before."""

    def __init__(self, kept: Kept, name: str, compute: Callable[[], Computed]) -> None:
        """Make a pass; name: of its entries among what is kept."""
        self._kept, self._name, self._compute = kept, name, compute
        self._at = 0
        self._computed: Computed | None = None
        self.result: Any = None

    def advance(self) -> Projection | None:
        """Read the next step, or compute and keep it."""
        name = f"{self._name}.{self._at}"
        found = None if self._computed else self._kept.read(name)
        matrices, stream, *inputs = self._note(name) if found is None else found
        self._at += 1
        if not matrices.size:
            (self.result,) = inputs
            return None
        return Projection(tuple(matrices.tolist()), tuple(inputs), stream if stream.size else None)

    def skip(self, steps: int) -> None:
        """Begin later; whatever has to be computed will catch up."""
        self._at += steps

    def _note(self, name: str) -> Arrays:
        """Compute the step that comes next."""
        if self._computed is None:
            self._computed = self._compute()
            self._computed.skip(self._at)
        step = self._computed.advance()
        nothing = np.empty(0, np.float32)
        if step is None:
            arrays: Arrays = [np.empty(0, str), nothing, self._computed.result]
        else:
            stream = nothing if step.stream is None else step.stream
            arrays = [np.array(step.matrices), stream, *step.inputs]
        self._kept.write(name, arrays)
        return arrays
