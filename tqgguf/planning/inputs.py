"""What is known of the inputs of a model's matrices: as much as the effort asks for.

fast: nothing. good: their energies, from a short pass over some of the built-in text; scales,
rotation and importance come from these. best: the same, and tokens to round on with error feedback.
An importance matrix that is given takes the place of the short pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqgguf.calibration.imatrix import UNROTATED, Imatrix, matched, read_imatrix
from tqgguf.calibration.own_text import OWN
from tqgguf.calibration.resources import threads_of_passes
from tqgguf.calibration.short_pass import measure_inputs
from tqgguf.calibration.tokens import (
    BUILTIN,
    SHORT_CONTEXT,
    Text,
    read_own_text,
    read_text,
    sequences,
    short_sequences,
)
from tqgguf.errors import PlanError, TqggufError, UnsupportedModelError, WeightError
from tqgguf.formats import is_float
from tqgguf.machine.content import expect_content
from tqgguf.machine.devices import CPU, Device, find_device, on_device
from tqgguf.machine.machine import Machine
from tqgguf.models import Model, model_files
from tqgguf.models.damage import find_damage
from tqgguf.network.forward import Tokens, require_sound
from tqgguf.planning.plan import Options
from tqgguf.planning.recipes import recipe
from tqgguf.rotation.ends import EMBEDDING, HEAD
from tqgguf.rotation.energies import Energies

SELF = "self"  # in the place of a text's path: the model writes it
EFFORTS = ("fast", "good", "best")


@dataclass(frozen=True)
class Inputs:
    """What was found out, and notes that say how.

    imatrix: energies. tokens: (n_seq, n_tokens) int32, to round on with error feedback.
    """

    effort: str
    text: Text | None = None
    tokens: Tokens | None = None
    imatrix: Imatrix | None = None
    notes: tuple[str, ...] = ()

    @property
    def measured_on(self) -> str:
        """The text, or those of an importance matrix, of paths the names alone; "" without one."""
        datasets = self.imatrix.datasets if self.imatrix else ()
        texts = (self.text.name,) if self.text else datasets
        return ", ".join(Path(text).name for text in texts if text)

    @property
    def energies(self) -> Energies | None:
        """The inputs' energies in the model's own basis, if that is what is known."""
        known = self.imatrix if self.imatrix and self.imatrix.basis == UNROTATED else None
        return known.importance if known else None


def effort_of(options: Options) -> str:
    """The effort asked for; a text to calibrate on means best. Raises PlanError."""
    best = options.calibrate is not None
    effort = options.effort or ("best" if best else "good")
    if effort not in EFFORTS:
        raise PlanError(f"--effort {effort} is unknown; known: {', '.join(EFFORTS)}")
    if best and effort != "best":
        raise PlanError(f"--calibrate means --effort best; leave out --effort {effort}")
    if options.calibrate_tokens is not None and effort != "best":
        raise PlanError(
            f"--calibrate-tokens: --effort {effort} rounds without error feedback; add --effort "
            "best or --calibrate TEXT"
        )
    return effort


def find_inputs(
    model: Model,
    options: Options,
    machine: Machine = Machine(),
    *,
    measure: bool = True,
    meanwhile: Callable[[], object] = lambda: None,
) -> Inputs:
    """Find out about the inputs what the effort asks for.

    measure: may weights be read? Without it the note says what would be measured. meanwhile: called
    while another program makes tokens of a text to round on, if one has to. Where it cannot
    measure, good goes on as fast and says so.

    Raises PlanError for options that contradict each other, WeightError naming a tensor whose NaN
    or Inf the short pass came upon, and for best whatever reading the text raises, or
    UnsupportedModelError where the architecture has no forward pass; DeviceError where there is no
    such device.
    """
    effort = effort_of(options)
    device = _device(machine, effort)
    if not measure and effort != "fast" and options.imatrix is None:
        on = OWN if str(options.calibrate) == SELF else options.calibrate or BUILTIN
        return Inputs(effort, notes=(f"before it quantizes, inputs are measured on {on}",))
    if effort == "best" and _rounds(options):
        return _for_feedback(model, options, machine, device, meanwhile)
    if options.imatrix is not None:
        note = f"errors are weighed by {options.imatrix}"
        return Inputs(effort, imatrix=_read(model, options.imatrix), notes=(note,))
    if effort == "fast":
        return Inputs(effort)
    if not _rounds(options):
        return Inputs(effort, notes=("none is used: nothing is rounded",))
    return _by_short_pass(model, machine, device)


def _by_short_pass(model: Model, machine: Machine, device: Device) -> Inputs:
    """What some of the built-in text says of the inputs, or why it does not."""
    try:
        require_sound(model)
        text = _read_text(model, None)
    except TqggufError as error:
        return _without_text(error)
    threads = threads_of_passes(model, machine, SHORT_CONTEXT)
    try:
        imatrix, notes = _measured(model, text, threads, device)
    except WeightError as error:
        if found := find_damage(model):
            raise WeightError(found) from error
        return _without_text(error)
    except TqggufError as error:
        return _without_text(error)
    n_tokens = short_sequences(model, text).size
    note = f"inputs measured on {n_tokens:,} tokens of {text.name}, made by {text.tokenizer}"
    return Inputs("good", text, imatrix=imatrix, notes=(note, *notes))


def _device(machine: Machine, effort: str) -> Device:
    """Where to compute. Raises DeviceError; PlanError where it would make no difference."""
    device = find_device(machine.device)
    if machine.device != "cuda":
        return device if not machine.cluster else CPU
    if machine.cluster:
        raise PlanError("--device cuda: one process drives the card; leave out --cluster")
    if effort == "fast":
        raise PlanError("--device cuda: --effort fast computes nothing there; leave one out")
    return device


def _measured(
    model: Model, text: Text, threads: int | None, device: Device
) -> tuple[Imatrix, list[str]]:
    """The inputs' energies, and what to say of the device."""
    notes = [] if device.is_cpu else [f"computed on {device.card}"]

    def work(where: Device) -> Imatrix:
        return measure_inputs(model, text, threads=threads, device=where)

    return on_device(device, work, "the short pass", notes.append), notes


def _without_text(why: TqggufError) -> Inputs:
    return Inputs("good", notes=(f"no text was used, as with --effort fast: {why}",))


def _rounds(options: Options) -> bool:
    """Whether any matrix may get a type that rounds."""
    chosen = (
        options.tensor_type,
        options.output_type,
        options.token_embedding_type,
        options.target_bpw,
        options.target_size,
    )
    return any(chosen) or not is_float(recipe(options.type).matrix)


def _for_feedback(
    model: Model,
    options: Options,
    machine: Machine,
    device: Device,
    meanwhile: Callable[[], object],
) -> Inputs:
    given = options.calibrate
    try:
        require_sound(model)
    except UnsupportedModelError as error:
        if options.imatrix is None:
            asked = "--calibrate" if given else "--effort best"
            raise UnsupportedModelError(
                f"{error}; {asked} needs one: give --imatrix FILE as well, and errors are "
                "weighed by that instead"
            ) from error
        return _instead_of_feedback(model, options.imatrix, given, str(error))
    if str(given) == SELF:
        text = read_own_text(model, tokens=options.calibrate_tokens, threads=machine.threads)
    else:
        text = _read_text(model, given, meanwhile)
    tokens = sequences(model, text, limit=options.calibrate_tokens)
    threads = threads_of_passes(model, machine, SHORT_CONTEXT)
    imatrix, notes = None, list[str]()
    if _decide(options):
        imatrix, notes = _measured(model, text, threads, device)
    idle = f"; {options.imatrix} was not needed" if options.imatrix else ""
    note = f"calibrated on {tokens.size:,} tokens of {text.name}, made by {text.tokenizer}{idle}"
    return Inputs("best", text, tokens, imatrix, (note, *notes))


def _read_text(
    model: Model, path: Path | None, meanwhile: Callable[[], object] = lambda: None
) -> Text:
    """Tokenize a text, which another program does; meanwhile the model is read for its key."""
    expect_content(model_files(model.path))
    return read_text(model, path, meanwhile=meanwhile)


def _decide(options: Options) -> bool:
    """Whether inputs' energies decide anything where their moments decide the rounding."""
    chosen = recipe(options.type)
    is_turned = options.rotate not in ("none", "tensor")
    has_budget = options.target_bpw is not None or options.target_size is not None
    return is_turned or has_budget or chosen.dealt or chosen.ragged is not None


def _instead_of_feedback(model: Model, imatrix: Path, given: Path | None, why: str) -> Inputs:
    instead = f" instead of calibrated on {given}" if given else ""
    note = f"{why}: errors are weighed by {imatrix}{instead}"
    return Inputs("best", imatrix=_read(model, imatrix), notes=(note,))


def _read(model: Model, path: Path) -> Imatrix:
    """A user's importance matrix, as the model's tensors and the head of a tied one have it."""
    shapes = {name: t.shape for name, t in model.tensors.items()}
    if EMBEDDING in shapes:
        shapes.setdefault(HEAD, shapes[EMBEDDING])
    return matched(read_imatrix(path), shapes, path)
