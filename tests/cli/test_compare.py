"""Stories of `tqgguf compare`."""

import json

import pytest

from tests.cli.story import fails, run, succeeds
from tqgguf.measure.compare import compare
from tqgguf.models import open_model


@pytest.fixture(scope="module")
def files(stories, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    for rotate in ("fused", "none"):
        succeeds(
            *("quantize", stories, "--type", "q4_0", "--rotate", rotate),
            *("-o", folder / f"{rotate}.gguf"),
        )
    return folder / "fused.gguf", folder / "none.gguf"


def test_compare_has_the_contracts_keys_and_the_librarys_numbers(stories, files):
    document = json.loads(succeeds("compare", stories, *files, "--json"))
    original = open_model(stories)
    for found, path in zip(document["models"], files, strict=True):
        expected = compare(original, open_model(path))
        assert found["path"] == str(path)
        assert found["bytes"] == path.stat().st_size
        assert found["bpw"] == expected.bpw
        assert found["rel_mse"] == expected.rel_mse
        assert found["rel_mse_seen"] == expected.rel_mse_seen
        for row, tensor in zip(found["tensors"], expected.tensors, strict=True):
            assert row["name"] == tensor.name
            assert (row["type"], row["bpw"]) == (tensor.type, tensor.bpw)
            assert (row["mse"], row["cosine"]) == (tensor.mse, tensor.cosine)
            assert row["max_abs_err"] == tensor.max_abs_err
            assert row["sqnr_db"] == (tensor.sqnr_db if tensor.rel_mse else None)


def test_compare_puts_totals_side_by_side(stories, files):
    text = succeeds("compare", stories, *files, "--top", 2)
    totals = text[text.index("Totals") :]
    assert "fused.gguf" in totals
    assert "none.gguf" in totals
    assert "more tensors (--top 0 shows all)" in text
    assert "tensors are exact" in text
    assert "| fused.gguf | fused |" in succeeds("compare", stories, *files, "--markdown")


def test_mistakes_get_one_line(stories, novels, tmp_path):
    fails("compare", stories, novels, says="is not in the original")
    fails("compare", stories, tmp_path / "none.gguf", says="no such file")
    empty = tmp_path / "empty.gguf"
    empty.write_bytes(b"")
    fails("compare", stories, empty, says="empty.gguf")


@pytest.mark.parametrize("forms", [("--json", "--markdown"), ("--markdown", "--json")])
def test_two_forms_of_one_result_are_refused(stories, forms):
    result = run("compare", stories, stories, *forms)
    assert result.exit_code == 2
    assert "--json and --markdown: give one of them" in result.stderr
