"""Split outputs: named, numbered and read as llama-gguf-split does it."""

import subprocess

import gguf
import numpy as np
import pytest

from tests import llama
from tests.tiny_models import write_tiny
from tqgguf import pipeline
from tqgguf.errors import FileFormatError, OutputError
from tqgguf.llamacpp import find
from tqgguf.models import open_model
from tqgguf.output.files import partial_path
from tqgguf.output.layout import Split
from tqgguf.pipeline import output_files
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan


def convert(source, path, split=Split(), type="tq-q4", rotate="fused", seed=0, **options):
    model = open_model(source)
    plan = make_plan(model, Options(type=type, rotate=rotate, seed=seed))
    list(pipeline.convert(model, plan, path, split=split, **options))
    return output_files(model, plan, path, split)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "count"),
    [
        (Split(max_tensors=8), 3),
        (Split(max_tensors=21), 1),
        (Split(max_size=400_000), 5),
        (Split(max_size=1), 21),
        (Split(max_size=400_000, max_tensors=4), 7),
    ],
)
def test_shards_hold_together_what_one_file_holds(shallow, tmp_path, split, count):
    (whole,) = convert(shallow, tmp_path / "whole.gguf")
    files = convert(shallow, tmp_path / "m.gguf", split)
    assert [f.name for f in files] == [f"m-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    assert sorted(files) == sorted(tmp_path.glob("m*"))
    one, many = open_model(whole), open_model(files[0])
    assert many.metadata == one.metadata
    assert list(many.tensors) == list(one.tensors)
    for name, tensor in many.tensors.items():
        rows = (0, tensor.n_rows)
        np.testing.assert_array_equal(tensor.stored(*rows), one.tensors[name].stored(*rows))
    for i, file in enumerate(files):
        reader = gguf.GGUFReader(file)
        assert reader.fields["split.no"].contents() == i
        assert reader.fields["split.count"].contents() == count
        assert reader.fields["split.tensors.count"].contents() == 21
        assert reader.fields["split.no"].types == [gguf.GGUFValueType.UINT16]
        assert len(reader.tensors) <= (split.max_tensors or 21)
        size = sum(-(-t.n_bytes // 32) * 32 for t in reader.tensors)
        assert len(reader.tensors) == 1 or size <= (split.max_size or size)


@pytest.mark.slow
def test_llama_cpp_reads_shards_as_the_whole(shallow, tmp_path):
    (whole,) = convert(shallow, tmp_path / "whole.gguf")
    files = convert(shallow, tmp_path / "m.gguf", Split(max_size=200_000))
    tokens = list(range(5, 45))
    np.testing.assert_array_equal(llama.logprobs(files[0], tokens), llama.logprobs(whole, tokens))
    assert llama.generate(files[0], "The sea was", 16) == llama.generate(whole, "The sea was", 16)


def test_alignment_of_the_whole_is_that_of_every_shard(tmp_path):
    source = write_tiny(tmp_path / "m.gguf", "llama")
    aligned = tmp_path / "aligned.gguf"
    writer = gguf.GGUFWriter(aligned, "llama")
    writer.add_custom_alignment(256)
    model = open_model(source)
    for key in model.metadata:
        if key.startswith("llama."):
            value = model.metadata[key]
            writer.add_key_value(key, value.decode(), value.type)
    for name, tensor in model.tensors.items():
        writer.add_tensor(name, tensor.read())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for file in convert(aligned, tmp_path / "q.gguf", Split(max_tensors=7), type="q8_0"):
        assert all(t.data_offset % 256 == 0 for t in gguf.GGUFReader(file).tensors)
        assert gguf.GGUFReader(file).alignment == 256


@pytest.mark.slow
def test_shards_of_an_earlier_run_are_neither_overwritten_unasked_nor_mixed_in(shallow, tmp_path):
    path = tmp_path / "m.gguf"
    old = convert(shallow, path, Split(max_tensors=5))
    before = {f: f.read_bytes() for f in old}
    for split in (Split(max_tensors=5), Split(max_tensors=8)):
        with pytest.raises(OutputError, match=r"m-00001-of-00005\.gguf: exists already; overwrite"):
            convert(shallow, path, split)
    assert {f: f.read_bytes() for f in tmp_path.iterdir()} == before
    new = convert(shallow, path, Split(max_tensors=8), type="tq-q3", force=True)
    assert sorted(tmp_path.iterdir()) == new
    assert open_model(new[0]).get("tqgguf.recipe") == "TQ-Q3"


def test_unfinished_shards_of_an_earlier_run_are_swept_away(shallow, tmp_path):
    path = tmp_path / "m.gguf"
    model = open_model(shallow)
    reports = pipeline.convert(
        model, make_plan(model, Options(rotate="fused")), path, split=Split(max_tensors=3)
    )
    next(reports)
    reports.close()
    assert len(list(tmp_path.glob("*.partial"))) == 7
    convert(shallow, path, Split(max_tensors=8), force=True)
    assert len(list(tmp_path.iterdir())) == 3
    assert not partial_path(path).exists()


@pytest.mark.slow
def test_a_shard_of_another_set_is_refused(shallow, tmp_path):
    a = convert(shallow, tmp_path / "a.gguf", Split(max_tensors=8))
    b = convert(shallow, tmp_path / "b.gguf", Split(max_tensors=12))
    b[1].replace(a[1])
    with pytest.raises(FileFormatError, match=r"split\.count is 2, but the name says 3"):
        open_model(a[0])
    c = convert(shallow, tmp_path / "c.gguf", Split(max_tensors=8))
    c[2].replace(a[1])
    with pytest.raises(FileFormatError, match=r"split\.no is 2, but the name says 1"):
        open_model(a[0])


@pytest.mark.slow
def test_a_shard_of_another_run_with_the_same_numbers_is_refused(shallow, tmp_path):
    """Stale shards differ in a type, in the options, or only in the weights they are made of."""
    split = Split(max_tensors=8)
    ours = convert(shallow, tmp_path / "a.gguf", split)
    tuned = tmp_path / "tuned.gguf"
    data = bytearray(shallow.read_bytes())
    data[-2:] = b"\0\0"  # the last weight of a norm's gain
    tuned.write_bytes(data)
    others = [
        convert(shallow, tmp_path / "t.gguf", split, type="tq-q3"),
        convert(shallow, tmp_path / "s.gguf", split, seed=1),
        convert(tuned, tmp_path / "w.gguf", split),
    ]
    for theirs in others:
        ours[1].replace(tmp_path / "kept")
        ours[1].write_bytes(theirs[1].read_bytes())
        with pytest.raises(FileFormatError, match=r"a-00002-of-00003.*: belongs to another run"):
            open_model(ours[0])
        (tmp_path / "kept").replace(ours[1])
    again = convert(shallow, tmp_path / "b.gguf", split)
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in ours]


@pytest.mark.tools
def test_shards_of_llama_gguf_split_have_no_run_and_are_read(shallow, tmp_path):
    command = [find("llama-gguf-split"), "--split", "--split-max-tensors", "7"]
    subprocess.run([*command, shallow, tmp_path / "m"], check=True, capture_output=True)
    model = open_model(tmp_path / "m-00001-of-00003.gguf")
    assert len(model.tensors) == len(open_model(shallow).tensors)


def test_a_renamed_shard_is_told_from_a_whole_file(shallow, tmp_path):
    files = convert(shallow, tmp_path / "a.gguf", Split(max_tensors=8))
    files[0].replace(tmp_path / "alone.gguf")
    with pytest.raises(FileFormatError, match=r"split\.count is 3, but .*; open its first shard"):
        open_model(tmp_path / "alone.gguf")


def test_the_input_may_be_split_and_is_never_the_output(shallow, tmp_path):
    plain = {"type": "f16", "rotate": "none"}
    files = convert(shallow, tmp_path / "m.gguf", Split(max_tensors=8), **plain)
    with pytest.raises(OutputError, match=r"m-00001-of-00003\.gguf: the output is the input"):
        convert(files[0], tmp_path / "m.gguf", Split(max_tensors=8), force=True, **plain)
    (whole,) = convert(files[0], tmp_path / "whole.gguf", **plain)
    assert not any(key.startswith("split.") for key in open_model(whole).metadata)
