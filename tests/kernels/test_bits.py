"""Packing is a bijection: any bytes survive unpacking and packing again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tqgguf.kernels import bits


def byte_arrays(*shape):
    return arrays(np.uint8, shape)


@pytest.mark.parametrize("width", [1, 2, 4])
@given(packed=byte_arrays(3, 16, 5))
def test_planes(width, packed):
    codes = bits.unpack_planes(packed, bits=width)
    assert codes.shape == (3, 8 // width, 16, 5)
    assert codes.max() < 2**width
    np.testing.assert_array_equal(bits.pack_planes(codes, bits=width), packed)


def test_plane_0_lies_in_the_low_bits():
    codes = np.array([1, 2], np.uint8).reshape(2, 1, 1)
    assert bits.pack_planes(codes, bits=4).item() == 0x21


@given(packed=byte_arrays(12, 7))
def test_6bit_pairs(packed):
    scales, mins = bits.unpack_6bit_pairs(packed)
    assert max(scales.max(), mins.max()) < 64
    np.testing.assert_array_equal(bits.pack_6bit_pairs(scales, mins), packed)


@given(packed=byte_arrays(12, 7))
def test_6bit(packed):
    codes = bits.unpack_6bit(packed)
    assert codes.max() < 64
    np.testing.assert_array_equal(bits.pack_6bit(codes), packed)


@given(st.integers(0, 15), st.integers(0, 63))
def test_each_6bit_value_has_its_own_place(place, value):
    codes = np.zeros((16, 1), np.uint8)
    codes[place] = value
    np.testing.assert_array_equal(bits.unpack_6bit(bits.pack_6bit(codes)), codes)
