"""Write a Llama model of random Gaussian weights as an F16 GGUF file, for timing.

The defaults give 0.5 billion parameters (1 GB). The vocabulary holds the bytes and filler, enough
for llama-bench to load and run it; rows are multiples of 256, so that every type fits. One tensor
is in memory at a time, and the same seed writes the same bytes.

    python scripts/make_synthetic_model.py synthetic-f16.gguf
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

STD = 0.02
CHUNK = 1 << 22  # weights drawn at a time
Shapes = dict[str, tuple[int, ...]]


def main() -> None:
    """Parse the arguments and write the file."""
    parser = argparse.ArgumentParser(description="A Llama GGUF of random weights")
    parser.add_argument("path", type=Path)
    parser.add_argument("--hidden", type=int, default=1024, help="a multiple of 256")
    parser.add_argument("--ffn", type=int, default=4096, help="a multiple of 256")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--vocab", type=int, default=32000, help="at least 259")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shapes = tensor_shapes(args.hidden, args.ffn, args.layers, args.vocab)
    writer = gguf.GGUFWriter(args.path, "llama")
    add_metadata(writer, args.hidden, args.ffn, args.layers, args.vocab)
    write(writer, shapes, np.random.default_rng(args.seed))
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    print(f"{args.path}: {count / 1e6:.0f} M parameters")


def tensor_shapes(hidden: int, ffn: int, layers: int, vocab: int) -> Shapes:
    """Names and NumPy shapes; half as many key and value heads as query heads, untied."""
    shapes: Shapes = {"token_embd.weight": (vocab, hidden)}
    for i in range(layers):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (hidden,),
            f"blk.{i}.attn_q.weight": (hidden, hidden),
            f"blk.{i}.attn_k.weight": (hidden // 2, hidden),
            f"blk.{i}.attn_v.weight": (hidden // 2, hidden),
            f"blk.{i}.attn_output.weight": (hidden, hidden),
            f"blk.{i}.ffn_norm.weight": (hidden,),
            f"blk.{i}.ffn_gate.weight": (ffn, hidden),
            f"blk.{i}.ffn_up.weight": (ffn, hidden),
            f"blk.{i}.ffn_down.weight": (hidden, ffn),
        }
    return shapes | {"output_norm.weight": (hidden,), "output.weight": (vocab, hidden)}


def add_metadata(writer: gguf.GGUFWriter, hidden: int, ffn: int, layers: int, vocab: int) -> None:
    """Everything llama.cpp asks of a Llama model; heads of 64."""
    writer.add_name("synthetic")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(2048)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_block_count(layers)
    writer.add_head_count(hidden // 64)
    writer.add_head_count_kv(hidden // 128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(64)
    writer.add_vocab_size(vocab)
    special = ["<unk>", "<s>", "</s>"]
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    filler = [f"\u2581w{i}" for i in range(vocab - len(special) - len(raw))]
    types = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2
    types += [gguf.TokenType.BYTE] * len(raw) + [gguf.TokenType.NORMAL] * len(filler)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(special + raw + filler)
    writer.add_token_scores(
        [0.0] * (len(special) + len(raw)) + [-float(i) for i in range(len(filler))]
    )
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write(writer: gguf.GGUFWriter, shapes: Shapes, rng: np.random.Generator) -> None:
    """Write the header, then one tensor after the other."""
    for name, shape in shapes.items():
        dtype = np.dtype(np.float32 if len(shape) == 1 else np.float16)
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for shape in shapes.values():
        writer.write_tensor_data(draw(shape, rng))
    writer.close()


def draw(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.floating]:
    """Ones for a norm, Gaussian float16 for a matrix."""
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    out = np.empty(int(np.prod(shape)), np.float16)
    for part in _chunks(out):
        part[:] = rng.standard_normal(len(part), dtype=np.float32) * np.float32(STD)
    return out.reshape(shape)


def _chunks(out: NDArray[np.float16]) -> Iterator[NDArray[np.float16]]:
    for start in range(0, len(out), CHUNK):
        yield out[start : start + CHUNK]


if __name__ == "__main__":
    main()
