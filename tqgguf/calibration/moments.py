"""The second moments of what goes into matrices, summed and factored on the desk."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from tqgguf.calibration import work
from tqgguf.calibration.bench import AnyDesk, Step
from tqgguf.calibration.desk import Sizes
from tqgguf.calibration.kept import Kept
from tqgguf.calibration.settings import Feedback
from tqgguf.errors import WeightError
from tqgguf.machine.board import Batch, Task

BORROWED = 4  # the part of an input's width that experts count as tokens that all of them saw


@dataclass(frozen=True)
class InputMoments:
    """What is known of the inputs of some matrices.

    key: a part of the names on the desk. reader: the name of one of the matrices. n_in: how wide
    the inputs are. step: the matrices', with the numbers of all tokens. share: of the drift that is
    made up for. entry: the name under which these moments are kept, "" for none.
    """

    key: str
    reader: str
    n_in: int
    step: Step
    share: float = 0.0
    entry: str = ""

    @property
    def counts(self) -> tuple[int, ...]:
        """How many tokens each input saw, one for each expert."""
        return self.step.counts

    def names(self) -> list[str]:
        """The keys of every expert's moments."""
        return [f"{self.key}.{e}" for e in range(len(self.counts))]

    def entries(self) -> list[str]:
        """The names under which every expert's are kept."""
        return [self.entry and f"{self.entry}.{e}" for e in range(len(self.counts))]


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
    """Takes the moments of inputs that are on the desk; chunks: of tokens, by number."""

    desk: AnyDesk
    settings: Feedback
    n_embd: int
    chunks: Sequence[int]
    kept: Kept | None = None

    def sum(self, wanted: Sequence[InputMoments], *, sums: int) -> Generator[Batch, Any, None]:
        """Put moments on the desk.

        sums: see `Sizes`. Raises WeightError where they are not finite.
        """
        squares = [self._squares(each) for each in wanted]
        todo = [self._tasks(each, sums) for each in squares]
        finite = iter((yield Batch([task for tasks in todo for task in tasks])))
        for each, tasks in zip(wanted, todo, strict=True):
            _require_finite(each, [next(finite) for _ in tasks])
        for each, squared in zip(wanted, squares, strict=True):
            if not each.share:  # or they are multiplied once more
                self._drop_inputs(squared)
        yield Batch([task for each in wanted for task in self._blend(each)])

    def keep(self, wanted: Sequence[InputMoments]) -> Generator[Batch, Any, None]:
        """Keep moments that are on the desk."""
        yield Batch(
            [
                partial(work.keep_sum, self.desk, key, self.kept, entry)
                for each in wanted
                for key, entry in zip(each.names(), each.entries(), strict=True)
            ]
        )

    def forget(self, wanted: Sequence[InputMoments]) -> None:
        """Nobody needs these any more."""
        for each in wanted:
            self.desk.drop(f"hd.{each.key}")
            for key in each.names():
                work.forget_moments(self.desk, key)

    def _squares(self, moments: InputMoments) -> dict[str, Sum]:
        """The means of x x^T of the inputs of a step."""
        square, key, counts = (moments.n_in, moments.n_in), moments.key, moments.counts
        if moments.step.shared:
            return {f"m.{key}.0": Sum(f"x.{key}", f"x.{key}", square, counts[0])}
        parts = tuple(f".{i}" for i in self.chunks)
        return {
            f"u.{key}.{e}": Sum(f"x.{key}.{e}", f"x.{key}.{e}", square, n, parts)
            for e, n in enumerate(counts)
        }

    def _aimed(self, moments: InputMoments) -> dict[str, Sum]:
        """The mean of x d^T, d what a step's matrices should come to, if they make up for drift."""
        if not moments.share:
            return {}
        key, n_in = moments.key, moments.n_in
        width = self.n_embd if moments.step.streams else n_in
        return {f"hd.{key}": Sum(f"x.{key}", f"d.{key}", (n_in, width), moments.counts[0])}

    def _tasks(self, wanted: Mapping[str, Sum], sums: int) -> list[Task]:
        """What is to be done so that sums are on the desk; each says whether its part is finite."""
        todo: list[Task] = []
        for name, each in wanted.items():
            tiles = each.tiles(self.desk.sizes)
            runs = self._runs(each, len(tiles), sums)
            self.desk.make(name, (len(runs), *each.shape))
            inputs = self.desk, name, each.left, each.right
            todo += [
                partial(work.sum_products, *inputs, tile, each.parts, each.tokens, number, run)
                for tile in tiles
                for number, run in enumerate(runs)
            ]
        return todo

    def _drop_inputs(self, sums: Mapping[str, Sum]) -> None:
        for name in {name for each in sums.values() for name in each.inputs(self.desk.sizes)}:
            self.desk.drop(name)

    def _runs(self, wanted: Sum, tiles: int, sums: int) -> list[tuple[int, int]]:
        """Runs of tokens that are summed up apart, so that there is something for all to do.

        As many sums as there are runs are on the desk, so large ones are not cut.
        """
        sizes, (rows, columns) = self.desk.sizes, wanted.shape
        affordable = min(wanted.tokens // sizes.run, sizes.summed // (rows * columns))
        count = min(-(-sums // tiles), affordable)
        if len(wanted.parts) > 1 or count < 2:
            return [(0, wanted.tokens)]
        return list(pairwise(wanted.tokens * k // count for k in range(count + 1)))

    def _blend(self, moments: InputMoments) -> list[Task]:
        """Let experts that saw few tokens borrow the moments of all."""
        key, counts = moments.key, moments.counts
        if moments.step.shared:
            return []
        work.add_experts_up(self.desk, key, [n / max(1, sum(counts)) for n in counts])
        borrowed = moments.n_in // BORROWED
        return [
            partial(work.blend, self.desk, key, e, borrowed / (n + borrowed))
            for e, n in enumerate(counts)
        ]

    def factor(
        self, wanted: Sequence[InputMoments], *, at_once: int = 1
    ) -> Generator[Batch, Any, None]:
        """Factor moments, so many at once; drift is summed up alongside.

        Raises WeightError where that is not finite.
        """
        todo: list[Task] = [
            partial(work.factor, self.desk, key, self.settings.damping, self.kept, entry)
            for each in wanted
            for key, entry in zip(each.names(), each.entries(), strict=True)
        ]
        aimed = {name: one for each in wanted for name, one in self._aimed(each).items()}
        if not todo:
            return
        finite = yield Batch([*todo[:at_once], *self._tasks(aimed, self.desk.sizes.sums)])
        _require_finite(wanted[0], finite)
        self._drop_inputs(aimed)
        for at in range(at_once, len(todo), at_once):
            yield Batch(todo[at : at + at_once])


def _require_finite(moments: InputMoments, finite: Sequence[bool]) -> None:
    if not all(finite):
        raise WeightError(
            f"{moments.reader}: on this text the network computes NaN or Inf before it; the model "
            "is damaged or needs more than float32: quantize it without --calibrate"
        )


def share_of(drift: float, n_in: int, tokens: int) -> float:
    """How much of the drift to make up for: few tokens do not say what it is."""
    return drift * max(0.0, 1 - 2 * n_in / max(1, tokens))
