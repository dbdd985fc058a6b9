import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from cnnjax.errors import UserError
from cnnjax.ops import (
    adaptive_windows,
    conv_output_size,
    pool_output_size,
    receptive_field,
    resolve_padding,
)

few = settings(max_examples=25, deadline=None)
small = st.integers(1, 5)


@few
@given(st.integers(1, 20), small, small, st.integers(0, 3), st.integers(0, 3), st.integers(1, 3))
def test_conv_output_size_counts_the_places_of_the_window(size, window, stride, a, b, dilation):
    covered = (window - 1) * dilation + 1
    places = len(range(0, size + a + b - covered + 1, stride))
    if places:
        assert conv_output_size(size, window, stride, (a, b), dilation) == places
    else:
        with pytest.raises(UserError, match=f"covers {covered} pixels, more than size {size}"):
            conv_output_size(size, window, stride, (a, b), dilation)


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding", "floor", "ceil"),
    [
        (112, 3, 2, 0, 55, 56),  # GoogLeNet's pooling, which needs the larger one
        (7, 2, 2, 0, 3, 4),
        (8, 2, 2, 0, 4, 4),
        (5, 2, 3, 1, 2, 2),  # a third window would start in the padding behind the image
        (2, 3, 2, 1, 1, 2),
        (2, 3, 2, 0, None, 1),
        (6, 3, 2, (0, 1), 3, 3),
    ],
)
def test_pool_output_size_rounds_down_or_up(size, window, stride, padding, floor, ceil):
    assert pool_output_size(size, window, stride, padding, ceil=True) == ceil
    if floor is not None:
        assert pool_output_size(size, window, stride, padding) == floor
    else:
        with pytest.raises(UserError):
            pool_output_size(size, window, stride, padding)


@few
@given(st.integers(1, 20), small, small, st.data())
def test_every_pooling_window_sees_the_image_and_ceil_misses_no_pixel_it_could(size, window, stride, data):
    before, after = (data.draw(st.integers(0, window - 1)) for _ in range(2))
    try:
        count = pool_output_size(size, window, stride, (before, after), ceil=True)
    except UserError:
        assert size + before + after <= window - stride
        return
    starts = [i * stride - before for i in range(count)]
    assert all(start < size and start + window > 0 for start in starts)
    next_start = starts[-1] + stride
    assert next_start >= size or starts[-1] + window >= size + after


@pytest.mark.parametrize(
    "call",
    [
        lambda: conv_output_size(5, 3, 0),
        lambda: conv_output_size(0, 1),
        lambda: conv_output_size(5, 3, 1, (-1, 0)),
        lambda: pool_output_size(5, 2, 2, (2, 0)),
        lambda: pool_output_size(1, 9, 2, ceil=True),
        lambda: adaptive_windows(5, 0),
        lambda: receptive_field([(3,)]),
        lambda: receptive_field([(3, 0)]),
    ],
)
def test_impossible_numbers_are_one_readable_line(call):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert any(c.isdigit() for c in str(caught.value))


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        ("valid", ((0, 0), (0, 0))),
        (2, ((2, 2), (2, 2))),
        (np.int64(2), ((2, 2), (2, 2))),
        ((1, 2), ((1, 1), (2, 2))),
        (((1, 2), (3, 0)), ((1, 2), (3, 0))),
        ([[1, 2], [3, 0]], ((1, 2), (3, 0))),
    ],
)
def test_padding_can_be_written_in_many_ways(padding, expected):
    assert resolve_padding(padding, 3, 1, 1, 9) == expected


@few
@given(small, small, st.integers(1, 3), st.integers(1, 20))
def test_same_padding_is_that_of_xla(window, stride, dilation, size):
    covered = (window - 1) * dilation + 1
    expected = lax.padtype_to_pads((size, size + 1), (covered, 1), (stride, 1), "SAME")
    got = resolve_padding("same", (window, 1), (stride, 1), (dilation, 1), (size, size + 1))
    assert got == tuple(map(tuple, expected))
    assert conv_output_size(size, window, stride, got[0], dilation) == math.ceil(size / stride)


@pytest.mark.parametrize("padding", ["sane", -1, (1, -1), (1, 2, 3), ((1, 2, 3), 1), 1.5, None])
def test_other_paddings_raise(padding):
    with pytest.raises(UserError, match="padding"):
        resolve_padding(padding, 3, 1, 1, 9)


def test_receptive_field_of_known_stacks():
    assert receptive_field([]) == (1, 1, 0)
    assert receptive_field([(3, 1), (3, 1)])[0] == receptive_field([(5, 1)])[0] == 5
    simple_cnn = receptive_field([(5, 1, 2), (2, 2), (5, 1, 2), (2, 2)])
    assert simple_cnn == (16, 4, -6)
    assert simple_cnn.center == 1.5
    assert receptive_field([(7, 2, 3), (3, 2, 1)]) == (11, 4, -5)
    assert receptive_field([(3, 1, 2, 2)]) == (5, 1, -2)


@few
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2)),
        max_size=4,
    )
)
def test_receptive_field_is_what_walking_back_through_the_stack_gives(layers):
    def seen(output):
        pixels = {output}
        for window, stride, padding, dilation in reversed(layers):
            pixels = {p * stride - padding + i * dilation for p in pixels for i in range(window)}
        return min(pixels), max(pixels)

    field = receptive_field(layers)
    for output in (0, 1, 3):
        first, last = seen(output)
        assert first == field.start + output * field.jump
        assert last - first + 1 == field.size
    assert field.center == sum(seen(0)) / 2


@few
@given(st.integers(1, 30), st.integers(1, 40))
def test_adaptive_windows_are_those_of_torch(size, output_size):
    windows = adaptive_windows(size, output_size)
    expected = [
        (math.floor(i * size / output_size), math.ceil((i + 1) * size / output_size))
        for i in range(output_size)
    ]
    assert list(windows) == expected
    assert set().union(*(range(*window) for window in windows)) == set(range(size))


def test_adaptive_windows_are_exact_where_float_division_is_not():
    size = 3 * 10**17 + 1
    assert adaptive_windows(size, 3)[0] == (0, 10**17 + 1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: receptive_field([(3, 1, -2)]), r"layers\[0\] \(3, 1, -2\): padding=-2 must be"),
        (lambda: receptive_field([(3.5, 1, 1)]), "window 3.5, .*each must be a whole number"),
        (lambda: conv_output_size(7.5, 3), "size 7.5, .*each must be a whole number"),
    ],
)
def test_windows_are_of_whole_pixels(call, words):
    with pytest.raises(UserError, match=words):
        call()
