"""Engines shared by leases: order, restarts, quarantine, deadlines, and what is left afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mesh.arrays import from_array
from mesh.core.ids import Sha256
from mesh.core.tensor import Tensor
from mesh.engines import child_process
from mesh.engines.child_channel import Region
from mesh.engines.child_process import ChildEngine, ChildSession
from mesh.engines.contract import Engine, LoadOptions
from mesh.engines.fake import FakeEngine, FakeModel, FakeSession
from mesh.errors import EngineQuarantined, LoadFailed, MeshError, RunFailed, Timeout
from mesh.runtime.engine_pool import Completion, EngineLease, EnginePool
from tests.runtime.fake_models import GatedEngine, add_one, copy, digest_of, spec, until, values_of, vector

OPTIONS = LoadOptions()
POISON = 13.0


@contextlib.asynccontextmanager
async def open_pool(engine: Engine, slots: int = 1, item_limit_s: float = 30.0) -> AsyncIterator[EnginePool]:
    pool = EnginePool(engine, slots, item_limit_s)
    try:
        yield pool
    finally:
        await pool.close()


async def lease(pool: EnginePool, model: FakeModel, share: str = "", options: LoadOptions = OPTIONS) -> EngineLease:
    return await pool.acquire(model.to_bytes(), digest_of(model), options, share)


class Answers:
    """What came back, in the order in which it came."""

    def __init__(self, engine: EngineLease) -> None:
        self._engine = engine
        self.all: list[Completion] = []

    def ask(self, *values: float, deadline_s: float | None = None) -> None:
        for value in values:
            end_at = None if deadline_s is None else time.monotonic() + deadline_s
            self._engine.submit(value, [vector(value)], self.all.append, end_at)

    async def wait(self, count: int) -> list[float | type[MeshError]]:
        await until(lambda: len(self.all) >= count, f"{count} answers")
        return [type(each.error) if each.error else values_of(each.outputs)[0] for each in self.all]


def child_of(engine: EngineLease) -> int:
    (lane,) = engine.engine.lanes
    assert isinstance(lane.session, ChildSession)
    return lane.session.pid


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def fragile() -> FakeModel:
    return FakeModel((spec("x"),), (spec("y"),), crashes_at=POISON)


async def test_leases_of_one_content_share_one_engine() -> None:
    engine = FakeEngine()
    async with open_pool(engine) as pool:
        first, second = await asyncio.gather(lease(pool, copy()), lease(pool, copy()))
        third = await lease(pool, copy(), options=LoadOptions(threads=2))
        assert len(engine.sessions) == 2
        assert first.engine is second.engine is not third.engine
        await first.release()
        answers = Answers(second)
        answers.ask(1, 2, 3)
        assert await answers.wait(3) == [1, 2, 3]
        await second.release()
        await lease(pool, copy())
        assert len(engine.sessions) == 3, "the last release freed it"


async def test_a_failed_load_is_told_to_all_and_tried_again_by_the_next() -> None:
    engine = FakeEngine()
    broken = FakeModel((spec("x"),), (spec("y"),), load_failure="broken by design")
    async with open_pool(engine) as pool:
        told = await asyncio.gather(lease(pool, broken), lease(pool, broken), return_exceptions=True)
        assert [type(each) for each in told] == [LoadFailed, LoadFailed]
        with pytest.raises(LoadFailed, match="broken by design"):
            await lease(pool, broken)


async def test_one_who_gives_up_loading_leaves_nothing() -> None:
    engine = GatedEngine()
    engine.loading.close()
    async with open_pool(engine) as pool, asyncio.TaskGroup() as group:
        waiting = group.create_task(lease(pool, copy()))
        await until(lambda: engine.loading.begun == 1)
        waiting.cancel()
        engine.loading.open()
        await asyncio.wait({waiting})
        await until(lambda: not any(thread.name.startswith("engine-") for thread in threading.enumerate()))


async def test_nothing_is_lost_when_the_child_is_killed_in_a_run() -> None:
    async with open_pool(ChildEngine("fake")) as pool:
        engine = await lease(pool, add_one("x", "y", delay_seconds=0.1))
        restarts: list[str] = []
        engine.on_restart = restarts.append
        answers = Answers(engine)
        answers.ask(1, 2, 3, 4)
        await answers.wait(1)
        before = child_of(engine)
        os.kill(before, signal.SIGKILL)
        assert await answers.wait(4) == [2, 3, 4, 5]
        assert child_of(engine) != before
        assert len(restarts) == 1
        assert "SIGKILL" in restarts[0]


async def test_an_item_that_cannot_be_handed_over_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[int] = []

    def refuse_once(number: int, size_bytes: int) -> Region:
        if not refused:
            refused.append(size_bytes)
            raise OSError(errno.ENOMEM, "no room for a region")
        return Region(number, size_bytes)

    monkeypatch.setattr(child_process, "Region", refuse_once)
    async with open_pool(ChildEngine("fake")) as pool:
        engine = await lease(pool, add_one("x", "y"))
        before = child_of(engine)
        answers = Answers(engine)
        answers.ask(1, 2)
        assert await answers.wait(2) == [2, 3]
        assert refused
        assert child_of(engine) != before


async def test_an_item_that_kills_two_engines_fails_and_the_others_go_on() -> None:
    async with open_pool(ChildEngine("fake")) as pool:
        engine = await lease(pool, fragile())
        answers = Answers(engine)
        answers.ask(1, POISON, 2)
        assert await answers.wait(3) == [1, RunFailed, 2]
        assert "2 engines died of this item" in str(answers.all[1].error)
        assert len(engine.engine.health.restarts) == 2


async def test_an_engine_that_dies_too_often_is_given_up_alone() -> None:
    async with open_pool(ChildEngine("fake")) as pool:
        bad, good = await lease(pool, fragile(), "bad"), await lease(pool, add_one("x", "y"), "good")
        reasons: list[str] = []
        bad.on_quarantine = reasons.append
        of_bad, of_good = Answers(bad), Answers(good)
        of_bad.ask(*[POISON] * 5)
        of_good.ask(*range(50))
        assert await of_bad.wait(5) == [RunFailed] * 3 + [EngineQuarantined] * 2
        assert await of_good.wait(50) == [value + 1 for value in range(50)]
        of_bad.ask(1)
        assert (await of_bad.wait(6))[5] is EngineQuarantined
        await until(lambda: len(reasons) == 1)
        assert "5 times within 60 s" in reasons[0]
        again = Answers(await lease(pool, fragile(), "bad"))
        again.ask(1)
        assert await again.wait(1) == [1], "who asks anew gets a new one"


async def test_a_run_past_its_deadline_is_ended_without_a_restart_where_the_engine_listens() -> None:
    async with open_pool(ChildEngine("fake")) as pool:
        engine = await lease(pool, FakeModel((spec("x"),), (spec("y"),), hangs=True))
        child = child_of(engine)
        answers = Answers(engine)
        answers.ask(1, deadline_s=0.1)
        assert await answers.wait(1) == [Timeout]
        assert child_of(engine) == child


def pool_over_all() -> bytes:
    """One operator that takes minutes and little memory where x, the side of a square, is 3000, and no time at 1."""
    graph = helper.make_graph(
        [
            helper.make_node("Concat", ["one", "one", "x", "x"], ["shape"], axis=0),
            helper.make_node("ConstantOfShape", ["shape"], ["square"]),
            helper.make_node("MaxPool", ["square"], ["largest"], kernel_shape=[1501, 1501], auto_pad="SAME_UPPER"),
            helper.make_node("ReduceMax", ["largest"], ["y"], keepdims=0),
        ],
        "long operator",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        [helper.make_tensor("one", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


async def test_an_operator_that_hears_nothing_is_killed_a_second_after_its_limit() -> None:
    async with open_pool(ChildEngine(), item_limit_s=1.0) as pool:  # by then it is in the operator
        engine = await pool.acquire(pool_over_all(), Sha256("5" * 64), OPTIONS)
        child = child_of(engine)
        done: list[Completion] = []
        began = time.monotonic()
        for size in (3000, 1):
            engine.submit(size, [from_array(np.array([size]))], done.append)
        await until(lambda: len(done) == 2)
        assert time.monotonic() - began < 30, "far less than the operator takes"
        assert isinstance(done[0].error, RunFailed)
        assert "the run was ended after" in str(done[0].error)
        assert done[1].error is None
        assert child_of(engine) != child


class PatientSession(FakeSession):
    """Takes as many hundredths of a second as its input says."""

    def run(self, feeds: Sequence[Tensor]) -> list[Tensor]:
        time.sleep(values_of(feeds)[0] / 100)
        return super().run(feeds)


class PatientEngine(FakeEngine):
    def load(self, model: bytes | Path, options: LoadOptions) -> FakeSession:
        return PatientSession(super().load(model, options).model, options)


async def test_several_runs_at_once_are_answered_in_order() -> None:
    async with open_pool(PatientEngine(), slots=2) as pool:
        engine = await lease(pool, copy(), options=LoadOptions(runs=2))
        answers = Answers(engine)
        values = [100.0, 1, 1, 1, 10, 1]
        answers.ask(*values)
        assert await answers.wait(6) == values
        started = [completion.started_at for completion in answers.all]
        assert started[3] < answers.all[0].started_at + 1.0, "the second lane went on meanwhile"


async def test_a_long_run_does_not_keep_the_others_waiting() -> None:
    async with open_pool(ChildEngine("fake")) as pool:
        stuck = await lease(pool, FakeModel((spec("x"),), (spec("y"),), hangs=True), "stuck")
        other = await lease(pool, add_one("x", "y"), "other")
        Answers(stuck).ask(1)
        answers = Answers(other)
        answers.ask(1, 2)
        assert await answers.wait(2) == [2, 3]


async def test_closing_ends_what_runs_and_leaves_no_child() -> None:
    async with open_pool(ChildEngine("fake")) as pool:
        engine = await lease(pool, FakeModel((spec("x"),), (spec("y"),), hangs=True))
        child = child_of(engine)
        answers = Answers(engine)
        answers.ask(1, 2)
        (lane,) = engine.engine.lanes
        await until(lambda: lane.running is not None)
        began = time.monotonic()
        await engine.release()
        assert time.monotonic() - began < 1.0
        assert not is_there(child)
        assert answers.all == []
