"""`compare`: every number recomputed from the decoded file, rotations undone by dense matrices."""

import gguf
import numpy as np
import pytest

from tests.measure.models import model, residual_rotation
from tqgguf.errors import FileFormatError, PlanError, ShapeError
from tqgguf.measure.compare import compare
from tqgguf.models import open_model
from tqgguf.pipeline import convert
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan


@pytest.fixture(scope="module")
def original(novels):
    return open_model(novels)


def quantized(original, path, **options):
    assert list(
        convert(original, make_plan(original, Options(**{"rotate": "fused"} | options)), path)
    )
    return open_model(path)


@pytest.fixture(scope="module")
def fused(original, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "fused.gguf"
    return quantized(original, path, type="q4_k", rotate="fused")


def decoded(path):
    """Every tensor as gguf-py reads it."""
    reader = gguf.GGUFReader(path)
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1])
        for t in reader.tensors
    }


def check(found, x, y, gain=None):
    """All figures of one tensor from their definitions in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    assert found.mse == pytest.approx(np.mean((x - y) ** 2), rel=1e-3)
    assert found.rel_mse == pytest.approx(np.sum((x - y) ** 2) / np.sum(x**2), rel=1e-3)
    assert found.sqnr_db == pytest.approx(-10 * np.log10(found.rel_mse))
    cosine = np.sum(x * y) / np.sqrt(np.sum(x**2) * np.sum(y**2))
    assert found.cosine == pytest.approx(cosine, rel=1e-5)
    assert found.max_abs_err == pytest.approx(np.abs(x - y).max(), rel=1e-3)
    gain = np.ones(x.shape[-1]) if gain is None else gain.astype(np.float64)
    seen = np.sum(((x - y) * gain) ** 2) / np.sum((x * gain) ** 2)
    assert found.rel_mse_seen == pytest.approx(seen, rel=1e-3)


@pytest.mark.slow
def test_a_rotated_file_is_compared_in_the_originals_basis(original, fused):
    found = {t.name: t for t in compare(original, fused).tensors}
    file, q = decoded(fused.path), residual_rotation(256)
    read = {name: t.read() for name, t in original.tensors.items()}
    embedding = read["token_embd.weight"]
    check(found["token_embd.weight"], embedding, file["token_embd.weight"] @ q.T)
    gain = read["output_norm.weight"]
    check(found["output.weight"], embedding, file["output.weight"] @ q.T / gain, gain)
    down = "blk.3.ffn_down.weight"
    check(found[down], read[down], q @ file[down])
    up, gain = "blk.3.ffn_up.weight", read["blk.3.ffn_norm.weight"]
    check(found[up], read[up], file[up] @ q.T / gain, gain)
    assert found[up].type == "Q4_K"
    assert found[up].bpw == 4.5


def test_totals_are_means_over_the_weights_of_matrices(original, fused):
    report = compare(original, fused)
    matrices = [t for t in report.tensors if len(t.shape) == 2]
    sizes = [t.size for t in matrices]
    assert report.rel_mse == pytest.approx(np.average([t.rel_mse for t in matrices], weights=sizes))
    assert report.rel_mse_seen == pytest.approx(
        np.average([t.rel_mse_seen for t in matrices], weights=sizes)
    )
    assert report.max_abs_err == max(t.max_abs_err for t in report.tensors)
    assert report.rotation == "fused"
    assert report.n_bytes == fused.path.stat().st_size
    weights = sum(t.size for t in original.tensors.values())
    stored = sum(t.stored(0, t.n_rows).nbytes for t in fused.tensors.values())
    assert report.bpw == pytest.approx(8 * stored / weights)


def test_any_quantizers_file_will_do(original, tmp_path):
    """Written and quantized by gguf-py alone."""
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, t in original.tensors.items():
        kind = gguf.GGMLQuantizationType.Q4_0 if len(t.shape) == 2 else None
        data = t.read()
        if kind:
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    report = compare(original, open_model(path))
    file = decoded(path)
    assert report.rotation == "none"
    for found in report.tensors:
        _, layer, role = (*found.name.split("."), "", "")[:3]
        norm = {"attn_q": "attn_norm", "attn_k": "attn_norm", "attn_v": "attn_norm"}.get(role)
        norm = {"ffn_gate": "ffn_norm", "ffn_up": "ffn_norm"}.get(role, norm)
        gain = original.tensors[f"blk.{layer}.{norm}.weight"].read() if norm else None
        if len(found.shape) == 2:
            check(found, original.tensors[found.name].read(), file[found.name], gain)
        else:
            assert found.rel_mse == 0


@pytest.mark.slow
@pytest.mark.parametrize("rotate", ["none", "fused", "tensor"])
def test_an_f32_file_is_exact_whatever_its_rotation(original, tmp_path, rotate):
    report = compare(original, quantized(original, tmp_path / "x.gguf", type="f32", rotate=rotate))
    assert report.rel_mse_seen < 1e-12
    assert all(t.cosine == pytest.approx(1, abs=1e-6) for t in report.tensors)


def test_the_same_model_has_no_error_and_an_infinite_ratio(original):
    report = compare(original, original)
    assert report.rel_mse == report.max_abs_err == 0
    assert report.sqnr_db == np.inf
    assert report.bpw == pytest.approx(16, rel=1e-3)


@pytest.mark.usefixtures("two_blas_threads")
def test_the_threads_change_nothing(original, fused):
    assert compare(original, fused, threads=1) == compare(original, fused, threads=2)


def test_models_that_do_not_belong_together_are_refused_in_one_line():
    a = {"x.weight": np.ones((2, 4)), "y.weight": np.ones(4)}
    with pytest.raises(FileFormatError, match=r"y\.weight of memory\.gguf is missing"):
        compare(model(a), model({"x.weight": a["x.weight"]}))
    with pytest.raises(FileFormatError, match=r"y\.weight is not in the original"):
        compare(model({"x.weight": a["x.weight"]}), model(a))
    with pytest.raises(ShapeError, match=r"x\.weight is 4 x 4, but 2 x 4 in"):
        compare(model(a), model(a | {"x.weight": np.ones((4, 4))}))
    with pytest.raises(PlanError, match="no tensors to compare"):
        compare(model({}), model({}))
