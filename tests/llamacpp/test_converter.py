"""Classes without a row of ours: through llama.cpp's converter, or a line that says what to do.

The real converter runs in `make test-oracle`; here programs stand in for it that do what it may do.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFReader
from typer.testing import CliRunner

from tests.models.huggingface.folders import write_folder, write_json
from tests.tiny_models import DATA
from tqgguf.cli import app
from tqgguf.llamacpp import converter as module

OURS = str(DATA / "novels-5m-f16.gguf")
COPIES = f"""
import shutil, sys
shutil.copy({OURS!r}, sys.argv[sys.argv.index("--outfile") + 1])
"""


@pytest.fixture
def folder(tmp_path, tmp_path_factory, monkeypatch) -> Path:
    """A folder of a class that we do not know and llama.cpp's converter does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # no converter
    monkeypatch.delenv("TQGGUF_CONVERTER", raising=False)
    for package in ("torch", "transformers"):  # what the Python of the tests need not have
        (tmp_path / "packages").mkdir(exist_ok=True)
        (tmp_path / "packages" / f"{package}.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    return write_folder(tmp_path / "model", config={"architectures": ["MambaForCausalLM"]})


@pytest.fixture
def program(tmp_path) -> Callable[[str], Path]:
    def written(text: str) -> Path:
        path = tmp_path / "convert_hf_to_gguf.py"
        path.write_text(text)
        return path

    return written


def run(folder: Path, *options: object, code: int = 0) -> str:
    """What `quantize` prints; only its output may be left in the folder above."""
    out = folder.parent / "out.gguf"
    arguments = [
        "quantize",
        folder,
        "-o",
        out,
        "-t",
        "q8_0",
        "--rotate",
        "none",
        "--effort",
        "fast",
        *options,
    ]
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    assert out.exists() == (code == 0)
    assert not [p for p in folder.parent.iterdir() if "bf16" in p.name]
    return result.output


@pytest.mark.slow
@pytest.mark.parametrize("named", ["option", "environment", "cache"])
def test_a_class_without_a_row_goes_through_the_converter(named, folder, program, monkeypatch):
    path, options = program(COPIES), ()
    if named == "option":
        options = ("--converter", path)
    elif named == "environment":
        monkeypatch.setenv("TQGGUF_CONVERTER", str(path))
    else:
        home = Path(os.environ["XDG_CACHE_HOME"]) / "tqgguf" / "llama.cpp-0.3.36"
        home.mkdir(parents=True)
        path.rename(home / path.name)
    output = run(folder, *options)
    assert "note: " in output
    assert "MambaForCausalLM has no row of ours; llama.cpp's converter made" in output
    names = {t.name for t in GGUFReader(folder.parent / "out.gguf").tensors}
    assert names == {t.name for t in GGUFReader(OURS).tensors}


def test_without_a_converter_the_command_is_named(folder):
    output = run(folder, code=1)
    assert output.count("\n") == 1
    assert "MambaForCausalLM cannot be converted natively; llama.cpp's own converter can" in output
    assert f"convert_hf_to_gguf.py {folder} --outtype bf16" in output


def test_nothing_is_promised_for_a_class_that_nobody_knows(folder):
    write_json(folder / "config.json", {"architectures": ["NobodyForCausalLM"]})
    output = run(folder, code=1)
    assert "llama.cpp's own converter does not know it either" in output
    assert "outtype" not in output


BAD = {
    "import sys; sys.exit('ERROR:hf-to-gguf:Model X is not supported')": (
        "exited with status 1: Model X is not supported"
    ),
    "raise ValueError('first\\nlast line')": "exited with status 1: last line",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": (
        "killed by SIGKILL; the system probably ran out of memory"
    ),
    "pass": "wrote nothing",
    "import sys; open(sys.argv[sys.argv.index('--outfile') + 1], 'w').write('rubbish')": (
        "wrote no sound GGUF file"
    ),
    "import time; time.sleep(60)": "gave no sign of life for 1 s; it was killed",
}


@pytest.mark.parametrize("text", BAD)
def test_a_converter_that_fails_is_one_line(text, folder, program, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 1.0)
    output = run(folder, "--converter", program(text), code=1)
    assert output.count("\n") == 1
    assert f"{folder}: MambaForCausalLM cannot be converted natively, and" in output
    assert BAD[text] in output


def test_a_python_without_torch(folder, program, tmp_path):
    (tmp_path / "packages" / "torch.py").write_text("raise ImportError('no torch here')")
    output = run(folder, "--converter", program(COPIES), code=1)
    assert "cannot import torch and transformers: ImportError: no torch here; install" in output
    output = run(folder, "--converter", program(COPIES), "--converter-python", "/none", code=1)
    assert "/none: cannot be run" in output


def test_no_such_converter(folder, monkeypatch):
    assert "--converter: /none: no such file" in run(folder, "--converter", "/none", code=1)
    monkeypatch.setenv("TQGGUF_CONVERTER", "/nowhere")
    assert "$TQGGUF_CONVERTER: /nowhere: no such file" in run(folder, code=1)


def test_a_disk_that_is_too_small(folder, program, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    output = run(folder, "--converter", program(COPIES), code=1)
    assert "0.0 GB are free; choose another disk with --output" in output


def test_a_converter_that_is_not_needed_is_mentioned(tmp_path, program):
    folder = write_folder(tmp_path / "model")
    output = run(folder, "--converter", program("raise SystemExit(9)"))
    assert "converted natively, so --converter is not used" in output


def test_an_output_that_exists_is_refused_before_the_conversion(folder, program):
    out = folder.parent / "out.gguf"
    out.write_text("mine")
    arguments = ["quantize", folder, "-o", out, "--converter", program("raise SystemExit(9)")]
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert "exists already" in result.output
    assert out.read_text() == "mine"


def test_an_interrupted_run_goes_on_without_converting_again(folder, program, monkeypatch):
    """The run stops after the conversion; --resume takes the file that it left."""
    path = program(COPIES)
    out = folder.parent / "out.gguf"
    arguments = [
        *map(str, ("quantize", folder, "-o", out, "--converter", path)),
        "--effort",
        "fast",
    ]
    monkeypatch.setattr("tqgguf.api.prepare", lambda *_, **__: sys.exit(130))
    assert CliRunner().invoke(app, arguments).exit_code == 130
    assert module.temporary(folder, out).is_file()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
    path.write_text("raise SystemExit('ran again')")
    assert "ran again" not in run(folder, "--converter", path, "--resume", "--rotate", "none")


def test_a_ladder_takes_what_the_converter_makes(folder, program):
    """The files are called after the folder, the converter's goes, and the command goes on."""
    out, options = (
        folder.parent / "out",
        ("--types", "q8_0", "--effort", "fast", "--rotate", "none"),
    )
    ladder = [str(a) for a in ("ladder", folder, "-o", out, *options)]
    made = [*ladder, "--converter", str(program(COPIES))]
    for _ in range(2):
        result = CliRunner().invoke(app, [*made, "--quiet"])
        assert result.exit_code == 0, (result.output, result.exception)
        assert [p.name for p in out.glob("*.gguf")] == ["model-Q8_0.gguf"]
        assert not [p for p in folder.parent.iterdir() if "bf16" in p.name]
    assert "--converter convert_hf_to_gguf.py" in (out / "README.md").read_text()


def test_a_ladder_is_of_one_tokenizer(tmp_path):
    folder, out = write_folder(tmp_path / "model"), tmp_path / "out"
    options = ("--types", "q8_0", "--effort", "fast", "--rotate", "none", "--quiet")
    ladder = [str(a) for a in ("ladder", folder, "-o", out, *options)]
    assert CliRunner().invoke(app, [*ladder, "--vocab-from", OURS]).exit_code == 0
    refused = CliRunner().invoke(app, ladder)
    assert refused.exit_code == 1
    assert "holds another ladder: tokenizer was " in refused.output
