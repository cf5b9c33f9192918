"""The record of a ladder: what was made and measured in a folder, and what it holds.

ladder.json is written after every file and every measurement, so that an interrupted run goes on
where it stopped. A file counts as finished while its checksum is the recorded one.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqgguf.errors import OutputError
from tqgguf.output.whole import whole_file

RECORD, CARD, SUMS, PICTURE = "ladder.json", "README.md", "SHA256SUMS", "front.svg"
_VERSION = 1


@dataclass(frozen=True)
class Finished:
    """A file of a ladder; bytes are the file's, bpw bits per weight of the original.

    told: what it was calibrated on. quality: of `eval`'s columns; speed: tokens per second, prompt
    and decode; both None where not measured.
    """

    asked: str
    file: str
    type: str
    bytes: int
    bpw: float
    sha256: str
    seconds: float
    options: str
    told: tuple[str, ...] = ()
    quality: Mapping[str, Any] | None = None
    speed: Mapping[str, Any] | None = None

    @property
    def is_sized(self) -> bool:
        """Whether it was asked for by its size."""
        return "--target-size" in self.options


@dataclass
class Ladder:
    """A folder and its record.

    made_by: what all files share, a text for each aspect. rotation: the mode of all files that are
    rounded, and why. original, judged: what the files were measured against, and how. imatrix,
    card: names and checksums of what was written beside them.
    """

    folder: Path
    made_by: dict[str, str]
    rotation: str = ""
    why: str = ""
    files: dict[str, Finished] = field(default_factory=dict)
    original: dict[str, Any] = field(default_factory=dict)
    judged: dict[str, Any] = field(default_factory=dict)
    timed: dict[str, Any] = field(default_factory=dict)
    imatrix: dict[str, str] = field(default_factory=dict)
    card: str = ""

    def save(self) -> None:
        """Write the record. Raises OSError."""
        values = {k: v for k, v in vars(self).items() if k not in ("folder", "files")}
        values |= {"ladder": _VERSION, "files": [asdict(f) for f in self.files.values()]}
        with whole_file(self.folder / RECORD) as scratch:
            scratch.write_text(json.dumps(values, indent=2) + "\n")

    def add(self, file: Finished) -> None:
        """Note a file, or what was measured of it."""
        self.files[file.asked] = file
        self.save()

    def is_whole(self, name: str, sha256: str) -> bool:
        """Whether a file is there and still what was recorded."""
        path = self.folder / name
        return path.is_file() and checksum(path) == sha256

    def ordered(self) -> list[Finished]:
        """The files, smallest first."""
        return sorted(self.files.values(), key=lambda f: f.bytes)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_ladder(folder: Path, made_by: dict[str, str]) -> Ladder:
    """The ladder of a folder, begun if the folder is empty or absent.

    One of another kind of which no file was ever finished gives way. Raises OutputError where the
    folder holds another ladder, or something else.
    """
    record = folder / RECORD
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: file exists and is no folder; choose another with --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = _read(record) if record.is_file() else None
        if known is not None and (known.files or known.made_by == made_by):
            return _checked(known, made_by)
        if known is not None:
            _clear(known)
        found = min((p.name for p in folder.iterdir()), default=None)
    except OSError as error:
        raise OutputError(f"{folder}: {(error.strerror or str(error)).lower()}") from None
    if found is not None:
        raise OutputError(
            f"{folder}: holds {found} and no {RECORD}; expected an empty folder, or one of a ladder"
        )
    ladder = Ladder(folder, made_by)
    ladder.save()
    return ladder


def _clear(ladder: Ladder) -> None:
    """Remove what a ladder without files left."""
    left = [RECORD, *filter(None, [ladder.imatrix.get("file")])]
    unfinished = (ladder.folder.glob(f"*.partial{ending}") for ending in ("", ".journal"))
    for path in (*(ladder.folder / name for name in left), *(p for g in unfinished for p in g)):
        path.unlink(missing_ok=True)


def _read(record: Path) -> Ladder:
    try:
        values = json.loads(record.read_text())
        if values.pop("ladder") != _VERSION:
            raise ValueError("of another version of tqgguf")
        files = [Finished(**{**f, "told": tuple(f["told"])}) for f in values.pop("files")]
        return Ladder(record.parent, files={f.asked: f for f in files}, **values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OutputError(
            f"{record}: cannot be read ({error}); begin anew in another folder with --output"
        ) from None


def _checked(ladder: Ladder, made_by: Mapping[str, str]) -> Ladder:
    """Refuse a ladder that other options or another model made: its files would not compare."""
    for key in dict.fromkeys([*made_by, *ladder.made_by]):
        was, now = ladder.made_by.get(key, "unknown"), made_by.get(key, "unknown")
        if was != now:
            raise OutputError(
                f"{ladder.folder}: holds another ladder: {key} was {was} and is {now} now; "
                "choose another folder with --output"
            )
    return ladder


def check_card(ladder: Ladder, *, force: bool) -> None:
    """Refuse to write over a card that somebody edited. Raises OutputError."""
    path = ladder.folder / CARD
    if path.exists() and not force and checksum(path) != ladder.card:
        raise OutputError(
            f"{path}: was edited since it was made; move it, or have it written anew with --force"
        )


def write_sums(ladder: Ladder) -> None:
    """Write SHA256SUMS as sha256sum does: the model files, and the importance matrix."""
    sums = {f.file: f.sha256 for f in ladder.ordered()}
    if ladder.imatrix:
        sums[ladder.imatrix["file"]] = ladder.imatrix["sha256"]
    with whole_file(ladder.folder / SUMS) as scratch:
        scratch.write_text("".join(f"{sha256}  {name}\n" for name, sha256 in sums.items()))


def write_card(ladder: Ladder, text: str) -> None:
    """Write the card and note its checksum, by which an edited one is known."""
    path = ladder.folder / CARD
    with whole_file(path) as scratch:
        scratch.write_text(text)
    ladder.card = checksum(path)
    ladder.save()


def publishable(ladder: Ladder) -> list[str]:
    """The names of the files that go online."""
    names = [f.file for f in ladder.ordered()]
    names += [ladder.imatrix["file"]] if ladder.imatrix else []
    beside = [name for name in (SUMS, CARD, PICTURE) if (ladder.folder / name).is_file()]
    return [*names, *beside]
