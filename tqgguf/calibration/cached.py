"""Calibrated quantization: a text, the model that is to be written, and a cache of what came out.

Two things are kept in the user's cache under the hash of everything they depend on. What feedback
rounding made of each matrix, so that an interrupted calibration goes on where it stopped and a
repeated one is read from disk; and what the original network computes on the text, which another
type of the same model needs as well.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from tqgguf.calibration import forecast, work
from tqgguf.calibration.calibrate import calibrate
from tqgguf.calibration.calibrated import Calibrated
from tqgguf.calibration.device_desk import SMALLER
from tqgguf.calibration.kept import STATISTICS, Kept, open_kept
from tqgguf.calibration.resources import Resources, resources
from tqgguf.calibration.settings import Feedback
from tqgguf.calibration.short_pass import within_memory
from tqgguf.errors import ToolError
from tqgguf.kernels.dtypes import U8
from tqgguf.machine import crew as crews
from tqgguf.machine.cache import user_cache
from tqgguf.machine.content import content_key, digest
from tqgguf.machine.crew import Crew
from tqgguf.machine.devices import CPU, Device, find_device
from tqgguf.machine.machine import Machine
from tqgguf.models import Model, model_files
from tqgguf.models.damage import naming_damage
from tqgguf.models.roles import layer_prefix
from tqgguf.network.forward import Tokens
from tqgguf.network.graph import read_graph
from tqgguf.rotation.folded import fold
from tqgguf.rotation.padding import read_padding
from tqgguf.rotation.rotation import Rotation

_VERSION = 14  # of what is cached; raised when the same inputs give other bytes
_KEPT_LATER = 4  # matrices that are in memory until they are on the disk
_FEW_TOKENS = 256  # that an expert saw

_Found = Generator[tuple[str, U8], None, None]


def calibrate_model(
    model: Model,
    rotation: Rotation,
    types: Mapping[str, str],
    tokens: Tokens,
    *,
    settings: Feedback = Feedback(),
    machine: Machine = Machine(),
    advance: Callable[[int], object] = lambda _: None,
) -> Calibrated:
    """Round every matrix with error feedback on these tokens.

    model: a sound one (`require_sound`). rotation: what is folded in first. types: what each tensor
    of the output becomes. tokens: (n_seq, n_tokens) int32. advance is called with each finished
    matrix' share of all weights to be rounded, by the time it takes.
    The bytes are the same whoever does the work, on a device of one kind. A device whose memory
    ends goes on with what is finished in smaller pieces, and then the CPU does; a note says so.
    Raises UnsupportedModelError where the architecture has no forward pass, OutputError where the
    cache has no room, PlanError where the memory is too small, WeightError for NaN and Inf,
    DeviceError where there is no such device.
    """
    read_graph(model)
    device = find_device(machine.device)
    wanted = resources(model, types, tokens.shape, machine)
    settings = replace(settings, memory=wanted.held, factors=wanted.factors)
    rotation = rotation.with_vectors_of(model)
    statistics = kept_statistics(model, rotation, tokens, shares=_writers(wanted, machine))
    key = _results_key(model, rotation, types, tokens, settings, device)
    folded = fold(model, rotation)
    shares = forecast.shares(folded, types, tokens.shape)
    done = _Rounded.of(open_kept(_folder(), key), types, lambda name: advance(shares[name]))
    experts, notes = _Experts(), [f"calibrated on {device.card}"] if not device.is_cpu else []
    rounding = partial(calibrate, *(folded, types, tokens, settings), on_experts=experts.saw)
    with done.kept(model.path), within_memory(model), naming_damage(model):
        if not _on_device(device, rounding, done, notes):
            with _crew(wanted, machine) as crew:
                desks = user_cache() / "desks"
                done.take(rounding(known=done.known, kept=statistics, crew=crew, desks=desks))
    return Calibrated(done.rows, key, (*notes, *experts.notes()))


@dataclass(frozen=True)
class _Rounded:
    """Matrices that are rounded: those kept from an earlier run, and those taken over in this one.

    on_new: told the name of each that is taken over.
    """

    results: Kept
    known: dict[str, U8]
    on_new: Callable[[str], object]
    rows: dict[str, U8] = field(default_factory=dict)

    @classmethod
    def of(cls, results: Kept, names: Iterable[str], on_new: Callable[[str], object]) -> "_Rounded":
        """With what the results of an earlier run hold."""
        known = {name: found[0] for name in names if (found := results.read(name))}
        return cls(results, known, on_new)

    def take(self, found: _Found) -> None:
        """Take over and keep each matrix as it is found; one may come again."""
        keeping: deque[Future[None]] = deque()
        # closed, or the desk would stay as long as anybody holds an error of ours
        with closing(found), ThreadPoolExecutor(1) as scribe:  # the next is rounded meanwhile
            for name, data in found:
                is_new = name not in self.rows
                is_kept = name in self.known
                self.rows[name] = self.known.setdefault(name, data)
                if not is_kept:
                    keeping.append(scribe.submit(self._keep, name, data))
                if is_new:
                    self.on_new(name)
                while len(keeping) > _KEPT_LATER:
                    keeping.popleft().result()

    def _keep(self, name: str, data: U8) -> None:
        """Write a matrix, and have it mapped from the disk: not all of a model fit in memory."""
        self.results.write(name, [data])
        kept = self.results.read(name)
        if kept:
            self.known[name] = self.rows[name] = kept[0]

    @contextmanager
    def kept(self, path: Path) -> Iterator[None]:
        """Say after Ctrl-C, or where a worker is lost, what is kept of the model's matrices."""
        try:
            yield
        except KeyboardInterrupt:
            said = f"{path}: calibration was interrupted{self._what_is_kept()}"
            raise KeyboardInterrupt(said) from None
        except ToolError as error:
            raise ToolError(f"{error}{self._what_is_kept()}") from error

    def _what_is_kept(self) -> str:
        """The end of a line that says why the run has ended."""
        count = len(self.rows.keys() | self.known.keys())
        said = f"; {count} matrices are kept, and the same command goes on with them"
        return said if count else ""


def _on_device(
    device: Device,
    rounding: Callable[..., _Found],
    done: _Rounded,
    notes: list[str],
) -> bool:
    """Round on a device, in smaller and smaller pieces; False where that is for the CPU to do."""
    for sizes in () if device.is_cpu else SMALLER:
        try:
            done.take(rounding(known=done.known, device=device, sizes=sizes))
        except device.exhausted:
            notes.append(
                f"{device.card}: its memory does not do for {sizes.tokens:,} tokens and "
                f"{sizes.rows:,} rows at a time"
            )
        else:
            return True
        device.release()
    if not device.is_cpu:
        notes.append("the rest was calibrated on the CPU")
    return False


class _Experts:
    """How many tokens the experts of every layer saw."""

    def __init__(self) -> None:
        self._counts: dict[str, Sequence[int]] = {}

    def saw(self, name: str, counts: Sequence[int]) -> None:
        """Note a matrix of a layer; all of a layer's experts see the same tokens.

        The matrices that a latent attention's heads have of their own are no experts.
        """
        if "_exps" not in name:
            return
        self._counts[layer_prefix(name)] = counts

    def notes(self) -> tuple[str, ...]:
        """What to say of experts that saw so few tokens that others decided for them."""
        seen = [n for counts in self._counts.values() for n in counts]
        few = sum(n < _FEW_TOKENS for n in seen)
        if not few:
            return ()
        none = sum(n == 0 for n in seen)
        return (
            f"{few:,} of {len(seen):,} experts saw fewer than {_FEW_TOKENS} tokens, {none:,} of "
            "them none: their inputs are blended with those of all experts of their layer; more "
            "--calibrate-tokens tell more",
        )


def _writers(wanted: Resources, machine: Machine) -> int:
    """How many processes keep what the original computes; threads share the room for it."""
    apart = bool(machine.cluster) or (machine.processes and wanted.apart)
    return wanted.workers if apart else 1


@contextmanager
def _crew(wanted: Resources, machine: Machine) -> Iterator[Crew]:
    if machine.cluster:
        crew = crews.cluster_workers(machine.cluster)
    elif machine.processes and wanted.apart:
        crew = crews.separate_processes(wanted.workers, preload=work.__name__)
    else:
        crew = crews.threads(wanted.workers)
    with crew as found:
        yield found


def kept_statistics(model: Model, rotation: Rotation, tokens: Tokens, *, shares: int = 1) -> Kept:
    """Where what the rotated model computes on these tokens is kept, whatever it is quantized to.

    rotation: with its vectors. shares: processes that will write there.
    """
    key = statistics_key(model, rotation, tokens)
    return open_kept(_folder(), key, room=STATISTICS, shares=shares)


def _folder() -> Path:
    return user_cache() / "calibration"


def statistics_key(model: Model, rotation: Rotation, tokens: Tokens) -> str:
    """What names all that the rotated model computes on these tokens; rotation: with vectors."""
    said = (_VERSION, np.__version__, rotation, tokens.shape, *read_padding(model).pads.items())
    arrays = digest([tokens, *rotation.vectors.values()])
    return content_key(model_files(model.path), *said, arrays)


def _results_key(
    model: Model,
    rotation: Rotation,
    types: Mapping[str, str],
    tokens: Tokens,
    settings: Feedback,
    device: Device = CPU,
) -> str:
    choices = list(types.items())
    settled = (settings.sweeps, settings.damping, settings.drift)
    if not device.is_cpu:
        choices.append((device.name, device.card))
    return content_key((), statistics_key(model, rotation, tokens), choices, settled)
