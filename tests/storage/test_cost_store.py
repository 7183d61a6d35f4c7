"""The cost store: what was told comes back, and a damaged file is never believed and never in the way."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.costs import DeviceType
from mesh.core.fleet import Handling, Link
from mesh.core.ids import NodeId, Sha256
from mesh.core.plan import Segment
from mesh.errors import UsageError
from mesh.storage import cost_store
from mesh.storage.cost_figures import MemoryCost, ModelCost
from mesh.storage.cost_store import CORRUPT_SUFFIX, CostStore, decode_store, encode_store, open_shared

MODEL, OTHER = Sha256("a" * 64), Sha256("b" * 64)
BOARD = DeviceType("Raspberry Pi 4", 4.0, "1.20.1", "4x1")
LAPTOP = replace(BOARD, hardware="laptop")
ONE, TWO = NodeId("1" * 32), NodeId("2" * 32)
PART = Segment(1, 3, (), (), (), 0, 0, Sha256("c" * 64))
LINK = Link(0.001, 1e7, sending=Handling(1e-4, 2e-9, True), receiving=Handling(2e-4, 1e-8, True))
WHOLE, GROWN = MemoryCost(MODEL, 0, 3, 90, 1000.0), MemoryCost(MODEL, 1, 3, 70, 999.0)
COST = ModelCost((0.1, 0.0, 0.3), at=1000.0, gflops=9.5)


def filled(path: Path | None) -> CostStore:
    store = CostStore(path)
    store.put_model(MODEL, BOARD, COST)
    store.put_segment(MODEL, PART, BOARD, 0.25, at=1001.0)
    store.put_memory(MODEL, BOARD, WHOLE)
    store.put_memory(Sha256("c" * 64), BOARD, GROWN)
    store.put_link(ONE, TWO, LINK, at=1002.0)
    store.save()
    return store


def test_what_was_told_comes_back(tmp_path: Path) -> None:
    filled(tmp_path / "costs")
    store = CostStore(tmp_path / "costs")
    assert store.damage == ""
    assert store.model(MODEL, BOARD) == COST and store.model(MODEL, LAPTOP) is None
    assert COST.seconds == pytest.approx(0.4)
    (part,) = store.segments_of(MODEL, BOARD)
    assert (part.start, part.end, part.seconds, part.at) == (1, 3, 0.25, 1001.0)
    assert part == store.segment("c" * 64, BOARD)
    assert store.memory_of(MODEL, BOARD) == [GROWN, WHOLE] and store.memory_of(MODEL, LAPTOP) == []
    link = store.link(ONE, TWO)
    assert link is not None and (link.latency_seconds, link.bytes_per_second, link.at) == (0.001, 1e7, 1002.0)
    assert store.link(TWO, ONE) is None


def test_a_store_without_a_path_keeps_what_it_is_told() -> None:
    assert filled(None).model(MODEL, BOARD) == COST


def test_a_new_profile_begins_anew_and_forgetting_forgets_parts() -> None:
    store = filled(None)
    store.put_segment(OTHER, PART, LAPTOP, 1.0, at=1.0)
    store.put_model(MODEL, BOARD, replace(COST, at=2000.0))
    assert len(store.memory_of(MODEL, BOARD)) == 2
    assert store.segments_of(MODEL, BOARD) == [] and len(store.segments_of(OTHER, LAPTOP)) == 1
    store.forget_model(OTHER)
    assert store.segments_of(OTHER, LAPTOP) == [] and store.model(MODEL, BOARD) is not None
    store.forget_model(MODEL)
    assert store.model(MODEL, BOARD) is None and store.memory_of(MODEL, BOARD) == []


def test_nothing_is_written_where_nothing_changed(tmp_path: Path) -> None:
    store = filled(tmp_path / "costs")
    before = (tmp_path / "costs").stat().st_mtime_ns, (tmp_path / "costs").stat().st_ino
    store.save()
    assert before == ((tmp_path / "costs").stat().st_mtime_ns, (tmp_path / "costs").stat().st_ino)


def test_the_oldest_figures_make_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cost_store, "MAX_MODELS", 3)
    store = CostStore(tmp_path / "costs")
    for number in range(6):
        store.put_model(Sha256(f"{number:064d}"), BOARD, replace(COST, at=float(number)))
    assert [store.model(f"{number:064d}", BOARD) is not None for number in range(6)] == [False] * 3 + [True] * 3
    monkeypatch.setattr(cost_store, "MAX_STORE_BYTES", 600)
    store.save()
    assert (tmp_path / "costs").stat().st_size <= 600
    again = CostStore(tmp_path / "costs")
    assert again.damage == "" and again.model(f"{5:064d}", BOARD) is not None


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0, "1", None, True])
def test_figures_that_make_no_sense_are_refused(wrong: Any) -> None:
    store = CostStore()
    with pytest.raises(UsageError):
        ModelCost((0.1, wrong), at=1.0)
    with pytest.raises(UsageError):
        ModelCost((0.1,), at=wrong)
    with pytest.raises(UsageError):
        store.put_segment(MODEL, PART, BOARD, wrong, at=1.0)
    with pytest.raises(UsageError):
        store.put_link(ONE, TWO, Link(0.1, wrong) if wrong is not True else Link(wrong, 1.0), at=1.0)
    with pytest.raises(UsageError):
        ModelCost((0.0, 0.0), at=1.0)
    with pytest.raises(UsageError):
        store.put_segment(MODEL, replace(PART, sha256=None), BOARD, 0.1, at=1.0)


def test_commands_at_once_keep_what_each_measured(tmp_path: Path) -> None:
    path = tmp_path / "costs"
    one, two = CostStore(path, is_shared=True), CostStore(path, is_shared=True)
    one.put_model(MODEL, BOARD, COST)
    one.put_link(ONE, TWO, LINK, at=5.0)
    two.put_model(MODEL, LAPTOP, COST)
    two.put_link(ONE, TWO, replace(LINK, latency_seconds=0.5), at=6.0)
    two.put_link(TWO, ONE, LINK, at=7.0)
    one.put_memory(MODEL, BOARD, WHOLE)
    two.put_memory(MODEL, BOARD, replace(WHOLE, peak_bytes=95, at=1003.0))
    two.save()
    one.save()
    after = CostStore(path)
    assert after.model(MODEL, BOARD) == after.model(MODEL, LAPTOP) == COST
    assert [each.peak_bytes for each in after.memory_of(MODEL, BOARD)] == [95]
    newer, other = after.link(ONE, TWO), after.link(TWO, ONE)
    assert newer is not None and newer.latency_seconds == 0.5 and other is not None
    assert one.model(MODEL, LAPTOP) == COST, "and it knows it itself"


def test_what_a_command_measured_anew_does_not_return_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "costs"
    filled(path)
    store = CostStore(path, is_shared=True)
    store.put_model(MODEL, BOARD, replace(COST, at=2000.0))
    store.save()
    assert CostStore(path).segments_of(MODEL, BOARD) == [], "of before the new profile"
    store.put_segment(MODEL, PART, BOARD, 0.5, at=2001.0)
    store.forget_model(MODEL)
    store.save()
    assert CostStore(path).model(MODEL, BOARD) is None and CostStore(path).link(ONE, TWO) is not None
    assert CostStore(path).memory_of(MODEL, BOARD) == []


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(1, 9)), max_size=12))
def test_the_latest_figure_of_any_command_stays(
    tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[int, int, int]]
) -> None:
    """However commands take turns; two figures of the same moment are as good as each other."""
    path = tmp_path_factory.mktemp("turns") / "costs"
    stores = [CostStore(path, is_shared=True) for _ in range(3)]
    latest: dict[int, float] = {}
    for writer, model, at in puts:
        known = stores[writer].model(f"{model:064d}", BOARD)
        if known is None or known.at < at:
            stores[writer].put_model(Sha256(f"{model:064d}"), BOARD, replace(COST, at=float(at)))
            latest[model] = max(latest.get(model, 0.0), float(at))
        stores[writer].save()
    after = CostStore(path)
    assert {model: cost.at for model in range(6) if (cost := after.model(f"{model:064d}", BOARD))} == latest


def test_without_a_folder_of_their_own_commands_keep_figures_in_memory(tmp_path: Path) -> None:
    made, told = open_shared(tmp_path / "some" / "where" / "costs")
    assert told == "" and (tmp_path / "some" / "where").is_dir()
    made.put_model(MODEL, BOARD, COST)
    made.save()
    assert open_shared(tmp_path / "some" / "where" / "costs")[0].model(MODEL, BOARD) == COST
    (tmp_path / "file").write_text("in the way")
    store, told = open_shared(tmp_path / "file" / "costs")
    assert "not kept" in told and str(tmp_path / "file") in told
    store.put_model(MODEL, BOARD, COST)
    store.save()
    assert store.model(MODEL, BOARD) == COST and not store.is_shared


def test_a_damaged_file_of_commands_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "costs").write_bytes(b"nonsense")
    store, told = open_shared(tmp_path / "costs")
    assert "set aside" in told
    store.put_model(MODEL, BOARD, COST)
    store.save()
    assert open_shared(tmp_path / "costs")[1] == ""


def damaged(tmp_path: Path, data: bytes) -> CostStore:
    path = tmp_path / "costs"
    path.write_bytes(data)
    store = CostStore(path)
    if store.damage:
        assert not path.exists() and path.with_name(f"costs{CORRUPT_SUFFIX}").read_bytes() == data
        assert store.model(MODEL, BOARD) is None and store.segments_of(MODEL, BOARD) == []
        assert store.link(ONE, TWO) is None
        store.put_model(MODEL, BOARD, COST)
        store.save()  # and everything goes on
        assert CostStore(path).model(MODEL, BOARD) == COST
    return store


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_file_cut_off_anywhere_is_set_aside(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("cut")
    filled(folder / "whole")
    whole = (folder / "whole").read_bytes()
    size = data.draw(st.integers(0, len(whole) - 1))
    assert "set aside" in damaged(folder, whole[:size]).damage


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_flipped_bit_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("flip")
    filled(folder / "whole")
    whole = bytearray((folder / "whole").read_bytes())
    place = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[place // 8] ^= 1 << place % 8
    assert "set aside" in damaged(folder, bytes(whole)).damage


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_set_aside(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    assert damaged(tmp_path_factory.mktemp("garbage"), data).damage


def test_another_version_is_set_aside(tmp_path: Path) -> None:
    filled(tmp_path / "whole")
    whole = bytearray((tmp_path / "whole").read_bytes())
    struct.pack_into("<H", whole, 8, cost_store.VERSION + 1)
    assert f"version {cost_store.VERSION + 1}" in damaged(tmp_path, bytes(whole)).damage


def sealed(change: Any) -> bytes:
    """A file whose checksum is right and whose content `change` made wrong."""
    body = json.loads(decode_store(bytes(filled_bytes())))
    change(body)
    return encode_store(json.dumps(body).encode())


def filled_bytes() -> bytes:
    store = filled(None)
    return store._encode()


WRONG = {
    "a NaN": lambda body: body["models"][0][2].update(group_seconds=[float("nan")]),
    "infinity": lambda body: body["links"][0][2].update(bytes_per_second=float("inf")),
    "a negative time": lambda body: body["segments"][0][2].update(seconds=-1.0),
    "a time of a day's length": lambda body: body["models"][0][2].update(group_seconds=[1e9]),
    "a number too large": lambda body: body["models"][0][2].update(group_seconds=[10**400]),
    "a text for a time": lambda body: body["models"][0][2].update(group_seconds=["1"]),
    "a truth for a time": lambda body: body["segments"][0][2].update(seconds=True),
    "no groups": lambda body: body["models"][0][2].update(group_seconds=[]),
    "an unknown field": lambda body: body["models"][0][2].update(colour=1),
    "a missing field": lambda body: body["segments"][0][2].pop("at"),
    "a missing table": lambda body: body.pop("links"),
    "a table that is none": lambda body: body.update(models={"a": 1}),
    "a row too short": lambda body: body["models"][0].pop(),
    "a key that is none": lambda body: body["models"][0].__setitem__(0, 7),
    "memory of less than nothing": lambda body: body["memory"][0][2].update(peak_bytes=-1),
    "memory without a size": lambda body: body["memory"][0][2].update(peak_bytes=0),
    "half a byte of memory": lambda body: body["memory"][0][2].update(peak_bytes=0.5),
    "memory beyond any device": lambda body: body["memory"][0][2].update(peak_bytes=1 << 60),
    "memory of no groups": lambda body: body["memory"][0][2].update(start=3, end=3),
    "a position that is none": lambda body: body["segments"][0][2].update(start=0.5),
    "a segment backwards": lambda body: body["segments"][0][2].update(start=5, end=2),
    "a device type that is none": lambda body: body["models"][0].__setitem__(1, {"hardware": "x"}),
    "cores that are none": lambda body: body["models"][0][1].update(cores=-2),
    "too many rows": lambda body: body.update(links=body["links"] * (cost_store.MAX_LINKS + 1)),
}


@pytest.mark.parametrize("what", WRONG)
def test_nonsense_under_a_right_checksum_is_set_aside(what: str, tmp_path: Path) -> None:
    assert "set aside" in damaged(tmp_path, sealed(WRONG[what])).damage


def test_a_body_nested_without_end_is_set_aside(tmp_path: Path) -> None:
    assert damaged(tmp_path, encode_store(b"[" * 200_000)).damage
