"""The library in three verbs: open a model, plan what becomes of it, convert it."""

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from tqgguf import pipeline
from tqgguf.calibration.cached import Calibrated, calibrate_model
from tqgguf.calibration.calibrate import Settings
from tqgguf.models import Model, model_files
from tqgguf.models import open_model as _open_model
from tqgguf.output.files import check_output
from tqgguf.output.layout import Split
from tqgguf.output.names import default_output
from tqgguf.pipeline import Report
from tqgguf.planning.choices import Prepared, prepare
from tqgguf.planning.plan import Options, Plan

AnyPath = str | PathLike[str]


@dataclass(frozen=True)
class Conversion:
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
    model: Model | AnyPath, options: Options = Options(), *, threads: int | None = None
) -> Plan:
    """Decide the type, the rotation and the size of every tensor; nothing is written.

    Raises PlanError for options that contradict each other or the model, UnsupportedModelError
    where the rotation asked for cannot be folded in exactly.

    >>> decided = plan("tests/data/novels-5m-f16.gguf", Options(type="q4_k", rotate="none"))
    >>> decided.bpw, decided.matrix_types["blk.0.ffn_up.weight"]
    (4.5, 'Q4_K')
    """
    return prepare(_opened(model), options, threads=threads).plan


def convert(
    model: Model | AnyPath,
    output: AnyPath | None = None,
    options: Options = Options(),
    *,
    threads: int | None = None,
    max_memory: int | None = None,
    split: Split = Split(),
    resume: bool = False,
    force: bool = False,
    processes: bool = False,
    cluster: str | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> Conversion:
    """Rotate, round and write a model, as `tqgguf quantize` does with the options of these names.

    output: beside the model and named after the recipe if None. processes: work in processes where
    the model is large; needs a main module that can be imported (`if __name__ == "__main__":`).
    advance: called with the number of bytes of each part written. Raises OutputError where a file
    is in the way, the disk is full or the run cannot be resumed; WeightError for NaN and infinite
    weights; MismatchError where a fold would change what the network computes; and what `plan`
    raises. Nothing half-written ever has the name of an output.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = convert(
    ...         "tests/data/novels-5m-f16.gguf",
    ...         f"{folder}/novels-Q4_K.gguf",
    ...         Options(type="q4_k", rotate="none", effort="fast"),
    ...     )
    ...     print(done.files[0].name, done.n_bytes, len(done.reports))
    novels-Q4_K.gguf 3010784 57
    """
    opened = _opened(model)
    if output is not None and not (split or force or resume):
        check_output(Path(output), inputs=model_files(opened.path), force=False)  # before the work
    prepared = prepare(opened, options, threads=threads)
    name = prepared.plan.recipe.name
    path = default_output(opened.path, name) if output is None else Path(output)
    files = pipeline.output_files(opened, prepared.plan, path, split)
    check_output(
        path,
        inputs=model_files(opened.path),
        force=force or resume,
        count=len(files) if split else None,
    )
    made = calibrate(opened, prepared, threads=threads)
    reports = pipeline.convert(
        opened,
        prepared.plan,
        path,
        rounded=made.rows if made else None,
        rounded_by=made.key if made else "",
        importance=prepared.importance,
        threads=threads,
        max_memory=max_memory,
        split=split,
        resume=resume,
        force=force,
        processes=processes,
        cluster=cluster,
        advance=advance,
    )
    return Conversion(tuple(files), prepared.plan, tuple(reports))


def calibrate(
    model: Model,
    prepared: Prepared,
    *,
    threads: int | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> Calibrated | None:
    """Round the matrices with error feedback, where the effort asks for it.

    advance: called with the number of weights that are done.
    """
    if prepared.tokens is None:
        return None
    decided, settings = prepared.plan, Settings(threads=threads)
    return calibrate_model(
        *(model, decided.rotation, decided.matrix_types, prepared.tokens),
        settings=settings,
        advance=advance,
    )


def _opened(model: Model | AnyPath) -> Model:
    return model if isinstance(model, Model) else open_model(model)
