"""Reading GGUF against gguf-py's reader, and files that lie about themselves."""

import struct

import gguf
import numpy as np
import pytest

from tqgguf.errors import FileFormatError
from tqgguf.models import open_model
from tqgguf.models.metadata import Value, encode
from tqgguf.output.layout import TensorInfo, lay_out

DECODABLE = [
    t
    for t in gguf.quants._type_traits
    if t not in (gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.NVFP4)
]


def write(path, tensors, metadata=None, alignment=32):
    """A GGUF file by gguf-py: tensors maps a name to (array, raw type or None)."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.data_alignment = alignment
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    for key, value in (metadata or {}).items():
        writer.add_string(key, value)
    for name, (array, raw_dtype) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def header(n_tensors=0, n_values=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_values)


@pytest.mark.parametrize("type", DECODABLE, ids=lambda t: t.name)
def test_every_type_that_gguf_decodes_reads_as_gguf_decodes_it(tmp_path, type):
    block, size = gguf.GGML_QUANT_SIZES[type]
    stored = np.random.default_rng(3).integers(0, 256, (4, 2 * size), dtype=np.uint8)
    path = write(tmp_path / "m.gguf", {"a.weight": (stored, type)})
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(stored, type)
        tensor = open_model(path).tensors["a.weight"]
        assert tensor.shape == (4, 2 * block)
        assert tensor.type == type.name
        np.testing.assert_array_equal(tensor.read(), want)
        half = tensor.read_tile((1, 3), (block, 2 * block))
        np.testing.assert_array_equal(half, want[1:3, block:])
        for runs, rows in (([(0, 1), (2, 4)], [0, 2, 3]), ([(1, 3)], [1, 2])):
            picked = tensor.read_runs(runs, (block, 2 * block))
            np.testing.assert_array_equal(picked, want[rows, block:])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.int32])
def test_plain_types_read_as_float32(tmp_path, dtype):
    values = np.arange(-6, 6).reshape(3, 4).astype(dtype)
    path = write(tmp_path / "m.gguf", {"a.weight": (values, None)})
    np.testing.assert_array_equal(open_model(path).tensors["a.weight"].read(), values)


def test_metadata_equals_gguf_readers(novels):
    reader, model = gguf.GGUFReader(novels), open_model(novels)
    keys = [key for key in reader.fields if not key.startswith("GGUF.")]
    assert list(model.metadata) == keys
    for key in keys:
        assert model.get(key) == reader.fields[key].contents(), key


def test_custom_alignment_is_honoured(tmp_path):
    values = np.arange(64, dtype=np.float32).reshape(2, 32)
    tensors = {"a.weight": (values, None), "b.weight": (values + 1, None)}
    model = open_model(write(tmp_path / "m.gguf", tensors, alignment=256))
    np.testing.assert_array_equal(model.tensors["b.weight"].read(), values + 1)


def test_what_we_lay_out_gguf_reads(tmp_path):
    nested = struct.pack("<IQ", gguf.GGUFValueType.ARRAY, 2) + 2 * encode([1, 2, 3]).raw
    metadata = {
        "general.architecture": encode("llama"),
        "general.alignment": encode(64),
        "a.nested": Value(gguf.GGUFValueType.ARRAY, nested),
        "a.flag": encode(True),
        "a.texts": encode(["ein", "zwei", "drei ✓"]),
    }
    infos = [TensorInfo("x.weight", (3, 32), "F32"), TensorInfo("y.weight", (2, 32), "Q4_0")]
    layout = lay_out(metadata, infos)
    data = bytearray(layout.size)
    data[: len(layout.header)] = layout.header
    x = np.arange(96, dtype=np.float32)
    data[layout.offsets["x.weight"] : layout.offsets["x.weight"] + x.nbytes] = x.tobytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    reader = gguf.GGUFReader(path)
    assert reader.alignment == 64
    assert reader.fields["a.texts"].contents() == ["ein", "zwei", "drei ✓"]
    np.testing.assert_array_equal(reader.tensors[0].data.ravel(), x)
    assert reader.tensors[1].data_offset == layout.offsets["y.weight"]
    again = open_model(path)
    assert dict(again.metadata) == metadata
    assert again.get("a.nested") == [[1, 2, 3], [1, 2, 3]]


def test_a_truncated_file_is_named_wherever_it_ends(tmp_path, stories):
    data = stories.read_bytes()
    path = tmp_path / "cut.gguf"
    for end in [0, 3, 4, 7, 20, 30, 100, 1000, 5000, 9000, 12000, len(data) - 1]:
        path.write_bytes(data[:end])
        with pytest.raises(FileFormatError, match=r"cut\.gguf: ") as caught:
            open_model(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a GGUF file: it begins with b''"),
        (b"PK\x03\x04 and more", "not a GGUF file"),
        (header(version=1), "version 1; versions 2 and 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (header(n_tensors=2**40), "the tensor table claims 1,099,511,627,776 items"),
        (header(n_values=2**40), "the metadata claims 1,099,511,627,776 items"),
        (header(n_values=1) + struct.pack("<Q", 2**60) + bytes(99), "truncated in metadata key 1"),
        (
            header(n_values=1) + encode("k").raw + struct.pack("<IIQ", 9, 8, 2**58) + bytes(9),
            "'k' claims 288,230,376,151,711,744 items",
        ),
        (header(n_values=1) + encode("k").raw + struct.pack("<IQ", 77, 0), "unknown value type 77"),
        (
            header(n_values=1) + encode("k").raw + 99 * struct.pack("<IQ", 9, 1)[:4] + bytes(99),
            "",
        ),
        (
            header(n_values=2) + 2 * (encode("k").raw + struct.pack("<II", 4, 1)),
            "'k' appears twice",
        ),
    ],
)
def test_a_lying_header_gives_one_line(tmp_path, data, message):
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(FileFormatError) as caught:
        open_model(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def tensor_line(name="a.weight", shape=(32, 2), type=0, offset=0):
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return encode(name).raw + sizes + struct.pack("<IQ", type, offset)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([tensor_line(offset=32 * 10**6)], "a.weight needs bytes"),
        ([tensor_line(offset=5)], "a.weight is not aligned to 32 bytes"),
        ([tensor_line(type=99)], "a.weight has unknown tensor type 99"),
        ([tensor_line(shape=(2**32, 2**32))], "which F32 cannot hold"),
        ([tensor_line(shape=(0, 4))], "which F32 cannot hold"),
        ([tensor_line(shape=(33, 2), type=2)], "which Q4_0 cannot hold"),
        ([tensor_line(shape=(1, 1, 1, 1, 1))], "a.weight has 5 dimensions"),
        ([tensor_line(), tensor_line()], "tensor 'a.weight' appears twice"),
    ],
)
def test_a_lying_tensor_table_gives_one_line(tmp_path, lines, message):
    path = tmp_path / "bad.gguf"
    path.write_bytes(header(n_tensors=len(lines)) + b"".join(lines) + bytes(4096))
    with pytest.raises(FileFormatError) as caught:
        open_model(path)
    assert message in str(caught.value)


def test_a_missing_file_and_a_folder_without_a_model_give_one_line(tmp_path):
    with pytest.raises(FileFormatError, match="no such file"):
        open_model(tmp_path / "nowhere.gguf")
