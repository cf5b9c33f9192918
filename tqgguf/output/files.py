"""Write files in place under `NAME.partial` and give them their names only when they are whole.

A journal beside the partial file records every finished tensor with its checksum, so that a run
that was cut off goes on where it stopped. The order that makes this safe against loss of power:
a tensor's bytes reach the disk before its record does, all of them before the final name.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tqgguf.errors import OutputError, ToolError, TqggufError
from tqgguf.models.gguf import SHARD_NAME
from tqgguf.output.disk import Slot, reserve, sync, sync_folder
from tqgguf.output.journal import Journal, Record, journal_path, open_journal
from tqgguf.output.layout import Layout
from tqgguf.output.targets import check_sidecars, check_targets

_READERS = 4  # a checksum takes 1 ns a byte, as long as 16 processes do
_SYNC_SHARE = 10  # wait this many times as long between two syncs as a sync takes


def partial_path(path: Path) -> Path:
    """Where an unfinished output lives."""
    return path.with_name(path.name + ".partial")


def shard_paths(path: Path, count: int | None) -> list[Path]:
    """The files of an output: itself, or `count` shards named as llama-gguf-split names them."""
    if count is None:
        return [path]
    match = SHARD_NAME.match(path.name)
    stem = match["stem"] if match else path.name.removesuffix(".gguf")
    return [path.with_name(f"{stem}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]


def old_shards(path: Path, ending: str = "") -> list[Path]:
    """The shards of an output that exist, of whatever count; ending: of their file names."""
    stem = shard_paths(path, 1)[0].name.removesuffix("-00001-of-00001.gguf")
    found = path.parent.glob(f"*.gguf{ending}") if path.parent.is_dir() else []
    matches = ((p, SHARD_NAME.match(p.name.removesuffix(ending))) for p in found)
    return sorted(p for p, match in matches if match and match["stem"] == stem)


def check_output(
    path: Path,
    *,
    inputs: Sequence[Path],
    force: bool,
    count: int | None = None,
    others: Mapping[str, Path] | None = None,
) -> None:
    """Refuse an output that must not be written; see `check_targets`. Raises OutputError.

    count: the number of shards; None is one plain file. others: further files by their options.
    """
    files = _files(path, count)
    rest = {option: [file] for option, file in (others or {}).items()}
    check_targets({"--output": files, **rest}, inputs=inputs, force=force)
    partial = [partial_path(file) for file in shard_paths(path, count)]
    sidecars = [*partial, journal_path(partial_path(path))]
    check_sidecars(sidecars, inputs=inputs)
    beside = {file.resolve() for file in sidecars}
    for option, file in (others or {}).items():
        if file.resolve() in beside:
            raise OutputError(
                f"{file}: the unfinished output has that name; choose another with {option}"
            )


def _files(path: Path, count: int | None) -> list[Path]:
    """What a run replaces: its outputs, and shards of an earlier run with another count."""
    files = shard_paths(path, count)
    return files if count is None else [*files, *(p for p in old_shards(path) if p not in files)]


@dataclass(frozen=True)
class _Shard:
    """One file of the output."""

    path: Path
    layout: Layout

    @cached_property
    def partial(self) -> Path:
        return partial_path(self.path)

    def slot(self, name: str) -> Slot:
        """Where a tensor is to be written, also by processes that began in another folder."""
        info, offset = self.layout.tensors[name], self.layout.offsets[name]
        return Slot(self._resolved, offset, info.row_bytes, info.n_bytes)

    @cached_property
    def _resolved(self) -> Path:
        return self.partial.resolve()

    def is_complete(self) -> bool:
        """Whether a file with the final name has this very header and size."""
        if not self.path.is_file() or self.path.stat().st_size != self.layout.size:
            return False
        with self.path.open("rb") as file:
            return file.read(len(self.layout.header)) == self.layout.header

    def reopen(self) -> None:
        """Go on with what is there, also where the run died while giving names."""
        if not self.partial.exists() and self.is_complete():
            self.path.replace(self.partial)
        self._reserve("r+b" if self.partial.exists() else "w+b")

    def create(self) -> None:
        """Begin an empty file: what is between tensors must be zeros."""
        self._reserve("w+b")

    def _reserve(self, mode: str) -> None:
        """Take the whole space now, so that a full disk is found before the work, not after."""
        with self.partial.open(mode) as file:
            file.write(self.layout.header)
            file.flush()
            reserve(file.fileno(), self.layout.size)
            file.truncate(self.layout.size)


class Output:
    """The unfinished files of a run and their journal."""

    def __init__(self, shards: Sequence[_Shard], journal: Journal) -> None:
        self._shards, self.journal = shards, journal
        self.is_mine = False  # whether the files are this run's, to be kept or removed
        self._pending: list[Record] = []
        self._synced, self._cost = time.monotonic(), 0.0
        self._readers = ThreadPoolExecutor(_READERS)  # read back while others go on working,
        self._scribe = ThreadPoolExecutor(1)  # and so is noted and synced what they read
        self._noted: list[Future[None]] = []

    def create(self, run: Mapping[str, str], *, leftovers: Sequence[Path] = ()) -> None:
        """Begin a new run in place of whatever is there."""
        self.is_mine = True
        self.journal.begin(run)
        for path in leftovers:
            path.unlink(missing_ok=True)
        for shard in self._shards:
            shard.create()
        sync_folder(self.journal.path.parent)

    def reopen(self) -> None:
        """Continue the run that the journal tells of."""
        self.is_mine = True
        for shard in self._shards:
            shard.reopen()

    def slot(self, name: str) -> Slot:
        """Where a tensor is to be written."""
        return next(s for s in self._shards if name in s.layout.tensors).slot(name)

    def recorded(self, name: str) -> Record | None:
        """What `record` noted of a tensor in an earlier run, if its bytes are still those."""
        record = self.journal.records.get(name)
        if record is None or record["checksum"] != self.slot(name).checksum():
            return None
        return dict(record["note"])

    def record(self, name: str, note: Record) -> None:
        """Note that a tensor is written; the note reaches the disk a moment later.

        Raises what went wrong with notes before this one.
        """
        for noted in self._noted:
            if noted.done():
                noted.result()
        self._noted = [noted for noted in self._noted if not noted.done()]
        checksum = self._readers.submit(self.slot(name).checksum)
        self._noted.append(self._scribe.submit(self._note, name, checksum, note))

    def _note(self, name: str, checksum: Future[str], note: Record) -> None:
        self._pending.append({"tensor": name, "checksum": checksum.result(), "note": note})
        if time.monotonic() - self._synced >= self._cost * _SYNC_SHARE:
            self.sync()

    def sync(self) -> None:
        """Bring all tensors recorded so far to the disk, then their records."""
        began = time.monotonic()
        if self._pending:
            self._sync_files()
            self.journal.append(self._pending)
            self.journal.records |= {line["tensor"]: line for line in self._pending}
            self._pending = []
        self._synced = time.monotonic()
        self._cost = self._synced - began

    def _settle(self) -> None:
        """Wait for all notes."""
        self._stop()
        for noted in self._noted:
            noted.result()

    def _stop(self) -> None:
        """Let readers and scribe finish what they were given."""
        self._scribe.shutdown()
        self._readers.shutdown()

    def finish(self, replaces: Sequence[Path]) -> None:
        """Give the files their names, the first shard last, so that no loader sees a mixture."""
        self._settle()
        self.sync()
        self._sync_files()
        ours = [shard.path for shard in self._shards]
        for old in replaces:
            if len(ours) > 1 or old not in ours:
                old.unlink(missing_ok=True)
        for shard in reversed(self._shards):
            shard.partial.replace(shard.path)
        sync_folder(self._shards[0].path.parent)
        self.journal.delete()

    def set_aside(self) -> int:
        """After a failure: keep what can be resumed, and say how many tensors that is."""
        self._stop()
        if self._pending:
            self.sync()
        if not self.journal.records:
            self.discard()
        return len(self.journal.records)

    def discard(self) -> None:
        """Remove the unfinished files and the journal."""
        self._scribe.shutdown(cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)
        for shard in self._shards:
            shard.partial.unlink(missing_ok=True)
        self.journal.delete()

    def _sync_files(self) -> None:
        for shard in self._shards:
            sync(shard.partial)


def is_finished(
    path: Path, layouts: Sequence[Layout], *, split: bool, inputs: Sequence[Path]
) -> bool:
    """Whether an earlier run wrote this very output: same headers and sizes, newer than its input.

    What a repeated --resume finds when the run before had ended after all.
    """
    shards = _all_shards(path, layouts, split=split)
    if journal_path(partial_path(path)).exists() or not all(s.is_complete() for s in shards):
        return False
    newest = max((p.stat().st_mtime_ns for p in inputs if p.exists()), default=0)
    return all(shard.path.stat().st_mtime_ns >= newest for shard in shards)


@contextmanager
def open_output(
    path: Path,
    layouts: Sequence[Layout],
    *,
    run: Mapping[str, str],
    inputs: Sequence[Path] = (),
    split: bool = False,
    resume: bool = False,
    force: bool = False,
) -> Iterator[Output]:
    """Create the files at their full size, or reopen those of an interrupted run of the same kind.

    They get their names on success. What a crash, Ctrl-C or a full disk leaves can be resumed;
    another TqggufError would come again, so it leaves nothing. run: see Journal. Raises OutputError
    where `check_output` does, where the disk is full, and where an unfinished run is neither
    resumed nor given up with force.
    """
    count = len(layouts) if split else None
    check_output(path, inputs=inputs, force=force or (resume and _has_journal(path)), count=count)
    size = sum(layout.size for layout in layouts)
    try:
        with open_journal(journal_path(partial_path(path))) as journal:
            output = Output(_all_shards(path, layouts, split=split), journal)
            with _accidents(output, path, size):
                _settle(output, path, run, resume=resume, force=force)
                yield output
                output.finish(_files(path, count))
    except OSError as error:
        raise OutputError(f"{path}: {_reason(error, size)}") from error


@contextmanager
def _accidents(output: Output, path: Path, size: int) -> Iterator[None]:
    """Keep what can be resumed after an accident, and remove what cannot."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: {_reason(error, size)}{_set_aside(output)}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{path}: interrupted{_set_aside(output)}") from None
    except ToolError as error:
        raise ToolError(f"{error}{_set_aside(output)}") from None
    except TqggufError:
        if output.is_mine:
            output.discard()
        raise
    except BaseException:
        _set_aside(output)
        raise


def _settle(
    output: Output, path: Path, run: Mapping[str, str], *, resume: bool, force: bool
) -> None:
    """Decide what becomes of an earlier, unfinished run: OutputError where the user has to."""
    kept = len(output.journal.records)
    if kept and resume:
        output.journal.check(run)
        output.reopen()
        return
    if kept and not force:
        raise OutputError(
            f"{path}: an unfinished run left {kept} tensors; continue it with --resume or start "
            "over with --force"
        )
    output.create(run, leftovers=[partial_path(path), *old_shards(path, ".partial")])


def _all_shards(path: Path, layouts: Sequence[Layout], *, split: bool) -> list[_Shard]:
    paths = shard_paths(path, len(layouts) if split else None)
    return [_Shard(p, layout) for p, layout in zip(paths, layouts, strict=True)]


def _has_journal(path: Path) -> bool:
    return journal_path(partial_path(path)).exists()


def _set_aside(output: Output) -> str:
    """Keep what can be resumed, and say so."""
    if not output.is_mine:
        return ""
    try:
        kept = output.set_aside()
    except OSError:  # no room for the last records either: those of before are there
        kept = len(output.journal.records)
    return f"; {kept} tensors are kept, continue with --resume" if kept else ""


def _reason(error: OSError, size: int) -> str:
    return f"{(error.strerror or str(error)).lower()} (the output takes {size / 1e6:,.1f} MB)"
