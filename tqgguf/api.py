"""The library in three verbs: open a model, plan what becomes of it, convert it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from tqgguf import pipeline
from tqgguf.calibration import resources
from tqgguf.calibration.calibrated import NOT_CALIBRATED, Calibrated
from tqgguf.calibration.tokens import DEFAULT_TOKENS
from tqgguf.machine.machine import Machine
from tqgguf.machine.processes import expect_processes
from tqgguf.machine.threads import default_threads
from tqgguf.models import Model, input_files
from tqgguf.models import open_model as _open_model
from tqgguf.output.files import check_output
from tqgguf.output.layout import Split
from tqgguf.output.names import default_output
from tqgguf.pipeline import Report, workers
from tqgguf.planning.choices import Prepared, is_quick, prepare
from tqgguf.planning.inputs import effort_of
from tqgguf.planning.plan import Options, Plan

AnyPath = str | PathLike[str]


@dataclass(frozen=True)
class Converted:
    """What `convert` made: the files in order, the plan they follow, a report of each tensor.

    There are no reports where `resume` found the output finished already.
    """

    files: tuple[Path, ...]
    plan: Plan
    reports: tuple[Report, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of the files."""
        return sum(file.stat().st_size for file in self.files)


@dataclass(frozen=True)
class Job:
    """A conversion that is decided and not yet done: what `convert` and the command line share."""

    prepared: Prepared
    path: Path
    files: tuple[Path, ...]
    machine: Machine
    split: Split
    resume: bool
    force: bool

    @property
    def model(self) -> Model:
        """What is converted, its rows padded where they are."""
        return self.prepared.model

    @property
    def plan(self) -> Plan:
        """What becomes of every tensor."""
        return self.prepared.plan

    def calibrate(self, *, advance: Callable[[int], object] = lambda _: None) -> Calibrated:
        """Round the matrices with error feedback, where the effort asks for it.

        advance: called with the number of weights that are done.
        """
        if self.prepared.tokens is None:
            return NOT_CALIBRATED
        from tqgguf.calibration.cached import calibrate_model  # slow to import, seldom needed

        wanted = self.model, self.plan.rotation, self.plan.matrix_types, self.prepared.tokens
        return calibrate_model(*wanted, machine=self.machine, advance=advance)

    def write(
        self, calibrated: Calibrated, *, advance: Callable[[int], object] = lambda _: None
    ) -> Iterator[Report]:
        """Write the output and yield a report of each tensor: see `pipeline.convert`."""
        return pipeline.convert(
            *(self.model, self.plan, self.path),
            calibrated=calibrated,
            importance=self.prepared.importance,
            machine=self.machine,
            split=self.split,
            resume=self.resume,
            force=self.force,
            advance=advance,
        )


def open_model(path: AnyPath, *, vocab_from: AnyPath | None = None) -> Model:
    """Open a .gguf file (or the first of its shards), a Hugging Face folder or .safetensors.

    Nothing but the header is read; weights are read when asked for: `model.tensors[name].read()` is
    float32 in NumPy's order, (n_out, n_in) for a matrix. vocab_from: a GGUF file whose tokenizer
    takes the place of a folder's own. Raises FileFormatError, PlanError, UnsupportedModelError.

    >>> model = open_model("tests/data/novels-5m-f16.gguf")
    >>> model.architecture, model.tensors["blk.0.ffn_up.weight"].shape
    ('llama', (768, 256))
    """
    return _open_model(Path(path), vocab_from=None if vocab_from is None else Path(vocab_from))


def plan(
    model: Model | AnyPath, options: Options = Options(), *, machine: Machine = Machine()
) -> Plan:
    """Decide the type, the rotation and the size of every tensor; nothing is written.

    Of a large model only the header is read: what would be measured for `convert` is in `notes`.
    Raises PlanError for options that contradict each other or the model, UnsupportedModelError
    where the rotation asked for cannot be folded in exactly.

    >>> decided = plan("tests/data/novels-5m-f16.gguf", Options(type="q4_k", rotate="none"))
    >>> round(decided.bpw, 1), decided.matrix_types["blk.0.ffn_up.weight"]
    (4.5, 'Q4_K')
    """
    opened, options = _opened(model), _with_paths(options)
    return prepare(opened, options, machine, measure=is_quick(opened)).plan


def convert(
    model: Model | AnyPath,
    output: AnyPath | None = None,
    options: Options = Options(),
    *,
    machine: Machine = Machine(),
    split: Split = Split(),
    resume: bool = False,
    force: bool = False,
    advance: Callable[[int], object] = lambda _: None,
) -> Converted:
    """Rotate, round and write a model, as `tqgguf quantize` does with the options of these names.

    output: beside the model and named after the recipe if None. advance: called with the number of
    bytes of each part written. Raises OutputError where a file is in the way, the disk is full or
    the run cannot be resumed; WeightError for NaN and infinite weights; MismatchError where a fold
    would change what the network computes; and what `plan` raises. Nothing half-written ever has
    the name of an output.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = convert(
    ...         "tests/data/novels-5m-f16.gguf",
    ...         f"{folder}/novels-Q4_K.gguf",
    ...         Options(type="q4_k", rotate="none", effort="fast"),
    ...     )
    ...     print(done.files[0].name, f"{done.n_bytes / 1e6:.1f} MB", len(done.reports))
    novels-Q4_K.gguf 3.0 MB 56
    """
    job = decide(
        *(_opened(model), options, None if output is None else Path(output)),
        machine=machine,
        split=split,
        resume=resume,
        force=force,
    )
    reports = job.write(job.calibrate(), advance=advance)
    return Converted(job.files, job.plan, tuple(reports))


def decide(
    model: Model,
    options: Options,
    output: Path | None,
    *,
    machine: Machine = Machine(),
    split: Split = Split(),
    resume: bool = False,
    force: bool = False,
    inputs: Sequence[Path] = (),
    others: Mapping[str, Path] | None = None,
) -> Job:
    """Decide all of a conversion; a file that must not be written is found before the work.

    resume, force: an output may be there, finished or not. inputs: what is read besides the model
    and the options' files; others: what is written besides the output, by the options that name it.
    """
    options = _with_paths(options)
    if _will_start_processes(model, options, machine):
        expect_processes(preload=_work(options))
    given = (model.path, options.calibrate, options.imatrix, *inputs)
    read = [file for path in given if path for file in input_files(path)]
    if output is not None and not split:
        check_output(output, inputs=read, force=resume or force, others=others)
    prepared = prepare(model, options, machine)
    path = output or default_output(model.path, prepared.plan.recipe.name)
    files = tuple(pipeline.output_files(model, prepared.plan, path, split))
    count = len(files) if split else None
    check_output(path, inputs=read, force=resume or force, count=count, others=others)
    return Job(prepared, path, files, machine, split, resume, force)


def _work(options: Options) -> str:
    """The module whose work processes begin with; that of calibration is slow to import."""
    calibrates = effort_of(options) == "best"
    return "tqgguf.calibration.work" if calibrates else workers.__name__


def _will_start_processes(model: Model, options: Options, machine: Machine) -> bool:
    several = (machine.threads or default_threads()) > 1 and machine.cluster is None
    return machine.processes and several and _is_worth_processes(model, options)


def _is_worth_processes(model: Model, options: Options) -> bool:
    if effort_of(options) != "best":
        return pipeline.is_worth_processes(model)
    weights = sum(t.size for t in model.tensors.values())
    return resources.is_worth_processes(weights, options.calibrate_tokens or DEFAULT_TOKENS)


def _opened(model: Model | AnyPath) -> Model:
    return model if isinstance(model, Model) else open_model(model)


def _with_paths(options: Options) -> Options:
    """The options, their files as paths where a caller without types gave strings."""
    text, matrix = (path and Path(path) for path in (options.calibrate, options.imatrix))
    return replace(options, calibrate=text, imatrix=matrix)
