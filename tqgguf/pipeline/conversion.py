"""Convert a model into a file, as planned."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqgguf.calibration.calibrated import NOT_CALIBRATED, Calibrated
from tqgguf.kernels.dtypes import F32
from tqgguf.machine.machine import Machine
from tqgguf.machine.threads import in_order, single_threaded_blas
from tqgguf.models import Model, model_files
from tqgguf.models.damage import naming_damage
from tqgguf.network.equivalence import check_fold
from tqgguf.output.files import Output, check_output, is_finished, open_output, shard_paths
from tqgguf.output.layout import Split, lay_out_shards
from tqgguf.pipeline.report import Outcome, Report, recorded, report_on
from tqgguf.pipeline.run import Run, infos
from tqgguf.pipeline.workers import Pool, Staff, staff_for, start_workers, tiles_of
from tqgguf.planning.plan import Plan, PlannedTensor


def convert(
    model: Model,
    plan: Plan,
    path: Path,
    *,
    calibrated: Calibrated = NOT_CALIBRATED,
    importance: Callable[[str], F32 | None] = lambda _: None,
    machine: Machine = Machine(),
    split: Split = Split(),
    resume: bool = False,
    force: bool = False,
    advance: Callable[[int], object] = lambda _: None,
) -> Iterator[Report]:
    """Quantize a model into the file `path`, as planned; the bytes do not depend on `machine`.

    calibrated: rows of tensors that were encoded already. importance: of a tensor's columns in the
    stored basis, one row for each of the matrices stacked in it, (n_mat, n_in) float32 >= 0, or
    None. Yields a Report as each tensor is done; the file has its name once the iterator is
    exhausted. resume: go on with what an interrupted run left; an output that is finished already
    is left alone and yields nothing. advance is called with the number of bytes of each part
    written. Raises OutputError, PlanError where the memory is too small, WeightError naming the
    tensor, and MismatchError where a fold would change the network's output; then nothing is left
    behind.
    """
    inputs = model_files(model.path)
    n_files = len(output_files(model, plan, path, split)) if split else None
    check_output(path, inputs=inputs, force=force or resume, count=n_files)
    run = Run.of(model, plan, calibrated, importance, threads=machine.threads)
    layouts = run.layouts(split)
    if resume and is_finished(path, layouts, split=bool(split), inputs=inputs):
        return
    staff = staff_for(run, machine)
    identity, kept = run.identity(layouts), {"split": bool(split), "resume": resume, "force": force}
    with (
        naming_damage(model),
        open_output(path, layouts, run=identity, inputs=inputs, **kept) as output,
    ):
        yield from _write(run, output, staff, advance)


def _write(
    run: Run, output: Output, staff: Staff, advance: Callable[[int], object]
) -> Iterator[Report]:
    """Put workers to work, one of them to check that the fold changes nothing."""
    with (
        single_threaded_blas(),
        ThreadPoolExecutor(staff.count) as pool,
        start_workers(run.model, pool, staff) as workers,
    ):
        check = pool.submit(
            check_fold, run.model, run.rotation, memory=staff.memory, threads=staff.count
        )
        for report in _reports(run, output, workers, advance):
            if check.done():
                check.result()  # refuse at once, not after hours
            yield report
        check.result()


def output_files(model: Model, plan: Plan, path: Path, split: Split) -> list[Path]:
    """The files that `quantize` writes: `path` itself, or its shards in order."""
    if not split:
        return [path]
    return shard_paths(path, len(lay_out_shards(model.metadata, infos(plan), split)))


def _reports(
    run: Run, output: Output, workers: Pool, advance: Callable[[int], object]
) -> Iterator[Report]:
    """Keep the workers fed with tiles in file order and report each tensor when it is complete."""
    done: dict[str, Report] = {}
    encoders = run.encoders(output)

    def tasks() -> Iterator[tuple[PlannedTensor, list[Callable[[], Outcome]]]]:
        for p in run.plan.stored:
            note = output.recorded(p.name)
            if note is not None:
                done[p.name] = recorded(note)
                advance(p.n_bytes)
            cut = tiles_of(p, run.rotation) if note is None else []
            yield p, workers.tasks(encoders[p.name], cut)

    groups = in_order(
        tasks(), workers.pool, ahead=2 * workers.count, on_result=lambda r: advance(r.n_bytes)
    )
    for p, results in groups:
        if p.name not in done:
            done[p.name] = report_on(p, Outcome.total(results))
            output.record(p.name, vars(done[p.name]))
        yield done.pop(p.name)
