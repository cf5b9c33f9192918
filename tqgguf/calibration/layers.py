"""The layers that are in work: their weights on the desk, and how far everybody is."""

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from tqgguf.calibration.bench import AnyDesk, Bench, Step, on_desk, put_weights
from tqgguf.calibration.kept import Kept
from tqgguf.kernels.dtypes import U8
from tqgguf.machine.board import Until
from tqgguf.models import Model
from tqgguf.models.roles import layer_prefix


class Layers:
    """What is to be done to each layer, and who has done what.

    rows: edges of the chunks in all tokens. window: how many layers may be in work at once.
    passed: through how many layers the original went; measured: of how many is measured what their
    matrices read; rounded: how many are rounded for that; finished: how many have become quantized.
    """

    def __init__(
        self,
        model: Model,
        types: Mapping[str, str],
        known: Mapping[str, U8],
        desk: AnyDesk,
        rows: Sequence[int],
        kept: Kept | None,
        ahead: Executor,
        *,
        count: int,
        holds: bool,
        window: int,
    ) -> None:
        self.model, self.types, self.known, self.desk = model, types, known, desk
        self.kept, self.count, self.window = kept, count, window
        self.passed = self.measured = self.rounded = self.finished = 0
        self.benches: dict[int, Bench] = {}
        self._found: dict[int, list[Sequence[Step]]] = {}
        self.fresh: set[int] = set()  # layers of which what they read is on the desk
        self._common = desk, tuple(rows), kept, holds
        self._ahead, self._coming = ahead, dict[int, Future[tuple[str, ...]]]()

    def restart(self) -> None:
        """Begin with the first layer again."""
        self.passed = self.measured = self.rounded = self.finished = 0
        self.benches.clear()
        self.fresh.clear()
        self._found.clear()
        self._coming.clear()

    def enter(self, layer: int) -> Generator[Any, Any, Bench]:
        """Wait for a layer's weights, and have those of the next ones put on the desk."""
        for each in range(layer, self.count):
            if self.has_room(each) and each not in self._coming:
                self._coming[each] = self._ahead.submit(self._put, each)
        tensors = yield self._coming[layer]
        prefix = f"blk.{layer}."
        todo = (t for t in tensors if prefix + t in self.types and prefix + t not in self.known)
        self.benches[layer] = Bench(*self._common, layer, tensors, frozenset(todo))
        return self.benches[layer]

    def has_room(self, layer: int) -> bool:
        """Whether there is a layer of this number that may be worked on by now."""
        return layer < min(self.count, self.finished + self.window)

    def until(self, count: str, layer: int) -> Until:
        """Wait until "passed", "measured" or "rounded" counts this layer as well."""
        return Until(lambda: getattr(self, count) > layer)

    def _put(self, layer: int) -> tuple[str, ...]:
        prefix = f"blk.{layer}."
        names = [name for name in self.model.tensors if layer_prefix(name) == prefix]
        for name in names:
            put_weights(self.desk, f"w.{on_desk(self.desk, name)}", self.model.tensors[name])
        return tuple(name.removeprefix(prefix) for name in names)

    def matrices(self, bench: Bench, step: Step) -> list[str]:
        """The names of those of a step's matrices that become quantized ones."""
        names = [f"blk.{bench.layer}.{weights}" for weights in step.weights]
        return [name for name in names if name in self.types]

    def todo(self, bench: Bench, step: Step) -> list[str]:
        """The names of those that are to be rounded."""
        return [name for name in self.matrices(bench, step) if name not in self.known]

    def note(self, layer: int, steps: Sequence[Step], done: Sequence[Step] = ()) -> None:
        """Note what a layer's steps are, and those whose matrices are on the desk rounded."""
        names = (weights for step in done for weights in step.weights)
        rounded = {name for name in names if f"blk.{layer}.{name}" in self.types}
        bench = self.benches[layer]
        self.benches[layer] = replace(bench, steps=tuple(steps), done=bench.done | rounded)

    def note_pass(self, layer: int, steps: Sequence[Step], *, of: int) -> None:
        """Note what one chunk of tokens, of so many, says of a layer of the original."""
        found = self._found.setdefault(layer, [])
        found.append(steps)
        if len(found) == of:
            is_fresh = layer in self.fresh
            self.note(layer, list(_of_all_tokens(found)) if is_fresh else steps)
            self.passed = layer + 1

    def kept_steps(self, layer: int) -> tuple[Step, ...]:
        """A layer's steps, if they were kept."""
        found = self.kept.read(f"{layer}.steps") if self.kept else None
        if not found:
            return ()
        return tuple(_step(**each) for each in json.loads(found[0].tobytes()))

    def keep_steps(self, layer: int) -> None:
        """Keep a layer's steps, if they were not."""
        steps = self.benches[layer].steps
        if self.kept and steps and layer in self.fresh:
            said = json.dumps([asdict(step) for step in steps]).encode()
            self.kept.once(f"{layer}.steps", lambda: [np.frombuffer(said, np.uint8)])


def _step(matrices: Sequence[str], counts: Sequence[int], **rest: Any) -> Step:
    return Step(matrices=tuple(matrices), counts=tuple(counts), **rest)


def _of_all_tokens(found: Sequence[Sequence[Step]]) -> Iterator[Step]:
    """A layer's steps, from what is known of each chunk of tokens."""
    for same in zip(*found, strict=True):
        counts = tuple(map(sum, zip(*(step.counts for step in same), strict=True)))
        yield replace(same[0], counts=counts)
