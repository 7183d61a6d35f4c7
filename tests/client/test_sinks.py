"""What holds for every kind of sink, and what each does of its own."""

from __future__ import annotations

import errno
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mesh.client.sinks import Sink, SinkRecord, describe_sinks, open_sink
from mesh.client.sinks.jsonl import INLINE_ELEMENTS, render_tensor
from mesh.client.sinks.null import NullSink
from mesh.client.sinks.opening import SINKS
from mesh.client.sinks.storage import storage_error
from mesh.client.sources import open_source
from mesh.client.values import pack_values
from mesh.core.frame import Outcome
from mesh.core.tensor import DType, Tensor, TensorSpec, pack_strings
from mesh.errors import (
    MissingExtra,
    RunFailed,
    StorageError,
    StorageFull,
    StorageReadOnly,
    TensorMismatch,
    Timeout,
    UsageError,
)

F32 = DType.FLOAT32
SCORES = TensorSpec("scores", F32, ("batch", 3))
COUNT = TensorSpec("count", DType.INT64, ())
URLS = {"jsonl": "jsonl:{0}/out.jsonl", "npz": "npz:{0}/out.npz", "null": "null:"}


def floats(*values: float, shape: tuple[int, ...] | None = None) -> Tensor:
    return Tensor.from_bytes(F32, shape or (1, len(values)), pack_values(values, F32))


def whole(value: int) -> Tensor:
    return Tensor.from_bytes(DType.INT64, (), pack_values([value], DType.INT64))


def answer(sequence: int, *tensors: Tensor) -> SinkRecord:
    return SinkRecord(sequence, Outcome.OK, tensors, f"a.npz[{sequence}]", 0.00425)


def missing(sequence: int, outcome: Outcome = Outcome.LATE) -> SinkRecord:
    return SinkRecord(sequence, outcome, (), "", None, Timeout("too late", hint="wait longer"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    def refuse(text: str) -> float:
        raise AssertionError(f"{text} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


# Every kind


def test_every_kind_of_sink_is_held_to_this() -> None:
    assert set(URLS) == set(SINKS)
    assert all(f"{scheme}:" in describe_sinks() for scheme in SINKS)
    assert all(option in describe_sinks() for kind in SINKS.values() for option in kind.options)


@pytest.fixture(params=URLS)
def sink(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sink]:
    opened = open_sink(URLS[request.param].format(tmp_path), [SCORES, COUNT])
    yield opened
    opened.discard()


def test_it_takes_every_outcome_and_closes_twice(sink: Sink, tmp_path: Path) -> None:
    sink.write(answer(0, floats(1, 2, 3), whole(7)))
    for sequence, outcome in enumerate(Outcome, start=1):
        if outcome is not Outcome.OK:
            sink.write(missing(sequence, outcome))
    sink.close()
    sink.close()
    sink.discard()
    assert not list(tmp_path.glob(".*")), "something unfinished is left"


def test_answers_that_are_not_the_models_are_refused(sink: Sink) -> None:
    for tensors in [(), (floats(1, 2, 3),), (whole(1), floats(1, 2, 3)), (floats(1, 2), whole(1))]:
        with pytest.raises(TensorMismatch):
            sink.write(answer(0, *tensors))
    sink.write(answer(0, floats(1, 2, 3), whole(1)))
    sink.close()


def test_discard_leaves_nothing_unfinished(sink: Sink, tmp_path: Path) -> None:
    sink.write(answer(0, floats(1, 2, 3), whole(7)))
    sink.discard()
    sink.discard()
    sink.close()
    assert not (tmp_path / "out.npz").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("scheme", ["jsonl", "npz"])
def test_what_cannot_be_written_is_found_at_opening(scheme: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="folder does not exist"):
        open_sink(f"{scheme}:{tmp_path}/no/out", [SCORES])
    with pytest.raises(StorageError):
        open_sink(f"{scheme}:{tmp_path}", [SCORES])
    with pytest.raises(StorageError):
        open_sink(f"{scheme}:/proc/no-such-entry", [SCORES])
    with pytest.raises(StorageError):
        open_sink(f"{scheme}:{tmp_path}/{'n' * 300}", [SCORES])
    with pytest.raises(UsageError, match="names no file"):
        open_sink(f"{scheme}:", [SCORES])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("null:x", "takes no path"),
        ("mqtt:x", "unknown scheme"),
        ("out.csv", "does not say what it is"),
        ("null:?a=1", "unknown option 'a'"),
        ("out.npz?append=1", "unknown option 'append'"),
        ("-?values=some", "auto, all, none, top"),
        ("-?append=1", "append is for files"),
    ],
)
def test_urls_that_make_no_sense_are_refused(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        open_sink(url, [SCORES])


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EROFS, StorageReadOnly),
        (errno.EACCES, StorageReadOnly),
        (errno.EIO, StorageError),
        (errno.EPIPE, StorageError),
    ],
)
def test_refusals_of_the_system_have_a_name(number: int, error: type[StorageError]) -> None:
    assert type(storage_error(OSError(number, "no"), "here")) is error


def test_the_null_sink_counts() -> None:
    sink = open_sink("null:", [SCORES])
    assert isinstance(sink, NullSink)
    sink.write(answer(0, floats(1, 2, 3)))
    sink.write(missing(1))
    sink.write(missing(2))
    assert sink.counts == {Outcome.OK: 1, Outcome.LATE: 2}


# JSON lines


def test_a_line_tells_everything_and_comes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sink = open_sink(str(path), [SCORES, COUNT])
    sink.write(answer(4, floats(0.1, math.nan, -math.inf), whole(2**60 + 1)))
    sink.write(missing(5))
    lines = read_lines(path)  # before the close
    assert lines == [
        {
            "sequence": 4,
            "outcome": "ok",
            "origin": "a.npz[4]",
            "latency_ms": 4.25,
            "outputs": {
                "scores": {"dtype": "float32", "shape": [1, 3], "data": [0.1, None, None], "non_finite": 2},
                "count": {"dtype": "int64", "shape": [], "data": [2**60 + 1]},
            },
        },
        {
            "sequence": 5,
            "outcome": "late",
            "origin": "",
            "latency_ms": None,
            "error": {"code": "timeout", "message": "too late", "hint": "wait longer"},
        },
    ]
    sink.close()


def test_files_are_overwritten_unless_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    for url, lines in [(f"{path}", 1), (f"{path}?append=1", 2), (f"jsonl:{path}", 1)]:
        sink = open_sink(url, [SCORES])
        sink.write(missing(0))
        sink.close()
        assert len(read_lines(path)) == lines
        with pytest.raises(StorageError, match="closed already"):
            sink.write(missing(1))


def test_standard_output_is_written_and_left_open() -> None:
    stdout = io.StringIO()
    sink = open_sink("-?values=none", [SCORES], stdout=stdout)
    sink.write(answer(0, floats(1, 2, 3)))
    sink.close()
    assert json.loads(stdout.getvalue())["outputs"] == {"scores": {"dtype": "float32", "shape": [1, 3]}}


def test_a_full_disk_and_a_reader_that_left_are_storage_errors() -> None:
    class Broken(io.StringIO):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def flush(self) -> None:
            raise OSError(self.number, "no")

    with pytest.raises(StorageFull):
        open_sink("-", [SCORES], stdout=Broken(errno.ENOSPC)).write(missing(0))
    with pytest.raises(StorageError, match="reader went away"):
        open_sink("-", [SCORES], stdout=Broken(errno.EPIPE)).write(missing(0))


def test_a_really_full_disk(tmp_path: Path) -> None:
    sink = open_sink("jsonl:/dev/full", [SCORES])
    with pytest.raises(StorageFull):
        sink.write(missing(0))
    with pytest.raises(StorageFull):
        sink.close()


def test_large_tensors_are_told_by_their_shape() -> None:
    small, large = (
        Tensor.from_bytes(DType.UINT8, (size,), bytes(size)) for size in (INLINE_ELEMENTS, INLINE_ELEMENTS + 1)
    )
    assert len(render_tensor(small)["data"]) == INLINE_ELEMENTS
    assert render_tensor(large) == {"dtype": "uint8", "shape": [INLINE_ELEMENTS + 1]}
    assert len(render_tensor(large, "all")["data"]) == INLINE_ELEMENTS + 1


def test_the_highest_score_is_named() -> None:
    def top(tensor: Tensor) -> Any:
        return render_tensor(tensor, "top").get("top", "not asked")

    assert top(floats(0.1, 0.7, 0.7)) == {"index": 1, "score": 0.7}
    assert top(floats(math.nan, -2, math.inf)) == {"index": 1, "score": -2.0}
    assert top(floats(math.nan, math.nan)) is None
    assert top(floats(1, 2, 3, 4, shape=(2, 2))) == "not asked"
    assert top(Tensor.from_bytes(DType.STRING, (1,), pack_strings([b"a"]))) == "not asked"
    assert top(Tensor.from_bytes(F32, (0,), b"")) == "not asked"
    assert "data" not in render_tensor(floats(1, 2), "top")


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.FLOAT32, DType.FLOAT64, DType.BFLOAT16])
@given(values=st.lists(st.floats(-60000, 60000) | st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_printed_floats_come_back_exactly(dtype: DType, values: list[float]) -> None:
    if dtype is DType.FLOAT16:
        values = [max(-65504.0, min(65504.0, value)) for value in values]
    tensor = Tensor.from_bytes(dtype, (len(values),), pack_values(values, dtype))
    assume("non_finite" not in render_tensor(tensor))
    printed = json.loads(json.dumps(render_tensor(tensor)["data"]))
    assert pack_values(printed, dtype) == bytes(tensor.data)


# Arrays


def test_answers_become_arrays_with_the_missing_ones_masked(tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    sink = open_sink(str(path), [SCORES, COUNT])
    sink.write(missing(0, Outcome.DROPPED))  # before any shape is known
    sink.write(answer(1, floats(1, 2, 3), whole(7)))
    sink.write(missing(2, Outcome.FAILED))
    sink.write(answer(4, floats(4, 5, 6), whole(-8)))
    assert not path.exists()
    sink.close()
    with np.load(path, allow_pickle=False) as saved:
        assert sorted(saved.files) == ["count", "outcome", "scores", "sequence", "valid"]
        nan = [[math.nan] * 3]
        want = np.array([nan, [[1, 2, 3]], nan, [[4, 5, 6]]], np.float32)
        assert saved["scores"].dtype == np.float32 and np.array_equal(saved["scores"], want, equal_nan=True)
        assert saved["count"][saved["valid"]].tolist() == [7, -8]
        assert saved["sequence"].tolist() == [0, 1, 2, 4]
        assert saved["valid"].tolist() == [False, True, False, True]
        assert saved["outcome"].tolist() == ["dropped", "ok", "failed", "ok"]


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype is not DType.BFLOAT16])
def test_what_a_source_reads_a_sink_writes(dtype: DType, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    if dtype is DType.STRING:
        values: Any = np.array([[["grün", ""]], [["b", "c\nd"]]])
    else:
        values = rng.integers(0, 2 if dtype is DType.BOOL else 100, (6, 1, 4)).astype(dtype.label)
    spec = TensorSpec("x", dtype, (1, values.shape[-1]))
    np.savez(tmp_path / "in.npz", x=values)
    sink = open_sink(str(tmp_path / "out.npz"), [spec])
    for sequence, frame in enumerate(open_source(str(tmp_path / "in.npz"), [spec]).frames()):
        sink.write(answer(sequence, *frame.tensors))
    sink.write(missing(99))
    sink.close()
    with np.load(tmp_path / "out.npz", allow_pickle=False) as saved:
        assert saved["x"].dtype.kind == values.dtype.kind
        assert np.array_equal(saved["x"][saved["valid"]], values)
        assert len(saved["x"]) == len(values) + 1


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    spec = TensorSpec("x", DType.BFLOAT16, (2,))
    sink = open_sink(str(tmp_path / "out.npz"), [spec])
    sink.write(answer(0, Tensor.from_bytes(DType.BFLOAT16, (2,), pack_values([1.5, -2], DType.BFLOAT16))))
    sink.write(missing(1))
    sink.close()
    with np.load(tmp_path / "out.npz") as saved:
        assert np.array_equal(saved["x"], np.array([[1.5, -2], [math.nan] * 2], np.float32), equal_nan=True)


def test_no_answer_at_all_is_a_file_too(tmp_path: Path) -> None:
    sink = open_sink(str(tmp_path / "out.npz"), [SCORES, COUNT, TensorSpec("any", F32, None)])
    sink.write(missing(0))
    sink.close()
    with np.load(tmp_path / "out.npz") as saved:
        assert (saved["scores"].shape, saved["count"].shape, saved["any"].shape) == ((1, 0, 3), (1,), (1, 0))


def test_outputs_named_like_the_bookkeeping_keep_their_names(tmp_path: Path) -> None:
    spec = TensorSpec("sequence", F32, (1, 2))
    sink = open_sink(str(tmp_path / "out.npz"), [spec])
    sink.write(answer(5, floats(1, 2)))
    sink.close()
    with np.load(tmp_path / "out.npz") as saved:
        assert saved["sequence"].tolist() == [[[1, 2]]]
        assert saved["mesh_sequence"].tolist() == [5]


def test_answers_of_changing_shape_are_refused_and_the_rest_stands(tmp_path: Path) -> None:
    specs = [COUNT, TensorSpec("boxes", F32, ("n", 2))]
    sink = open_sink(str(tmp_path / "out.npz"), specs)
    sink.write(answer(0, whole(1), floats(1, 2)))
    with pytest.raises(TensorMismatch, match=r"\[2, 2\] after ones of \[1, 2\].*jsonl"):
        sink.write(answer(1, whole(2), floats(1, 2, 3, 4, shape=(2, 2))))
    sink.write(answer(2, whole(3), floats(3, 4)))
    sink.close()
    with np.load(tmp_path / "out.npz") as saved:
        assert saved["count"].tolist() == [1, 3]
        assert saved["sequence"].tolist() == [0, 2]


def test_an_old_file_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.npz"
    path.write_bytes(b"old")
    sink = open_sink(str(path), [SCORES])
    sink.write(answer(0, floats(1, 2, 3)))

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mesh.client.sinks.npz._write_column", fail)
    with pytest.raises(StorageFull):
        sink.close()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.npz"]


def test_rows_move_to_disk_when_they_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.client.sinks.npz.SPOOL_BYTES", 100)
    sink = open_sink(str(tmp_path / "out.npz"), [SCORES])
    for sequence in range(200):
        sink.write(answer(sequence, floats(sequence, 0, 0)))
    sink.close()
    with np.load(tmp_path / "out.npz") as saved:
        assert saved["scores"][:, 0, 0].tolist() == list(range(200))


def test_devices_are_not_replaced() -> None:
    with pytest.raises(StorageError, match="no ordinary file"):
        open_sink("npz:/dev/null", [SCORES])
    assert Path("/dev/null").is_char_device()


def test_numpy_is_named_when_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "numpy", None)
    with pytest.raises(MissingExtra, match=r"infermesh\[numpy\]"):
        open_sink(str(tmp_path / "out.npz"), [SCORES])


def test_an_error_of_a_stage_is_carried(tmp_path: Path) -> None:
    sink = open_sink(str(tmp_path / "out.jsonl"), [SCORES])
    sink.write(SinkRecord(0, Outcome.FAILED, error=RunFailed("no")))
    sink.close()
    assert read_lines(tmp_path / "out.jsonl")[0]["error"] == {"code": "run-failed", "message": "no", "hint": ""}
