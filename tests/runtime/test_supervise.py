"""Work that is carried through a cancellation, and supervisors that own their tasks."""

from __future__ import annotations

import asyncio

import pytest

from mesh.runtime.supervise import Supervisor, carry_through


async def test_carry_through_gives_the_result() -> None:
    async def work() -> int:
        return 7

    assert await carry_through(work(), 5) == 7


async def test_carry_through_raises_what_the_work_raises() -> None:
    async def work() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await carry_through(work(), 5)


@pytest.mark.parametrize("cancellations", [1, 3])
async def test_cancellation_waits_until_the_work_is_done(cancellations: int) -> None:
    begun, release, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await release.wait()
        done.set()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(carry_through(work(), 5))
        await begun.wait()
        for _ in range(cancellations):
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done.is_set()


async def test_work_that_takes_too_long_is_cut_off() -> None:
    cut_off = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cut_off.set()

    with pytest.raises(TimeoutError):
        await carry_through(work(), 0.01)
    assert cut_off.is_set()


async def test_a_failure_of_cancelled_work_does_not_hide_the_cancellation() -> None:
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.sleep(0.01)
        raise ValueError("mine")

    async with asyncio.TaskGroup() as group:
        task = group.create_task(carry_through(work(), 5))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_supervisor_ends_its_tasks_and_raises_their_one_failure_as_itself() -> None:
    ended = asyncio.Event()

    async def last() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def fail() -> None:
        raise ValueError("mine")

    async with Supervisor() as tasks:
        tasks.spawn(last(), "last")
        await asyncio.sleep(0)
    assert ended.is_set()
    with pytest.raises(ValueError, match="mine"):
        async with Supervisor() as tasks:
            tasks.spawn(fail(), "fail")
            await asyncio.Event().wait()
