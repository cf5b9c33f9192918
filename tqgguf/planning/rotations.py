"""Choose the rotation that loses least at a model's output, and say why in one sentence.

The divergence that rounding causes is close to a sum over matrices of sensitivity times relative
output error (allocation.py), and a matrix's output error to sum_c E_c |error_c|^2, E_c being the
energy of its inputs where its weights are stored (rotation/energies.py). So every way to fold is
tried on a few rows of some layers, and the predictions are compared, never the errors of weights.
Bytes count: a file that is larger has to be better by what the same bytes would have bought.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice

import numpy as np

from tqgguf.errors import UnsupportedModelError, WeightError
from tqgguf.formats import dequantize, is_float, quantize
from tqgguf.kernels.dtypes import F32, U8
from tqgguf.machine.threads import few, map_in_order
from tqgguf.models import Model, Tensor
from tqgguf.models.roles import layer_index
from tqgguf.planning.allocation import known_sensitivity
from tqgguf.planning.matrices import is_matrix
from tqgguf.planning.plan import Options, Plan, PlannedTensor
from tqgguf.planning.planner import make_plan
from tqgguf.rotation import ends, readers
from tqgguf.rotation.balance import expected_energies
from tqgguf.rotation.energies import Energies, rotated_energies
from tqgguf.rotation.recorded import read_rotation
from tqgguf.rotation.rotation import Rotation
from tqgguf.rotation.steps import RESIDUAL, Sides

MODES = ("none", "scales", "values", "fused")  # in the order in which they are preferred
_LAYERS = 6  # that are looked at
_RUNS, _RUN_WEIGHTS = 4, 1 << 13  # of consecutive rows of a matrix, and weights in each
_MOST_BITS = 64.0  # more a weight: nothing but small tensors is rounded, and no error matters
# Predictions nearer to each other than this are alike, and the simpler mode is taken: files differ
# from what is predicted by as much (docs/decisions/0041).
_ALIKE = 1.025


@dataclass(frozen=True)
class Candidate:
    """A way to fold: its plan and the output error that it predicts, a divergence in nats.

    cost: the error, had the file as many bytes as the unrotated one. reason: why it is impossible.
    """

    mode: str
    plan: Plan | None = None
    error: float = math.inf
    cost: float = math.inf
    reason: str = ""


def choose_rotation(
    model: Model,
    options: Options,
    energies: Energies | None = None,
    *,
    threads: int | None = None,
) -> tuple[Options, str]:
    """The options with the best of MODES in the place of `auto`, and a sentence that says why.

    energies: of the inputs in the original basis; where they are unknown those that the norms'
    gains let expect. What cannot be folded is a reason in the sentence, never an error; raises
    PlanError for other options that contradict the model.
    """
    if read_rotation(model).mode != "none":
        return replace(options, rotate="none"), "--rotate auto: none; the file is rotated already"
    unrotated = replace(options, rotate="none")
    if not make_plan(model, unrotated).rounded_weights:
        return unrotated, "--rotate auto: none; nothing is rounded"
    found = candidates(model, options, energies, threads=threads)
    best = _best(found, blind=energies is None)
    return replace(options, rotate=best.mode), _sentence(best, found, blind=energies is None)


def _best(found: Sequence[Candidate], *, blind: bool) -> Candidate:
    """The simplest of those that are predicted to be as good as the best.

    blind: the inputs are unknown, so outliers may be; scales undo these and cost a healthy model
    nothing, and are preferred even to nothing.
    """
    least = min(c.cost for c in found)
    alike = [c for c in found if c.cost <= _ALIKE * least]
    return next((c for c in alike if blind and c.mode == "scales"), alike[0])


def candidates(
    model: Model,
    options: Options,
    energies: Energies | None = None,
    *,
    threads: int | None = None,
) -> list[Candidate]:
    """Every mode of MODES with what it predicts, in order; see `choose_rotation`."""
    rows = [_Rows.of(model.tensors[name]) for name in _sample(model)]
    found = [_plan(model, replace(options, rotate=mode), energies) for mode in _modes(options)]
    predicted = _predicted(found, _Inputs(model, energies), rows, threads)
    return [_priced(c, predicted[0]) for c in predicted]


def _modes(options: Options) -> list[str]:
    return [mode for mode in MODES if options.balance or mode != "scales"]


def _plan(model: Model, options: Options, energies: Energies | None) -> Candidate:
    try:
        plan = make_plan(model, options, energies=energies)
        plan.rotation.check_gains(model)
    except UnsupportedModelError as error:
        return Candidate(options.rotate, reason=_reason(model, error))
    return Candidate(options.rotate, plan)


def _reason(model: Model, error: UnsupportedModelError) -> str:
    """What it says, without the file's name and the alternatives."""
    said = str(error).removeprefix(f"{model.path}: ").partition("; use")[0]
    return said.partition(" (known: ")[0]


def _predicted(
    found: Sequence[Candidate], inputs: "_Inputs", rows: Sequence["_Rows"], threads: int | None
) -> list[Candidate]:
    """The candidates with the divergence that each one's rounding causes, or why they fail."""
    known: dict[str, F32] = {}
    tried = [_tried(candidate, inputs, rows, threads, known) for candidate in found]
    trials = [trial for _, each in tried for trial in each]
    costs = iter(_costs(trials, threads, weigh=inputs.energies is not None))
    return [
        replace(c, error=sum(islice(costs, len(each)))) if c.plan is not None else c
        for c, each in tried
    ]


def _tried(
    candidate: Candidate,
    inputs: "_Inputs",
    rows: Sequence["_Rows"],
    threads: int | None,
    known: dict[str, F32],
) -> tuple[Candidate, list["_Trial"]]:
    """A candidate and its trials; known: vectors of those before it, to which its own are added."""
    if candidate.plan is None:
        return candidate, []
    try:
        return candidate, _trials(inputs, candidate.plan, rows, threads, known)
    except UnsupportedModelError as error:
        return Candidate(candidate.mode, reason=_reason(inputs.model, error)), []


def _priced(candidate: Candidate, unrotated: Candidate) -> Candidate:
    """With its cost: a bit more a weight would have made the unrotated error a quarter."""
    if candidate.plan is None or unrotated.plan is None:
        return candidate
    more = candidate.plan.n_bytes - unrotated.plan.n_bytes
    bits = min(_MOST_BITS, 8 * more / max(1, unrotated.plan.rounded_weights))
    return replace(candidate, cost=candidate.error * 4.0**bits)


def _sentence(best: Candidate, found: Sequence[Candidate], *, blind: bool) -> str:
    others = "; ".join(_told_all([c for c in found if c is not best], found[0]))
    guess = ", the inputs guessed from the norms' gains" if blind else ""
    nearly = best.cost > min(c.cost for c in found)
    simpler = f", within {_ALIKE - 1:.1%} of the least for its bytes" if nearly else ""
    would = "rotated it would be: " if best.mode == "none" else ""
    error = f"predicted output error {best.error:.4g}{guess}{simpler}"
    return f"--rotate auto: {best.mode}, {error}; {would}{others}"


def _told_all(others: Sequence[Candidate], unrotated: Candidate) -> Iterator[str]:
    """What to say of each that was not chosen; of those that fail for one reason, once."""
    for reason, group in groupby(others, key=lambda c: c.reason):
        first, *rest = group
        yield _told(first, unrotated)
        if rest and reason:
            yield f"for the same reason {' and '.join(c.mode for c in rest)}"
        else:
            yield from (_told(c, unrotated) for c in rest)


def _told(candidate: Candidate, unrotated: Candidate) -> str:
    if candidate.plan is None or unrotated.plan is None:
        return f"{candidate.mode} is impossible, {candidate.reason}"
    more = (candidate.plan.n_bytes - unrotated.plan.n_bytes) / 1e6
    size = f" with {abs(more):.1f} MB {'more' if more > 0 else 'less'}" if abs(more) > 0.05 else ""
    return f"{candidate.mode} {candidate.error:.4g}{size}"


@dataclass(frozen=True)
class _Inputs:
    """What is known or expected of the inputs of a model's matrices."""

    model: Model
    energies: Energies | None
    _below: dict[str, F32] = field(default_factory=dict)  # a norm, by its name

    def of(self, t: PlannedTensor, *, tied: bool) -> F32:
        """Energies of a planned matrix in the original basis: (n_mat, n_in) float32."""
        name = ends.HEAD if tied and t.name == ends.EMBEDDING else t.name
        known = self.energies(name) if self.energies else self._expected(name, t.shape)
        if known is None:
            return np.ones((math.prod(t.shape[:-2]), t.shape[-1]), np.float32)
        return known

    def spread(self, tensors: Sequence[PlannedTensor]) -> float:
        """How much more an error on the stream weighs once a rotation has spread it.

        Unrotated, what is written to a channel errs in proportion to what it holds, x_c, and the
        next gain g_c lets sum_c g_c^2 E[x_c^2] of that through; spread evenly, sum_c g_c^2.
        """
        ratios = []
        for t in tensors:
            gain = self.model.tensors.get(f"{readers.norm_above(self.model, t.name)}.weight")
            known = self.energies(t.name) if self.energies else None
            if gain is not None and known is not None and known.mean() > 0:
                ratios.append(float(np.square(gain.read()).mean() / known.mean()))
        return max(1.0, float(np.median(ratios))) if ratios else 1.0

    def _expected(self, name: str, shape: tuple[int, ...]) -> F32 | None:
        """What the norm's gain and the weights of all that reads it let expect."""
        norm = readers.norm_above(self.model, name)
        gain = self.model.tensors.get(f"{norm}.weight")
        if gain is None or gain.shape != shape[-1:]:
            return None
        if norm not in self._below:
            read_by = readers.readers(self.model, norm)
            alike = read_by and all(t.n_in == gain.size for t in read_by)
            found = expected_energies(gain.read(), read_by) if alike else np.square(gain.read())
            self._below[norm] = found
        return np.broadcast_to(self._below[norm], (math.prod(shape[:-2]), shape[-1]))


@dataclass(frozen=True)
class _Rows:
    """Some rows of a matrix: runs of them, each with its first row and the index of its matrix."""

    tensor: Tensor
    runs: tuple[tuple[int, int, F32], ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "_Rows":
        """Read the rows, evenly spread."""
        n_out = tensor.shape[-2]
        count = min(n_out, max(1, _RUN_WEIGHTS // max(1, tensor.n_in)))
        most = max(1, tensor.n_rows // count)
        starts = [i * (most // min(most, _RUNS)) * count for i in range(min(most, _RUNS))]
        runs = []
        for start in starts:
            first = min(start, (start // n_out + 1) * n_out - count)  # within one matrix
            runs.append((first, first // n_out, tensor.rows(first, first + count)))
        return cls(tensor, tuple(runs))


def _sample(model: Model) -> list[str]:
    """The matrices that are looked at: those of a few layers, and those outside the layers."""
    names = [t.name for t in model.tensors.values() if is_matrix(t)]
    layers = _layers(names)
    picked = np.linspace(0, max(0, len(layers) - 1), min(_LAYERS, len(layers))).astype(int)
    chosen = {layers[i] for i in picked}
    return [n for n in names if layer_index(n) in {None, *chosen}]


def _layers(names: Iterable[str]) -> list[int]:
    return sorted({i for name in names if (i := layer_index(name)) is not None})


@dataclass(frozen=True)
class _Trial:
    """Rows of a matrix as a plan stores them, and the energies of their inputs: (n, n_in) float32.

    power: the energy of the outputs. An error that is as large costs `sensitivity`, and `spread`
    times that where it reaches the stream.
    """

    planned: PlannedTensor
    x: F32
    energies: F32
    power: float
    spread: float
    sensitivity: float

    def cost(self, data: U8) -> float:
        """The divergence that these bytes in the place of x cause."""
        error = dequantize(data, self.planned.type, self.x.shape[1]) - self.x
        relative = _weighted(error, self.energies) / self.power if self.power > 0 else 0.0
        return relative * self.spread * self.sensitivity


def _trials(
    inputs: _Inputs,
    plan: Plan,
    rows: Sequence[_Rows],
    threads: int | None,
    known: dict[str, F32],
) -> list[_Trial]:
    """The rows of some of the matrices that a plan rounds."""
    read = {r.tensor.name: r for r in rows}
    sampled = [t for t in plan.tensors if t.source in read and not is_float(t.type)]
    rotation = _columns_alone(plan.rotation, [t.name for t in sampled]).with_vectors_of(
        inputs.model, threads=few(threads), known=known
    )
    known |= rotation.vectors
    tied = all(t.name != ends.HEAD for t in plan.tensors)
    n_layer, n_seen = (len(_layers(t.name for t in ts)) for ts in (plan.tensors, sampled))
    spread, of_outputs = inputs.spread(sampled), inputs.energies is not None

    energies = {t.name: inputs.of(t, tied=tied) for t in sampled}

    def trial(t: PlannedTensor) -> _Trial:
        turned, weights, power = _turned(read[t.source], t, rotation, energies[t.name])
        on_stream = RESIDUAL in plan.rotation.sides.get(t.name, Sides()).rows
        sensitivity = _sensitivity(t, n_layer, n_seen, tied=tied, of_outputs=of_outputs)
        return _Trial(t, turned, weights, power, spread if on_stream else 1.0, sensitivity)

    return list(map_in_order(trial, sampled, threads=few(threads)))


def _costs(trials: Sequence[_Trial], threads: int | None, *, weigh: bool) -> list[float]:
    """What rounding costs each; those of a type and width are rounded together, by all threads."""
    kinds: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, trial in enumerate(trials):
        kinds[trial.planned.type, trial.x.shape[1]].append(i)
    data: dict[int, U8] = {}
    for alike in kinds.values():
        parts = _rounded([trials[i] for i in alike], threads, weigh=weigh)
        data |= dict(zip(alike, parts, strict=True))
    each = range(len(trials))
    return list(map_in_order(lambda i: trials[i].cost(data[i]), each, threads=few(threads)))


def _rounded(trials: Sequence[_Trial], threads: int | None, *, weigh: bool) -> list[U8]:
    """The bytes of each, all of one type and width. Raises WeightError naming the tensor."""
    x = np.concatenate([t.x for t in trials])
    energies = np.concatenate([t.energies for t in trials]) if weigh else None
    try:
        data = quantize(x, trials[0].planned.type, energies, threads=threads)
    except WeightError as error:
        if len(trials) == 1:
            raise WeightError(f"{trials[0].planned.name}: {error}") from None
        return [_rounded([t], 1, weigh=weigh)[0] for t in trials]  # one of them is named
    return np.split(data, np.cumsum([len(t.x) for t in trials[:-1]]))


def _columns_alone(rotation: Rotation, names: Sequence[str]) -> Rotation:
    """What it does to the columns of some matrices: a turn of rows leaves their errors alike."""
    sides = {n: Sides(rotation.sides[n].columns) for n in names if n in rotation.sides}
    return replace(rotation, sides=sides)


def _sensitivity(
    t: PlannedTensor, n_layer: int, n_seen: int, *, tied: bool, of_outputs: bool
) -> float:
    """Divergence per relative error of a matrix and those of the layers that are not looked at."""
    head = ends.EMBEDDING if tied else ends.HEAD
    share = 1.0 if layer_index(t.name) is None else n_layer / n_seen
    return share * known_sensitivity(t.name, n_layer, head=head, of_outputs=of_outputs)


def _turned(
    rows: _Rows, t: PlannedTensor, rotation: Rotation, energies: F32
) -> tuple[F32, F32, float]:
    """The rows as they are stored, the energies there, and sum_c E_c |w_c|^2 as they were given."""
    stored = rotated_energies(rotation, t.name, energies, t.shape)
    runs = [(x, rotation.apply(t.name, x, shape=t.shape, first=(at, 0))) for at, _, x in rows.runs]
    given, turned = (np.concatenate(parts) for parts in zip(*runs, strict=True))
    seen, weights = (
        np.concatenate([np.broadcast_to(e[matrix], x.shape) for _, matrix, x in rows.runs])
        for e in (energies, stored)
    )
    return turned, weights, _weighted(given, seen)


def _weighted(x: F32, energies: F32) -> float:
    return float(np.einsum("ij,ij,ij->", x, x, energies, dtype=np.float64))
