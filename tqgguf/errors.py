"""Every failure tqgguf reports to a user.

TqggufError                one line: subject, fact, expectation, cure; exit status 1
├── FileFormatError        a file is not what its name or its header says
├── ShapeError             a tensor cannot be cut into whole blocks
├── WeightError            weights that no type can hold: NaN, Inf, beyond float16 scales
├── UnsupportedModelError  a graph that cannot be folded, converted or run here
│   └── UnknownClassError  ... because Hugging Face's class of it has no row in our table
├── PlanError              options that contradict the model or each other
├── DeviceError            a graphics card that cannot be used
├── MismatchError          a file is not what its original would have become
├── HubError               a repository of the hub that cannot be read or written
├── OutputError            an output that must not or cannot be written
└── ToolError              llama.cpp's programs are missing or failed

Programmers' mistakes stay ValueError or AssertionError.
"""


class TqggufError(Exception):
    """A problem the user can act on; the command line prints its text and exits with 1."""


class FileFormatError(TqggufError):
    """A file is not what its name or its header says."""


class ShapeError(TqggufError):
    """A tensor cannot be cut into whole blocks."""


class WeightError(TqggufError):
    """Weights that no type can hold: NaN, Inf, or beyond the range of a float16 scale."""


class UnsupportedModelError(TqggufError):
    """A graph that cannot be folded, converted or run here."""


class UnknownClassError(UnsupportedModelError):
    """A Hugging Face class that is not converted natively; official: llama.cpp's converter can."""

    def __init__(self, text: str, *, name: str, official: bool) -> None:
        super().__init__(text)
        self.name, self.official = name, official


class PlanError(TqggufError):
    """Options that contradict the model or each other."""


class DeviceError(TqggufError):
    """A graphics card that is not there or cannot be used."""


class HubError(TqggufError):
    """A repository of the hub that cannot be read or written."""


class OutputError(TqggufError):
    """An output that must not or cannot be written."""


class ToolError(TqggufError):
    """llama.cpp's programs are missing or failed."""


class MismatchError(TqggufError):
    """A file is not what its original would have become."""
