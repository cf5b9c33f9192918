"""What a file is by its first bytes, where it is not what its name says."""

from pathlib import Path

_READ = 512
# How files begin -> what they are, and what to do about it.
_BEGINNINGS = (
    (
        (b"version https://git-lfs",),
        "a Git LFS pointer, not the file itself; fetch that with `git lfs pull`",
    ),
    (
        (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        "a PyTorch checkpoint; save the model again with transformers' save_pretrained, which "
        "writes .safetensors",
    ),
    ((b"GGUF",), "a GGUF file; give it a name that ends in .gguf"),
    ((b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML"), "a web page; download the file again"),
    ((b"Entry not found", b"Invalid username", b"Access to model"), "an error text of a server"),
)


def what_it_is(path: Path) -> str | None:
    """A file's true kind and the cure, or None if its first bytes say nothing of the sort."""
    try:
        with path.open("rb") as file:
            begin = file.read(_READ)
    except OSError:
        return None
    if not begin:
        return "an empty file; download it again"
    if begin[8:9] == b"{" and b'"dtype"' in begin and path.suffix != ".safetensors":
        return "a safetensors file; give it a name that ends in .safetensors"
    kinds = (kind for starts, kind in _BEGINNINGS if begin.startswith(starts))
    return next((kind for kind in kinds if not kind.endswith(f"in {path.suffix}")), None)
