"""What depends on the original alone: it is done some layers ahead of the quantized network.

The matrices that make up for no drift are rounded for what they read in the original: that costs
nothing (docs/decisions/0046), and they need not wait for each other.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tqgguf.calibration import work
from tqgguf.calibration.bench import Bench, Step
from tqgguf.calibration.layers import Layers
from tqgguf.calibration.moments import Accumulator, InputMoments
from tqgguf.calibration.rounding import Rounder
from tqgguf.machine.board import Batch, Procedure, Until

OnExperts = Callable[[str, Sequence[int]], object]


@dataclass(frozen=True)
class Ahead:
    """Procedures that wait for each other, each going through all layers."""

    layers: Layers
    moments: Accumulator
    rounder: Rounder
    on_experts: OnExperts

    def procedures(self) -> list[list[Procedure]]:
        """All that goes ahead of the quantized network, the most urgent first."""
        passing = self._pass_original(self.moments.chunks, measures=True)
        return [[self._round()], [self._measure()], passing]

    def first_pass(self, n_chunks: int) -> list[list[Procedure]]:
        """Chunks of the original through all layers: so many, or all where that can be kept."""
        measures = self.layers.kept is not None
        chunks = self.moments.chunks if measures else self.moments.chunks[:n_chunks]
        return [[self._keep()], self._pass_original(chunks, measures=measures)]

    def _pass_original(self, chunks: Sequence[int], *, measures: bool) -> list[Procedure]:
        """Take chunks of the original through all layers, none further than there are slots for.

        measures: what the layers read is put on the desk.
        """
        given: list[Bench] = []
        return [self._enter(given, measures), *(self._pass(given, i, len(chunks)) for i in chunks)]

    def _enter(self, given: list[Bench], measures: bool) -> Procedure:
        """Prepare one layer after the other for passes."""
        layers = self.layers
        for layer in range(layers.count):
            yield Until(partial(layers.has_room, layer))
            bench = yield from layers.enter(layer)
            steps = yield from self._kept_steps(bench)
            if measures and not steps:
                layers.fresh.add(layer)
            todo = bench.todo if measures else frozenset()
            given.append(replace(bench, steps=steps, todo=todo))

    def _pass(self, given: list[Bench], chunk: int, n_chunks: int) -> Procedure:
        """Take a chunk through all layers that are prepared."""
        for layer in range(self.layers.count):
            yield Until(partial(_is_there, given, layer))
            (steps,) = yield Batch([partial(work.pass_original, given[layer], chunk)])
            self.layers.note_pass(layer, given[layer].steps or steps, of=n_chunks)

    def _kept_steps(self, bench: Bench) -> Generator[Batch, Any, tuple[Step, ...]]:
        """A layer's steps; none if these, or what is wanted of their inputs, were not kept."""
        kept, steps = self.layers.kept, self.layers.kept_steps(bench.layer)
        if kept is None or not steps:
            return ()
        wanted = self._wanted(replace(bench, steps=steps))
        entries = [e for each in wanted for e in zip(each.names(), each.entries(), strict=True)]
        taken = partial(work.take_kept, self.moments.desk, kept, entries)
        (are_sound,) = yield Batch([taken])
        return steps if are_sound else ()

    def _keep(self) -> Procedure:
        """Measure what was put on the desk, and keep it."""
        for layer in range(self.layers.count):
            yield self.layers.until("passed", layer)
            bench = self.layers.benches[layer]
            wanted = self._wanted(bench) if layer in self.layers.fresh else []
            yield from self.moments.sum(wanted, sums=1)
            yield from self.moments.keep(wanted)
            self.layers.keep_steps(layer)
            self.layers.finished = layer + 1

    def _measure(self) -> Procedure:
        """Measure what the layers' matrices read, and factor it."""
        for layer in range(self.layers.count):
            yield self.layers.until("passed", layer)
            wanted = self._wanted(self.layers.benches[layer])
            if layer in self.layers.fresh:
                yield from self.moments.sum(wanted, sums=1)
            others = max(1, self.moments.settings.factors - 1)  # one is the quantized network's
            yield from self.moments.factor(wanted, at_once=others)
            self.layers.keep_steps(layer)
            for each in wanted:
                if len(each.counts) > 1:
                    self.on_experts(each.reader, each.counts)
            self.layers.measured = layer + 1

    def _round(self) -> Procedure:
        """Round the layers' matrices for what they read."""
        for layer in range(self.layers.count):
            yield self.layers.until("measured", layer)
            bench = self.layers.benches[layer]
            for name in self.alone(layer):
                if name in self.layers.known:
                    self.rounder.put_known(name, self.layers.known[name])
            wanted = self._wanted(bench)
            todo = [self.rounder.tasks(self.layers.todo(bench, m.step), m) for m in wanted]
            yield Batch([task for tasks in todo for task in tasks])
            self.moments.forget(wanted)
            self.layers.note(layer, bench.steps, done=_alone(bench))
            self.layers.rounded = layer + 1

    def alone(self, layer: int) -> Iterator[str]:
        """The names of a layer's matrices that are rounded ahead."""
        bench = self.layers.benches[layer]
        for step in _alone(bench):
            yield from self.layers.matrices(bench, step)

    def _wanted(self, bench: Bench) -> list[InputMoments]:
        """The inputs that matrices which are to be rounded read."""
        found = []
        for step in _alone(bench):
            todo = self.layers.todo(bench, step)
            if todo:
                n_in, number = self.layers.model.tensors[todo[0]].n_in, step.number
                key, entry = f"{bench.slot}.{number}", f"{bench.layer}.{number}.h"
                found.append(InputMoments(key, todo[0], n_in, step, entry=entry))
        return found


def _is_there(given: Sequence[Bench], layer: int) -> bool:
    return layer < len(given)


def _alone(bench: Bench) -> list[Step]:
    """The steps of a layer whose matrices make up for no drift."""
    return [step for step in bench.steps if not step.aims]
