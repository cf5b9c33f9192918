"""The second moments of what goes into matrices, summed and factored on the desk by a crew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from tqgguf.calibration import work
from tqgguf.calibration.bench import AnyDesk
from tqgguf.calibration.settings import Feedback
from tqgguf.calibration.work import Reached
from tqgguf.errors import WeightError
from tqgguf.machine.crew import Crew

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

    def tiles(self, rows: Sequence[int], columns: Sequence[int]) -> list[tuple[int, int]]:
        """The tiles between these edges, or one of two that mirror each other, largest first."""
        same = self.left == self.right
        found = [
            (a, b) for a in range(len(rows) - 1) for b in range(a if same else 0, len(columns) - 1)
        ]
        return sorted(found, key=lambda tile: same and tile[0] == tile[1])


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
        if not self.sum(self._sums(stage, counts, n_in, steps[0], share=share)):
            raise WeightError(
                f"{name}: on this text the network computes NaN or Inf before it; the model "
                "is damaged or needs more than float32: quantize it without --calibrate"
            )
        if len(counts) > 1:
            self._blend(stage, counts, n_in)
        moments = InputMoments(stage, counts, share, steps[0].streams)
        self.factor(moments)
        return moments

    def _sums(
        self, stage: int, counts: Sequence[int], n_in: int, step: Reached, *, share: float
    ) -> dict[str, Sum]:
        """What is to be known of the inputs of a step."""
        square, x = (n_in, n_in), f"x.{stage}"
        if not step.shared:
            parts = tuple(f".{i}" for i in self.chunks)
            return {
                f"{'m' if len(counts) == 1 else 'u'}.{stage}.{e}": Sum(
                    f"{x}.{e}", f"{x}.{e}", square, n, parts
                )
                for e, n in enumerate(counts)
            }
        sums = {f"m.{stage}.0": Sum(x, x, square, counts[0])}
        if share:
            width = self.n_embd if step.streams else n_in
            sums[f"hd.{stage}"] = Sum(x, f"d.{stage}", (n_in, width), counts[0])
        return sums

    def sum(self, sums: Mapping[str, Sum]) -> bool:
        """Put means of products on the desk; False where there is one that is not finite.

        Their factors are dropped.
        """
        todo, read = [], set()
        for name, each in sums.items():
            edges = [self.desk.sizes.edges(n) for n in each.shape]
            tiles = each.tiles(*edges)
            runs = self._runs(each, len(tiles))
            self.desk.make(name, (len(runs), *each.shape))
            inputs = self.desk, name, each.left, each.right
            todo += [
                partial(work.sum_products, *inputs, tile, each.parts, each.tokens, number, run)
                for tile in tiles
                for number, run in enumerate(runs)
            ]
            sides = zip((each.left, each.right), edges, strict=True)
            read |= {
                f"{x}.{t}{part}" for x, e in sides for t in range(len(e) - 1) for part in each.parts
            }
        finite = all(list(self.crew.run(todo)))
        for name in read:
            self.desk.drop(name)
        return finite

    def _runs(self, wanted: Sum, tiles: int) -> list[tuple[int, int]]:
        """Runs of tokens that are summed up apart, so that there is something for all to do."""
        count = min(-(-self.desk.sizes.sums // tiles), wanted.tokens // self.desk.sizes.tokens)
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

    def factor(self, moments: InputMoments) -> None:
        """Factor them, so many at once as there is memory for."""
        names = [f"{moments.step}.{e}" for e in range(len(moments.counts))]
        todo = [partial(work.factor, self.desk, name, self.settings.damping) for name in names]
        for at in range(0, len(todo), self.settings.factors):
            for _ in self.crew.run(todo[at : at + self.settings.factors]):
                pass


def _share(drift: float, n_in: int, tokens: int) -> float:
    """How much of the drift to make up for: few tokens do not say what it is."""
    return drift * max(0.0, 1 - 2 * n_in / max(1, tokens))
