"""The second moments of what goes into matrices, summed and factored on the desk by a crew."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from tqgguf.calibration import work
from tqgguf.calibration.bench import AnyDesk
from tqgguf.calibration.desk import Sizes
from tqgguf.calibration.settings import Feedback
from tqgguf.calibration.work import Reached
from tqgguf.errors import WeightError
from tqgguf.machine.crew import Crew, Task

BORROWED = 4  # the part of an input's width that experts count as tokens that all of them saw


@dataclass(frozen=True)
class InputMoments:
    """What is known of the inputs of some matrices.

    step: its number, a part of the names on the desk. counts: how many tokens each input saw, one
    for each expert. share: of the drift that is made up for. streams: whether what is computed
    from them is added to the stream.
    """

    step: int
    counts: tuple[int, ...]
    share: float = 0.0
    streams: bool = False


@dataclass(frozen=True)
class Sum:
    """The mean of left^T right, two inputs on the desk, over so many tokens."""

    left: str
    right: str
    shape: tuple[int, int]
    tokens: int
    parts: tuple[str, ...] = ("",)

    def tiles(self, sizes: Sizes) -> list[tuple[int, int]]:
        """Its tiles, or one of two that mirror each other, the largest first."""
        rows, columns = (len(sizes.edges(n)) - 1 for n in self.shape)
        same = self.left == self.right
        found = [(a, b) for a in range(rows) for b in range(a if same else 0, columns)]
        return sorted(found, key=lambda tile: same and tile[0] == tile[1])

    def inputs(self, sizes: Sizes) -> Iterator[str]:
        """The names of the arrays that are multiplied."""
        for x, n in zip((self.left, self.right), self.shape, strict=True):
            for t in range(len(sizes.edges(n)) - 1):
                yield from (f"{x}.{t}{part}" for part in self.parts)


@dataclass(frozen=True)
class Accumulator:
    """Takes the moments of inputs; chunks: of tokens, by number."""

    desk: AnyDesk
    crew: Crew
    settings: Feedback
    n_embd: int
    chunks: Sequence[int]

    def measure(self, stage: int, name: str, n_in: int, steps: Sequence[Reached]) -> InputMoments:
        """Put the moments of the inputs of a step on the desk, and their factors.

        name: of a matrix that reads them, n_in wide. steps: what each chunk of tokens came to.
        Raises WeightError where they are not finite.
        """
        counts = tuple(map(sum, zip(*(step.counts for step in steps), strict=True)))
        share = _share(self.settings.drift, n_in, counts[0]) if steps[0].aims else 0.0
        moments = InputMoments(stage, counts, share, steps[0].streams)
        squares, aimed = self._squares(moments, n_in, steps[0]), self._aimed(moments, n_in)
        finite = self._are_finite(self._tasks(squares))
        if finite and len(counts) > 1:
            self._blend(stage, counts, n_in)
        if not finite or not self.factor(moments, self._tasks(aimed)):
            raise _not_finite(name)
        self._drop_inputs({**squares, **aimed})
        return moments

    def _squares(self, moments: InputMoments, n_in: int, step: Reached) -> dict[str, Sum]:
        """The means of x x^T of the inputs of a step."""
        square, counts, x = (n_in, n_in), moments.counts, f"x.{moments.step}"
        if step.shared:
            return {f"m.{moments.step}.0": Sum(x, x, square, counts[0])}
        parts = tuple(f".{i}" for i in self.chunks)
        name = "m" if len(counts) == 1 else "u"
        return {
            f"{name}.{moments.step}.{e}": Sum(f"{x}.{e}", f"{x}.{e}", square, n, parts)
            for e, n in enumerate(counts)
        }

    def _aimed(self, moments: InputMoments, n_in: int) -> dict[str, Sum]:
        """The mean of x d^T, d what a step's matrices should come to, if they make up for drift."""
        if not moments.share:
            return {}
        step, width = moments.step, self.n_embd if moments.streams else n_in
        return {f"hd.{step}": Sum(f"x.{step}", f"d.{step}", (n_in, width), moments.counts[0])}

    def sum(self, name: str, sums: Mapping[str, Sum]) -> None:
        """Put means of products on the desk, of what a matrix reads; their factors are dropped.

        Raises WeightError where they are not finite.
        """
        if not self._are_finite(self._tasks(sums)):
            raise _not_finite(name)
        self._drop_inputs(sums)

    def _tasks(self, sums: Mapping[str, Sum]) -> list[Task[bool]]:
        """What is to be done so that sums are on the desk; each says whether its part is finite."""
        todo: list[Task[bool]] = []
        for name, each in sums.items():
            tiles = each.tiles(self.desk.sizes)
            runs = self._runs(each, len(tiles))
            self.desk.make(name, (len(runs), *each.shape))
            inputs = self.desk, name, each.left, each.right
            todo += [
                partial(work.sum_products, *inputs, tile, each.parts, each.tokens, number, run)
                for tile in tiles
                for number, run in enumerate(runs)
            ]
        return todo

    def _are_finite(self, tasks: Sequence[Task[bool]]) -> bool:
        return all(list(self.crew.run(tasks)))

    def _drop_inputs(self, sums: Mapping[str, Sum]) -> None:
        for name in {name for each in sums.values() for name in each.inputs(self.desk.sizes)}:
            self.desk.drop(name)

    def _runs(self, wanted: Sum, tiles: int) -> list[tuple[int, int]]:
        """Runs of tokens that are summed up apart, so that there is something for all to do.

        As many sums as there are runs are on the desk, so large ones are not cut.
        """
        sizes, (rows, columns) = self.desk.sizes, wanted.shape
        affordable = min(wanted.tokens // sizes.run, sizes.summed // (rows * columns))
        count = min(-(-sizes.sums // tiles), affordable)
        if len(wanted.parts) > 1 or count < 2:
            return [(0, wanted.tokens)]
        return list(pairwise(wanted.tokens * k // count for k in range(count + 1)))

    def _blend(self, stage: int, counts: Sequence[int], n_in: int) -> None:
        """Experts that saw few tokens borrow the moments of all."""
        everything: Any = 0
        for e, n in enumerate(counts):
            everything = everything + n / max(1, sum(counts)) * self.desk.get(f"u.{stage}.{e}")
        self.desk.put(f"all.{stage}", everything)
        borrowed = n_in // BORROWED
        todo = [
            partial(work.blend, self.desk, stage, e, borrowed / (n + borrowed))
            for e, n in enumerate(counts)
        ]
        for _ in self.crew.run(todo):
            pass

    def factor(self, moments: InputMoments, alongside: Sequence[Task[bool]] = ()) -> bool:
        """Factor them, so many at once as there is memory for; is what is alongside finite?"""
        names = [f"{moments.step}.{e}" for e in range(len(moments.counts))]
        todo: list[Task[bool]] = [
            partial(work.factor, self.desk, name, self.settings.damping) for name in names
        ]
        first, rest = todo[: self.settings.factors], todo[self.settings.factors :]
        finite = self._are_finite([*first, *alongside])
        for at in range(0, len(rest), self.settings.factors):
            finite &= self._are_finite(rest[at : at + self.settings.factors])
        return finite


def _not_finite(name: str) -> WeightError:
    return WeightError(
        f"{name}: on this text the network computes NaN or Inf before it; the model is damaged or "
        "needs more than float32: quantize it without --calibrate"
    )


def _share(drift: float, n_in: int, tokens: int) -> float:
    """How much of the drift to make up for: few tokens do not say what it is."""
    return drift * max(0.0, 1 - 2 * n_in / max(1, tokens))
