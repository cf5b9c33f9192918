"""Names on the hub, against a small one on loopback."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cli.story import fails
from tests.hub_server import TOKEN, Hub, serving
from tqgguf.models.download import HubName, hub_name

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "data" / "novels-5m"
CARD = b"---\nlicense: mit\nlanguage:\n- en\ntags:\n- novels\nbase_model: org/older\n---\nA card.\n"
UNWANTED = ("pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx", "picture.png")
PLAN = ("-t", "q8_0", "--rotate", "none", "--effort", "fast")


@pytest.fixture
def hub(stories):
    novels = {p.name: p.read_bytes() for p in FOLDER.iterdir()} | dict.fromkeys(UNWANTED, b"x")
    novels["README.md"] = CARD
    shelf = {"org/novels": novels, "org/gated": novels, "org/g": {"t.gguf": stories.read_bytes()}}
    with serving(Hub(shelf, gated={"org/gated"})) as found:
        yield found


def environment(hub, cache, **more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    told = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    told |= {"HF_HUB_VERBOSITY": "error"}  # its logger outlives the stream of a runner
    return kept | told | {"PYTHONPATH": str(ROOT)} | more


def client(hub, folder, *commands, **more):
    """The results of commands that a process runs one after the other, in a folder."""
    given = json.dumps([[str(a) for a in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-m", "tests.hub_client", given],
        env=environment(hub, folder / "home", **more),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_is_a_name_on_the_hub():
    assert hub_name("org/name@v1") == hub_name("hf://org/name@v1") == HubName("org/name", "v1")
    assert hub_name(str(Path("hf://o/n@main/a/x.gguf"))) == HubName("o/n", "main", "a/x.gguf")
    for path in ("name", "/org/name", "./org/name", "a/b/c", "folder/x.gguf", "x/y.safetensors"):
        assert hub_name(path) is None
    for text in ("org/name", "org/name@v1", "hf://o/n/x.gguf"):
        assert str(hub_name(text)) == text


def test_without_the_extra_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    fails("plan", "org/none", says="org/none: no such file or folder, and a name on the hub needs")
    fails("plan", "hf://org/none", says="pip install 'tqgguf[hub]'")


@pytest.mark.slow
def test_a_model_of_the_hub(hub, tmp_path):
    """Fetched once, and only what is needed; named after its repository; offline afterwards."""
    [(code, plan, said)] = client(hub, tmp_path, ("plan", "org/novels", *PLAN, "--json"))
    assert code == 0, said
    assert json.loads(plan)["output"] == str(tmp_path / "novels-Q8_0.gguf")
    parts = [path.partition("/resolve/")[2] for _, path in hub.asked]
    assert {part.partition("/")[2] for part in parts if part} == {p.name for p in FOLDER.iterdir()}

    before = len(hub.asked)
    made = ("quantize", "org/novels", *PLAN, "-q")
    there = ("ladder", "org/novels", "-o", "out", "--types", "q8_0", *PLAN[2:], "-q")
    absent = ("plan", "org/other", *PLAN)
    first, second, third = client(hub, tmp_path, made, there, absent, HF_HUB_OFFLINE="1")
    assert len(hub.asked) == before
    assert (first[0], first[2]) == (second[0], second[2]) == (0, "")
    ladder = tmp_path / "out" / "novels-Q8_0.gguf"
    assert (tmp_path / "novels-Q8_0.gguf").read_bytes() == ladder.read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["base_model"] == "org/novels"  # not what that was trained from
    assert (front["license"], front["language"]) == ("mit", ["en"])
    assert front["tags"] == ["gguf", "tqgguf", "novels"]
    assert "\ntqgguf quantize org/novels -o novels-Q8_0.gguf --type q8_0 --rotate none" in card
    assert third[0] == 1
    assert "not all of it is in the hub's cache; the hub cannot be reached" in third[2]


@pytest.mark.slow
def test_what_the_hub_refuses_is_one_line(hub, tmp_path):
    (tmp_path / "my" / "model").mkdir(parents=True)
    said = {
        "org/none": "no repository org/none on the hub, or a private one",
        "org/gated": "org/gated is gated and there is no token",
        "org/novels@v9": "org/novels has no revision v9",
        "org/g": "has no .safetensors file; it has hf://org/g/t.gguf, 1 GGUF files",
        "hf://org/g/u.gguf": "there is no such file",
        "my/model": "config.json",  # the folder here is meant
        "hf://org/g@main/t.gguf": "",
    }
    results = client(hub, tmp_path, *(("plan", name, *PLAN) for name in said))
    for (name, line), (code, _, stderr) in zip(said.items(), results, strict=True):
        shown = [x for x in stderr.strip().splitlines() if not x.startswith("note: ")]
        errors = [x for x in shown if x.startswith("error: ")]
        assert (code, len(errors)) == ((1, 1) if line else (0, 0)), (name, stderr)
        assert line in "".join(errors), name
        assert "Traceback" not in stderr
    assert "note: my/model: the local path is meant; hf://my/model" in results[-2][2]
    [(code, _, stderr)] = client(hub, tmp_path, ("plan", "org/gated", *PLAN), HF_TOKEN=TOKEN)
    assert code == 0, stderr


@pytest.mark.slow
def test_a_ladder_is_uploaded(hub, stories, tmp_path):
    quick = ("--types", "q8_0", "--effort", "fast", "--rotate", "none", "--upload", "me/out")
    ladder = ("ladder", stories, "-o", "out", *quick)
    untold, mute = client(hub, tmp_path, (*ladder, "--yes"), ladder)
    assert (untold[0], mute[0]) == (1, 2)
    assert "--upload me/out: there is no token" in untold[2]
    assert "add --yes" in mute[2]
    assert not (tmp_path / "out").exists()  # found before the work

    assert b"nothing was sent" in on_a_terminal(hub, tmp_path, ladder, b"n\n")
    assert "me/out" not in hub.repositories
    [(code, said, stderr)] = client(
        hub, tmp_path, (*ladder, "--yes", "--json", "-q"), HF_TOKEN=TOKEN
    )
    assert code == 0, stderr
    assert json.loads(said)["commit"].startswith(f"{hub.url}/me/out/commit/")
    sent = hub.repositories["me/out"]
    assert set(sent) == {p.name for p in (tmp_path / "out").iterdir()} - {"ladder.json"}
    assert all(data == (tmp_path / "out" / name).read_bytes() for name, data in sent.items())
    assert len(hub.commits) == 1


def on_a_terminal(hub, folder, command, answer):
    """What a command says to stderr that somebody at a terminal answers."""
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    done = subprocess.run(
        [sys.executable, "-m", "tqgguf", *map(str, command)],
        env=environment(hub, folder / "home", HF_TOKEN=TOKEN),
        cwd=folder,
        stdin=theirs,
        capture_output=True,
        check=True,
    )
    os.close(ours)
    os.close(theirs)
    assert b"Send 3 files, 0.3 MB, to me/out? [y/N]" in done.stderr
    return done.stderr
