"""The child process of an engine: one loaded model, run for the parent on the other end of a socket.

Started by `mesh.engines.child_process`. What crashes, hangs or runs out of memory here takes this
process and nothing else. It loads no more than its engine needs, because it starts again after each
crash. It ends when the parent closes the sockets, and with the parent however that ends; on Linux the
kernel sees to it. The main thread computes; another one hears `terminate` meanwhile.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mesh.core.tensor import Tensor
from mesh.engines import import_runtime, make_engine
from mesh.engines.child_channel import (
    RUN_NUMBER,
    Channel,
    LayoutCache,
    Message,
    Region,
    encode_json,
    spec_to_json,
)
from mesh.engines.contract import Engine, LoadOptions, Session
from mesh.engines.resident import ResidentGrowth
from mesh.errors import LoadFailed, MeshError, RunFailed

MAX_IDLE_REGIONS = 4
"""Answers that wait at the parent keep their regions; more than this many free ones are given back."""

OOM_SCORE = 800
"""Of 1000: where the device runs out of memory, the kernel takes an engine before the daemon and most else."""

MEASURED_RUNS = 3
"""So many runs tell what memory running takes: the first allocates, the next ones reuse."""

_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> int:
    """`arguments`: descriptors of the data and the control socket, and the parent's process id."""
    data, control, parent = map(int, arguments)
    die_with_parent(parent)
    expect_trouble()
    channel = Channel(socket.socket(fileno=data))
    try:
        message = channel.receive()
        opened = _answer_opening(channel, json.loads(message.body), message.descriptor)
        if opened is None:
            return 1
        session, growth = opened
        Worker(session, channel, socket.socket(fileno=control), growth).serve()
    except (EOFError, OSError):
        return 0  # the parent has gone, or has closed the session
    return 0


def die_with_parent(parent: int) -> None:
    if sys.platform != "linux":
        return  # the closed sockets end this process there
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before it was asked for
        os._exit(1)


def expect_trouble() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file per crash would fill an SD card
    try:
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    except OSError:
        return  # no such file, or a container that forbids it: then the kernel chooses by size


def _limit_memory(limit_bytes: int) -> None:
    """Private writable memory, which leaves out libraries and shared regions. Over it, allocations fail."""
    if limit_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def _answer_opening(
    channel: Channel, opening: dict[str, Any], descriptor: int | None
) -> tuple[Session, ResidentGrowth] | None:
    try:
        _limit_memory(opening["memory_limit"])
        engine = make_engine(opening["engine"])
        import_runtime(opening["engine"])  # every engine has that; the growth is the model's own
        growth = ResidentGrowth()
        session = _load(engine, opening, descriptor)
        growth.look()
    except MeshError as error:
        channel.send(_describe(error))
        return None
    except MemoryError:
        channel.send(_describe(LoadFailed("there is not enough memory to load the model")))
        return None
    specs = {"inputs": session.inputs, "outputs": session.outputs}
    channel.send(
        Message(body=encode_json({role: [spec_to_json(spec) for spec in each] for role, each in specs.items()}))
    )
    return session, growth


def _load(engine: Engine, opening: dict[str, Any], descriptor: int | None) -> Session:
    options = LoadOptions(tuple(opening["providers"]), opening["threads"])
    if descriptor is None:
        return engine.load(Path(opening["path"]), options)
    with os.fdopen(descriptor, "rb") as file:
        return engine.load(file.read(opening["size"]), options)


def _describe(error: MeshError, *numbers: int) -> Message:
    return Message(numbers, encode_json([error.code, error.message, error.hint]), is_error=True)


def _name_failure(failure: Exception) -> MeshError:
    if isinstance(failure, MeshError):
        return failure
    if isinstance(failure, MemoryError):
        return RunFailed("there is not enough memory for this run")
    return RunFailed(f"the engine failed unexpectedly: {type(failure).__name__}: {failure}")


_NOTHING = memoryview(b"")


class Worker:
    """Owns the session and the regions with answers."""

    def __init__(self, session: Session, channel: Channel, control: socket.socket, growth: ResidentGrowth) -> None:
        self._session = session
        self._channel = channel
        self._control = control
        self._growth = growth
        self._runs = 0
        """That succeeded; counted no further than to `MEASURED_RUNS`."""
        self._peak_bytes = 0
        """What loading and these runs took; 0 before them."""
        self._lock = threading.Lock()
        self._current = 0
        """Number of the run that is under way, or 0."""
        self._layouts = LayoutCache()
        self._feeds: dict[int, memoryview] = {}
        """By the numbers of the parent's regions."""
        self._regions: dict[int, Region] = {}
        """All that the parent knows, those that are free included."""
        self._free: list[int] = []
        self._made = 0

    def serve(self) -> None:
        """Until the parent closes; raises `EOFError` or `OSError` then."""
        threading.Thread(target=self._hear_terminate, name="terminate", daemon=True).start()
        while True:
            asked = self._channel.receive()
            number, region, size, *free = asked.numbers
            if asked.descriptor is not None:
                self._feeds[region] = memoryview(mmap.mmap(asked.descriptor, size))
                os.close(asked.descriptor)
            self._free.extend(free)
            self._channel.send(self._run(number, asked.body, self._feeds.get(region, _NOTHING)))

    def _run(self, number: int, layout: bytes, view: memoryview) -> Message:
        with self._lock:
            self._current = number
        began = time.perf_counter_ns()
        try:
            outputs = self._session.run(self._layouts.decode(layout, view))
        except Exception as failure:  # an engine's bug must cost one answer, not the process
            return _describe(_name_failure(failure), number, time.perf_counter_ns() - began, 0, 0, 0)
        finally:
            with self._lock:
                self._current = 0
        nanoseconds = time.perf_counter_ns() - began
        if self._runs < MEASURED_RUNS:
            self._runs += 1
            taken = self._growth.look()
            self._peak_bytes = taken if self._runs == MEASURED_RUNS else 0
        return self._hand_over(outputs, number, nanoseconds)

    def _hand_over(self, outputs: list[Tensor], number: int, nanoseconds: int) -> Message:
        layout, size = self._layouts.encode(outputs)
        if not size:
            return Message((number, nanoseconds, 0, 0, self._peak_bytes), layout)
        region, is_new, dropped = self._take_region(size)
        region.write(outputs)
        descriptor = region.descriptor if is_new else None
        numbers = (number, nanoseconds, region.number, region.size_bytes, self._peak_bytes, *dropped)
        return Message(numbers, layout, descriptor=descriptor)

    def _take_region(self, size: int) -> tuple[Region, bool, list[int]]:
        """A region for `size` bytes, whether the parent has yet to see it, and those that are no more."""
        fitting = [region for number in self._free if (region := self._regions[number]).size_bytes >= size]
        if fitting:
            chosen = fitting[0] if len(fitting) == 1 else min(fitting, key=lambda region: region.size_bytes)
            self._free.remove(chosen.number)
            return chosen, False, self._drop(self._free[:-MAX_IDLE_REGIONS])
        # What is free is too small: answers have grown, so these would never be used again.
        dropped = self._drop(list(self._free))
        self._made += 1
        region = self._regions[self._made] = Region(self._made, size)
        return region, True, dropped

    def _drop(self, numbers: list[int]) -> list[int]:
        for number in numbers:
            self._free.remove(number)
            self._regions.pop(number).close()
        return numbers

    def _hear_terminate(self) -> None:
        while said := self._control.recv(RUN_NUMBER.size):
            (number,) = RUN_NUMBER.unpack(said)
            with self._lock:
                if number == self._current:
                    self._session.terminate()
        os._exit(0)  # the parent has gone, and nobody waits for what is being computed
