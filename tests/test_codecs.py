"""Codecs: how far a number may be off, what is never touched, and bytes that nobody should send."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mesh import codecs, packing
from mesh.arrays import Array, from_array, to_array
from mesh.codecs import check_spoken, decode_frame_tensors, decode_tensor, encode_frame_tensors, encode_tensor
from mesh.core.coding import CODECS, CODINGS_OF, CodedTensor, Coding, is_lossy, is_packed, loss_of
from mesh.core.frame import Frame
from mesh.core.tensor import DType
from mesh.errors import MissingExtra, ProtocolViolation

FEW = settings(max_examples=60, deadline=None)
FLOAT32_ERROR = 2.0**-14
"""In steps: what float32 arithmetic adds to the half, at the ends of what a zero point may be."""


def coded(values: Array, codec: str) -> CodedTensor:
    made = encode_tensor(from_array(values), codec)
    assert isinstance(made, CodedTensor)
    assert made.coding in CODINGS_OF[codec]
    return made


def there_and_back(values: Array, codec: str) -> Array:
    made = encode_tensor(from_array(values), codec)
    return to_array(decode_tensor(made) if isinstance(made, CodedTensor) else made)


@st.composite
def tensors(draw: st.DrawFn) -> Array:
    """Of every kind that a cut may carry: centred, behind ReLU, far from zero, constant, of all magnitudes."""
    seed, count = draw(st.integers(0, 999)), draw(st.sampled_from((256, 257, 1000, 20_000)))
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(count) * 10.0 ** draw(st.integers(-6, 4))
    kind = draw(st.sampled_from(("centred", "relu", "offset", "constant", "magnitudes")))
    if kind == "relu":
        values = np.maximum(values, 0)
    elif kind == "offset":
        values = values + np.sign(rng.standard_normal()) * 10.0 ** draw(st.integers(0, 4))
    elif kind == "constant":
        values = np.full(count, values[0])
    elif kind == "magnitudes":
        values = np.clip(values * 10.0 ** rng.uniform(-6, 1, count), -6e4, 6e4)
    return values.astype(np.float32)


@FEW
@given(tensors(), st.sampled_from(("int8", "int8+zstd")))
def test_int8_is_off_by_half_a_step_at_most_and_keeps_zeros(values: Array, codec: str) -> None:
    made = coded(values, codec)
    back = to_array(decode_tensor(made))
    spread = float(values.max()) - float(values.min())
    far = max(abs(float(values.max())), abs(float(values.min()))) / (codecs.MAX_ZERO_POINT - 255)
    assert made.scale <= max(spread / 255, far, 0.0 if values.any() else 1.0) * 1.0001
    rounded = max(abs(made.zero_point), 255) * 2.0**-22  # of float32, in steps
    error = np.abs(values.astype(np.float64) - back).max() / made.scale
    assert error <= 0.5 + rounded + FLOAT32_ERROR
    assert not back[values == 0].any()


@FEW
@given(tensors(), st.sampled_from(("fp16", "fp16+zstd")))
def test_halves_are_the_nearest_ones(values: Array, codec: str) -> None:
    back = to_array(decode_tensor(coded(values, codec)))
    nearest = values.astype(np.float16).astype(np.float32)
    wanted = np.abs(values.astype(np.float64) - nearest)
    # A tie may go either way; below the smallest normal half float32 rounds once more.
    assert (np.abs(values.astype(np.float64) - back) <= wanted + 2.0**-37).all()


def test_every_half_is_itself() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = halves[np.isfinite(halves)].astype(np.float32)
    assert there_and_back(values, "fp16").tobytes() == values.tobytes()


@FEW
@given(
    arrays.arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_, np.int8]),
        st.sampled_from([(300,), (3, 400), (2, 0, 5), ()]),
    ),
    st.sampled_from(CODECS),
)
def test_what_is_not_float32_and_everything_without_loss_stays_the_same_bits(values: Array, codec: str) -> None:
    if values.dtype == np.float32 and is_lossy(codec):
        values = values.view(np.int32)
    back = there_and_back(values, codec)
    assert (back.dtype, back.shape, back.tobytes()) == (values.dtype, values.shape, values.tobytes())


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_tensors_with_what_is_no_number_are_not_touched(codec: str, odd: float) -> None:
    values = np.linspace(-1, 1, 500, dtype=np.float32)
    values[77] = odd
    assert there_and_back(values, codec).tobytes() == values.tobytes()


def test_what_no_half_holds_and_what_is_too_small_stays() -> None:
    assert encode_tensor(from_array(np.full(300, 65_505, np.float32)), "fp16").dtype is DType.FLOAT32
    large = from_array(np.full(300, 70_000, np.float32))
    assert encode_tensor(large, "fp16") is large
    few = from_array(np.ones(255, np.float32))
    assert encode_tensor(few, "int8+zstd") is few
    tiny = from_array(np.linspace(0, 1e-38, 300, dtype=np.float32))
    assert encode_tensor(tiny, "int8") is tiny


def test_text_is_not_touched() -> None:
    text = from_array(np.array(["a long text"] * 100, dtype=object))
    assert encode_tensor(text, "int8+zstd") is text


def test_zeros_pack_and_noise_does_not() -> None:
    rectified = np.maximum(np.random.default_rng(1).standard_normal(100_000), 0).astype(np.float32)
    assert len(coded(rectified, "int8+zstd").data) * 5 < rectified.nbytes
    noise = from_array(np.random.default_rng(1).integers(0, 256, 2000).astype(np.uint8))
    assert encode_tensor(noise, "zstd") is noise


def test_a_frame_is_coded_tensor_by_tensor() -> None:
    values, mask = np.linspace(0, 1, 400, dtype=np.float32), np.arange(300, dtype=np.int64)
    frame = Frame(1, 2, 3, 4, (from_array(values), from_array(mask)), budget_us=5)
    assert encode_frame_tensors(frame, "raw") is frame
    sent = encode_frame_tensors(frame, "int8")
    assert [type(tensor) for tensor in sent.tensors] == [CodedTensor, type(frame.tensors[1])]
    assert sent.payload_bytes == 400 + mask.nbytes
    back = decode_frame_tensors(sent)
    assert (back.sequence, back.budget_us) == (2, 5)
    assert np.abs(to_array(back.tensors[0]) - values).max() <= 0.5 / 254
    assert back.tensors[1] is frame.tensors[1]


def test_bytes_that_are_not_what_their_header_says_are_refused() -> None:
    good = coded(np.maximum(np.linspace(-1, 1, 4000, dtype=np.float32), 0), "int8+zstd")
    whole = bytes(good.data)
    for data in (whole[:-1], whole + b"\0", whole + whole, b"\0" * 50, b"", whole[:8]):
        with pytest.raises(ProtocolViolation, match=r"packed|unpacked"):
            decode_tensor(dataclasses.replace(good, data=memoryview(data)), "x")
    with pytest.raises(ProtocolViolation, match="4000 bytes, 400000000 were to be"):
        decode_tensor(dataclasses.replace(good, shape=(400_000_000,)), "x")
    infinite = CodedTensor(DType.FLOAT32, (64,), memoryview(b"\x00\x7c" * 64), Coding.FLOAT16)
    with pytest.raises(ProtocolViolation, match="no finite number"):
        decode_tensor(infinite, "x")
    with pytest.raises(ProtocolViolation, match="10 bytes of INT8 for 64"):
        decode_tensor(CodedTensor(DType.FLOAT32, (64,), memoryview(bytes(10)), Coding.INT8, 1.0), "x")


@FEW
@given(
    st.sampled_from([codec for codec in CODECS if is_packed(codec)]),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_packed_bytes_that_were_changed_end_in_a_typed_error_or_a_tensor(
    codec: str, changes: list[tuple[int, int]]
) -> None:
    good = coded(np.maximum(np.random.default_rng(2).standard_normal(2000), 0).astype(np.float32), codec)
    data = bytearray(good.data)
    for position, value in changes:
        data[position % len(data)] = value
    try:
        back = decode_tensor(dataclasses.replace(good, data=memoryview(bytes(data))))
    except ProtocolViolation:
        return
    assert (back.dtype, back.shape, len(back.data)) == (DType.FLOAT32, (2000,), 8000)


def test_a_codec_is_refused_by_name_where_it_is_unknown_or_its_package_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ProtocolViolation, match="'zip' is not spoken"):
        check_spoken("zip")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setattr(packing, "_contexts", None)
    monkeypatch.setattr(packing.importlib.util, "find_spec", lambda name: None)
    assert codecs.spoken_codecs() == ("raw", "fp16", "int8")
    check_spoken("int8")
    with pytest.raises(MissingExtra, match="'int8\\+zstd' needs the package zstandard"):
        check_spoken("int8+zstd")
    with pytest.raises(MissingExtra):
        encode_tensor(from_array(np.zeros(1000, np.float32)), "zstd")


def test_what_codecs_are_called_says_what_they_do() -> None:
    assert [codec for codec in CODECS if is_lossy(codec)] == ["fp16", "fp16+zstd", "int8", "int8+zstd"]
    assert [loss_of(codec) for codec in CODECS] == ["", "", "fp16", "fp16", "int8", "int8"]
    assert CODINGS_OF["raw"] == {Coding.RAW}
    assert CODINGS_OF["fp16+zstd"] == {Coding.RAW, Coding.RAW_ZSTD, Coding.FLOAT16, Coding.FLOAT16_ZSTD}
    assert CODINGS_OF["int8"] == {Coding.RAW, Coding.INT8}
