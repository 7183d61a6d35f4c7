from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh.client.sources import SourceFrame, arrays, open_source
from mesh.core.tensor import DType, Tensor, TensorSpec
from mesh.errors import MeshError, NotFound, SourceUnreadable, TensorMismatch, UsageError

F32 = DType.FLOAT32
X = TensorSpec("x", F32, (1, 3))
BATCH = TensorSpec("x", F32, ("batch", 3))


def read(url: str | Path, *specs: TensorSpec) -> list[SourceFrame]:
    return list(open_source(str(url), specs).frames())


def array_of(tensor: Tensor) -> Any:
    return np.frombuffer(tensor.data, np.dtype(tensor.dtype.label)).reshape(tensor.shape)


def save(path: Path, **named: Any) -> Path:
    np.savez(path, **named)
    return path


def ramp(*shape: int) -> Any:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("spec", "shape", "frames", "frame_shape"),
    [
        (X, (5, 1, 3), 5, (1, 3)),  # one axis more: frames
        (X, (5, 3), 5, (1, 3)),  # equal rank, first dimension 1: batches of one
        (BATCH, (5, 3), 5, (1, 3)),
        (BATCH, (5, 2, 3), 5, (2, 3)),
        (TensorSpec("x", F32, (4, 3)), (4, 3), 1, (4, 3)),  # equal rank, fixed: one frame
        (TensorSpec("x", F32, (3,)), (5, 3), 5, (3,)),
        (TensorSpec("x", F32, ()), (5,), 5, ()),
        (TensorSpec("x", F32, ()), (), 1, ()),
        (TensorSpec("x", F32, None), (5, 2, 3), 5, (2, 3)),
    ],
)
def test_the_leading_axis_counts_frames(
    tmp_path: Path, spec: TensorSpec, shape: tuple[int, ...], frames: int, frame_shape: tuple[int, ...]
) -> None:
    values = ramp(*shape)
    got = read(save(tmp_path / "a.npz", x=values), spec)
    assert len(got) == frames
    assert {frame.tensors[0].shape for frame in got} == {frame_shape}
    assert np.array_equal(np.concatenate([array_of(f.tensors[0]).reshape(-1) for f in got]), values.reshape(-1))


def test_whole_makes_a_batch_one_frame(tmp_path: Path) -> None:
    (frame,) = read(f"{save(tmp_path / 'a.npz', x=ramp(5, 3))}?whole=1", BATCH)
    assert frame.tensors[0].shape == (5, 3)


def test_frames_say_where_they_come_from_and_can_be_a_part(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=ramp(9, 1, 3))
    source = open_source(f"npz:{path}?start=2&count=3", [X])
    assert source.frame_count == 3
    frames = list(source.frames())
    assert [frame.origin for frame in frames] == ["a.npz[2]", "a.npz[3]", "a.npz[4]"]
    assert array_of(frames[0].tensors[0]).tolist() == [[6, 7, 8]]


def test_inputs_are_found_by_name_and_follow_the_models_order(tmp_path: Path) -> None:
    other = TensorSpec("b", DType.INT64, ())
    path = save(tmp_path / "a.npz", x=ramp(2, 1, 3), b=np.array([7, 8]))
    first, second = read(path, other, X)
    assert array_of(first.tensors[0]) == 7
    assert second.tensors[1].shape == (1, 3)
    swapped = read(f"{save(tmp_path / 'c.npz', q=ramp(2, 1, 3), b=np.array([7, 8]))}?key=q&input=x", other, X)
    assert [frame.tensors for frame in swapped] == [first.tensors, second.tensors]


def test_the_only_array_that_is_no_labels_is_taken(tmp_path: Path) -> None:
    assert len(read(save(tmp_path / "a.npz", images=ramp(2, 1, 3), y=np.arange(2)), X)) == 2
    assert len(read(f"{save(tmp_path / 'b.npz', p=ramp(2, 1, 3), q=ramp(4, 1, 3))}?key=q", X)) == 4


def test_fortran_and_big_endian_arrays_arrive_right(tmp_path: Path) -> None:
    values = ramp(4, 1, 3)
    for each in (np.asfortranarray(values), values.astype(">f4")):
        frames = read(save(tmp_path / "a.npz", x=each), X)
        assert np.array_equal(np.stack([array_of(f.tensors[0]) for f in frames]), values)


def test_cast_converts_on_purpose(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=np.arange(6, dtype=np.uint8).reshape(2, 1, 3))
    with pytest.raises(TensorMismatch, match=r"dtype is uint8, the model wants float32 .*cast=float32.*divided by 255"):
        read(path, X)
    assert array_of(read(f"{path}?cast=float32", X)[1].tensors[0]).tolist() == [[3, 4, 5]]
    with pytest.raises(UsageError, match="no type that the model takes"):
        read(f"{path}?cast=int32", X)


def test_a_cast_that_loses_values_is_refused(tmp_path: Path) -> None:
    spec = TensorSpec("x", DType.UINT8, (1,))
    path = save(tmp_path / "a.npz", x=np.array([[1], [300]]))
    frames = open_source(f"{path}?cast=uint8", [spec]).frames()
    assert bytes(next(frames).tensors[0].data) == b"\1"
    with pytest.raises(TensorMismatch, match="do not fit into uint8"):
        next(frames)


def test_bfloat16_comes_from_raw_bits_or_by_cast(tmp_path: Path) -> None:
    spec = TensorSpec("x", DType.BFLOAT16, (2,))
    (raw,) = read(save(tmp_path / "a.npz", x=np.array([[0x3F80, 0x4000]], np.uint16)), spec)
    (cast,) = read(f"{save(tmp_path / 'b.npz', x=np.array([[1.0, 2.0]], np.float32))}?cast=bfloat16", spec)
    assert bytes(raw.tensors[0].data) == bytes(cast.tensors[0].data) == b"\x80\x3f\x00\x40"


def test_text_becomes_strings(tmp_path: Path) -> None:
    (frame,) = read(save(tmp_path / "a.npz", x=np.array([["grün", ""]])), TensorSpec("x", DType.STRING, (2,)))
    assert bytes(frame.tensors[0].data) == b"\x05\0\0\0gr\xc3\xbcn\0\0\0\0"
    with pytest.raises(TensorMismatch, match="cannot be cast"):
        read(f"{tmp_path / 'a.npz'}?cast=float32", TensorSpec("x", F32, (2,)))


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"x": ramp(2, 1, 4)}, "dimension 1 is 4, the model wants 3"),
        ({"x": ramp(2, 1, 1, 3)}, "rank is 4"),
        ({"x": ramp(3)}, "rank is 1"),
        ({"x": ramp(0, 1, 3)}, "no frames"),
        ({"x": ramp(2, 3).astype(np.float64)}, "cast=float32"),
        ({"x": ramp(2, 3).astype(np.complex64)}, "has no place in a model"),
        ({"x": np.zeros((2, 3), "datetime64[s]")}, "has no place in a model"),
        ({"p": ramp(2, 3), "q": ramp(2, 3)}, r"say which with \?key="),
        ({"labels": ramp(2, 3)}, r"say which with \?key="),
    ],
)
def test_what_does_not_fit_the_model_is_refused_at_opening(tmp_path: Path, named: Any, said: str) -> None:
    with pytest.raises(TensorMismatch, match=said):
        open_source(str(save(tmp_path / "a.npz", **named)), [X])


def test_inputs_without_an_array_and_uneven_counts_are_refused(tmp_path: Path) -> None:
    other = TensorSpec("b", F32, (3,))
    with pytest.raises(TensorMismatch, match="no array for the inputs b"):
        open_source(str(save(tmp_path / "a.npz", x=ramp(2, 3))), [X, other])
    with pytest.raises(TensorMismatch, match="different numbers of frames"):
        open_source(str(save(tmp_path / "a.npz", x=ramp(2, 3), b=ramp(4, 3))), [X, other])


@pytest.mark.parametrize(
    ("query", "error", "said"),
    [
        ("start=2", UsageError, "below 2"),
        ("start=1&count=2", UsageError, "at most 1"),
        ("count=0", UsageError, "at least 1"),
        ("key=z", TensorMismatch, "no array 'z'"),
        ("input=z", UsageError, "no input 'z'"),
        ("cast=float31", UsageError, "no type"),
        ("hop=1", UsageError, "unknown option 'hop'"),
    ],
)
def test_options_are_checked_at_opening(tmp_path: Path, query: str, error: type[MeshError], said: str) -> None:
    path = save(tmp_path / "a.npz", x=ramp(2, 3))
    with pytest.raises(error, match=said):
        open_source(f"{path}?{query}", [X])


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (exec, ("raise SystemExit('a pickle was run')",))

    np.savez(tmp_path / "a.npz", x=np.array([Trap()], dtype=object))
    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object))
    (tmp_path / "p.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("a.npz", "a.npy", "p.npy"):
        with pytest.raises(SourceUnreadable, match="Python objects"):
            open_source(str(tmp_path / name), [X])


def test_damaged_files_are_refused_at_opening(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.npz", x=ramp(50, 3)).read_bytes()
    flipped = bytearray(whole)
    flipped[200] ^= 0xFF
    np.save(tmp_path / "whole.npy", ramp(50, 3))
    for name, content in {
        "empty.npz": b"",
        "short.npz": whole[:-40],
        "flipped.npz": bytes(flipped),
        "text.npz": b"hello",
        "empty.npy": b"",
        "short.npy": (tmp_path / "whole.npy").read_bytes()[:-40],
        "text.npy": b"hello",
        "zip.npy": whole,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceUnreadable, match=name):
            open_source(str(tmp_path / name), [X])


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((100_000, 3), np.float32), y=np.zeros(10))
    assert (tmp_path / "bomb.npz").stat().st_size < 10_000
    monkeypatch.setattr(arrays, "MAX_NPZ_BYTES", 1_000_000)
    with pytest.raises(SourceUnreadable, match="limit is 1000000"):
        open_source(str(tmp_path / "bomb.npz"), [X])


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 3), }".ljust(117) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 12
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(SourceUnreadable, match=name):
            open_source(str(tmp_path / name), [X])


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    for name in ("no.npz", "no.npy"):
        with pytest.raises(NotFound, match="no such file"):
            open_source(str(tmp_path / name), [X])
    (tmp_path / "d.npz").mkdir()
    with pytest.raises(SourceUnreadable, match="no ordinary file"):
        open_source(str(tmp_path / "d.npz"), [X])


def test_an_npy_file_feeds_a_single_input(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ramp(4, 3))
    frames = read(f"{tmp_path / 'a.npy'}?start=1", X)
    assert [array_of(f.tensors[0]).tolist() for f in frames] == [[[3, 4, 5]], [[6, 7, 8]], [[9, 10, 11]]]
    with pytest.raises(TensorMismatch, match="2 inputs"):
        open_source(str(tmp_path / "a.npy"), [X, BATCH])
