"""Bit planes: a bijection, of the promised size."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given
from hypothesis.extra.numpy import arrays

from tqgguf.kernels import bitplanes

SHAPES = st.tuples(st.integers(0, 5), st.integers(1, 70))


@given(st.data(), st.integers(0, 8), SHAPES)
def test_unpack_undoes_pack(data, bits, shape):
    codes = data.draw(arrays(np.uint8, shape, elements=st.integers(0, 2**bits - 1)))
    packed = bitplanes.pack(codes, bits=bits)
    assert packed.shape == (shape[0], bitplanes.packed_bytes(shape[1], bits=bits))
    assert (bitplanes.unpack(packed, bits=bits, width=shape[1]) == codes).all()


@given(st.data(), st.integers(1, 8), st.integers(1, 8))
def test_pack_undoes_unpack_when_no_bit_is_padding(data, bits, bytes_per_plane):
    packed = data.draw(arrays(np.uint8, (3, bits * bytes_per_plane)))
    codes = bitplanes.unpack(packed, bits=bits, width=8 * bytes_per_plane)
    assert (bitplanes.pack(codes, bits=bits) == packed).all()


def test_three_bits_take_three_bits():
    assert bitplanes.packed_bytes(128, bits=3) == 48
