"""Engines in child processes, behind the same port: `ChildEngine` starts one process per loaded model.

A native crash, a hang or an allocation beyond the limit takes the child; whoever runs the session gets
`EngineDied`, and may load again. `close` kills, at whatever the child is. Feeds are copied once, into a
region that the child maps; answers are views of regions that the child wrote (one copy there), and go
back to it when the last view is dropped. Without threads, as the port is; `RemoteSession` says how an event
loop uses it without blocking.

On Linux a child ends with the thread that loaded it, so that thread must live as long as the session.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mesh.arrays import Array
from mesh.core.tensor import Tensor, TensorSpec
from mesh.engines import DEFAULT_ENGINE
from mesh.engines.child_channel import (
    RUN_NUMBER,
    Channel,
    LayoutCache,
    Message,
    Region,
    encode_json,
    spec_from_json,
)
from mesh.engines.contract import RUNS_AHEAD, LoadOptions, RunResult
from mesh.errors import EngineDied, LoadFailed, MeshError, from_code

LOAD_LIMIT_S = 300.0
"""Loading a segment of 2 GB from an SD card; a child that takes longer hangs."""

EXIT_LIMIT_S = 5.0
"""A killed process goes when the kernel has freed its memory; it is waited for so that no zombie stays."""

PACKAGE_ROOT = str(Path(__file__).parents[2])


class ChildEngine:
    """Implements `mesh.engines.contract.Engine`; `inner` is the name of the engine in the child."""

    def __init__(self, inner: str = DEFAULT_ENGINE, memory_limit_bytes: int = 0) -> None:
        """`memory_limit_bytes`: private memory of each child; 0 for none."""
        self.name = inner
        self.is_remote = True
        self._memory_limit_bytes = memory_limit_bytes

    def load(self, model: bytes | Path, options: LoadOptions) -> ChildSession:
        """Raises `LoadFailed`, also for a child that dies or does not answer, `MissingExtra`."""
        process, channel, control = _start()
        opening: dict[str, Any] = {
            "engine": self.name,
            "providers": options.providers,
            "threads": options.threads,
            "memory_limit": self._memory_limit_bytes,
        }
        try:
            channel.settimeout(LOAD_LIMIT_S)
            specs = _open(channel, model, opening)
            channel.settimeout(None)
        except BaseException as failure:
            process.kill()
            ending = _reap(process)
            channel.close()
            control.close()
            if isinstance(failure, TimeoutError):
                raise LoadFailed(f"the engine did not load the model within {LOAD_LIMIT_S:g} s") from failure
            if isinstance(failure, EOFError | OSError):
                raise LoadFailed(f"the engine's process ended while it loaded the model: {ending}") from failure
            raise
        return ChildSession(process, channel, control, specs)


def _start() -> tuple[subprocess.Popen[bytes], Channel, socket.socket]:
    data, data_of_child = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    control, control_of_child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # The parent's import path is handed over, so that the child needs neither `site` nor its start-up time.
    path = [PACKAGE_ROOT, *sys.path]
    program = f"import sys; sys.path[:] = {path!r}; from mesh.engines.child import main; sys.exit(main(sys.argv[1:]))"
    descriptors = (data_of_child.fileno(), control_of_child.fileno())
    with data_of_child, control_of_child:
        process = subprocess.Popen(  # noqa: S603 - this interpreter with numbers as arguments
            [sys.executable, "-I", "-S", "-c", program, *map(str, descriptors), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=descriptors,
            # Ctrl-C is for the daemon, which drains before it closes its engines.
            process_group=0,
            # NumPy is used for its arrays only; a pool of threads per child would wait for ever.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
    return process, Channel(data), control


def _open(channel: Channel, model: bytes | Path, opening: dict[str, Any]) -> dict[str, Any]:
    if isinstance(model, Path):
        channel.send(Message(body=encode_json({**opening, "path": str(model)})))
    else:
        descriptor = os.memfd_create("mesh-model", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "wb") as file:
            file.write(model)
            file.flush()
            file.seek(0)
            channel.send(Message(body=encode_json({**opening, "size": len(model)}), descriptor=descriptor))
    answer = channel.receive()
    if answer.is_error:
        raise _read_error(answer)
    specs: dict[str, Any] = json.loads(answer.body)
    return specs


def _read_error(answer: Message) -> MeshError:
    code, message, hint = json.loads(answer.body)
    return from_code(code, message, hint)


def _reap(process: subprocess.Popen[bytes]) -> str:
    """Wait for a process that is dead or dying; its end in words."""
    try:
        code = process.wait(EXIT_LIMIT_S)
    except subprocess.TimeoutExpired:
        return "it does not go although it was killed"
    if code >= 0:
        return f"it left with status {code}"
    if -code == signal.SIGKILL:
        return "killed (SIGKILL), which is what running out of memory looks like"
    return f"killed by {signal.Signals(-code).name}"


class Held:
    """What a session holds outside of Python's memory; freed with it, also where it is part of a cycle."""

    def __init__(self, process: subprocess.Popen[bytes], channel: Channel, control: socket.socket) -> None:
        self.process = process
        self.channel = channel
        self.control = control
        self.feeds: list[Region | None] = [None] * RUNS_AHEAD
        self.regions: dict[int, Array] = {}
        """The child's regions by their numbers, mapped once: pages that are mapped anew must be found anew."""
        self._ending = threading.Lock()
        self._end = ""

    def kill(self) -> None:
        """Whatever it does. Does not wait for it."""
        self.process.kill()
        self.channel.shut_down()  # wakes a `receive` on another thread

    def ended(self) -> str:
        """Wait for a process that is ending; how it ended, in words."""
        with self._ending:
            self._end = self._end or _reap(self.process)
            return self._end

    def free(self) -> None:
        self.kill()
        self.ended()
        self.channel.close()
        self.control.close()
        for region in self.feeds:
            if region is not None:
                region.close()
        self.regions.clear()


def _release(released: deque[int], region: int, view: weakref.ref[Array]) -> None:
    released.append(region)


class ChildSession:
    """Implements `mesh.engines.contract.RemoteSession`."""

    def __init__(
        self, process: subprocess.Popen[bytes], channel: Channel, control: socket.socket, specs: dict[str, Any]
    ) -> None:
        self.fallback = ""
        self._held = Held(process, channel, control)
        weakref.finalize(self, self._held.free)
        self._inputs = tuple(map(spec_from_json, specs["inputs"]))
        self._outputs = tuple(map(spec_from_json, specs["outputs"]))
        self._layouts = LayoutCache()
        self._released: deque[int] = deque()
        """Regions that nobody looks at any more; filled by finalizers, on any thread."""
        self._looked_at: dict[int, weakref.ref[Array]] = {}
        """Views of regions; a reference that nobody keeps would tell nobody."""
        self._runs = 0
        self._under_way: deque[tuple[int, int]] = deque()
        """Runs that are not answered, and the region that each is fed from."""
        self._free_feeds = list(range(RUNS_AHEAD))
        self._is_ended = False
        self.peak_bytes = 0
        self.input_copies = 0
        """Tensors copied to the child."""
        self.output_copies = 0
        """Tensors copied by the child; the parent only looks at them."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def pid(self) -> int:
        return self._held.process.pid

    @property
    def descriptor(self) -> int:
        return self._held.channel.descriptor

    def run(self, feeds: Sequence[Tensor]) -> list[Tensor]:
        """As the port says; also raises `EngineDied` where the child ended, after which only `close` is left."""
        try:
            self.begin(feeds)
            answer = self._held.channel.receive()
        except (EngineDied, EOFError, OSError) as failure:
            self._is_ended = True
            raise EngineDied(self.wait_for_end()) from failure
        result = self._read_answer(answer)
        if result.error is not None:
            raise result.error
        return list(result.outputs)

    def begin(self, feeds: Sequence[Tensor]) -> None:
        if self._is_ended:
            raise EngineDied("the engine's process has ended")
        self._runs += 1
        slot = self._free_feeds.pop()
        self._under_way.append((self._runs, slot))
        try:
            self._ask(self._runs, slot, feeds)
        except OSError as failure:
            # Also where a region cannot be made: the child will never answer this run, and whoever waits must hear so.
            self.close()
            raise EngineDied("the engine's process was given up, or had ended, before a run") from failure

    def collect(self) -> list[RunResult]:
        try:
            answers = self._held.channel.receive_nowait()
        except (EOFError, OSError) as failure:
            self._is_ended = True
            raise EngineDied("the engine's process ended") from failure
        return list(map(self._read_answer, answers))

    def wait_for_end(self) -> str:
        return f"the engine's process ended during a run: {self._held.ended()}"

    def terminate(self) -> None:
        try:
            number, _ = self._under_way[0]
            self._held.control.send(RUN_NUMBER.pack(number), socket.MSG_DONTWAIT)
        except (IndexError, OSError):
            return  # nothing runs, or the child has ended or been told often enough

    def close(self) -> None:
        """Kill the child, whatever it does; a run that is under way raises `EngineDied`.

        Does not wait for its end; that is done when the session is freed.
        """
        self._is_ended = True
        self._held.kill()

    def _ask(self, number: int, slot: int, feeds: Sequence[Tensor]) -> None:
        layout, size = self._layouts.encode(feeds)
        region = self._held.feeds[slot]
        descriptor: int | None = None
        if size:
            if region is None or region.size_bytes < size:
                if region is not None:
                    region.close()
                region = self._held.feeds[slot] = Region(slot, size)
                descriptor = region.descriptor
            region.write(feeds)
            self.input_copies += len(feeds)
        numbers = (number, slot, 0 if region is None else region.size_bytes, *self._take_released())
        self._held.channel.send(Message(numbers, layout, descriptor=descriptor))

    def _take_released(self) -> list[int]:
        taken: list[int] = []
        while self._released:
            taken.append(self._released.popleft())
        return taken

    def _read_answer(self, answer: Message) -> RunResult:
        number, nanoseconds, region, size, peak_bytes, *dropped = answer.numbers
        self.peak_bytes = max(self.peak_bytes, peak_bytes)
        asked, slot = self._under_way.popleft()
        assert asked == number, "the child answers in the order in which it is asked"  # noqa: S101
        self._free_feeds.append(slot)
        seconds = nanoseconds / 1e9
        if answer.is_error:
            return RunResult((), _read_error(answer), seconds)
        for gone in dropped:
            del self._held.regions[gone], self._looked_at[gone]
        if not region:
            return RunResult(tuple(self._layouts.decode(answer.body, memoryview(b""))), None, seconds)
        if answer.descriptor is not None:
            mapping = mmap.mmap(answer.descriptor, size, prot=mmap.PROT_READ)
            os.close(answer.descriptor)
            self._held.regions[region] = np.frombuffer(mapping, np.uint8)
        # One view per answer: it lives exactly as long as somebody looks at its bytes.
        view = self._held.regions[region].view()
        self._looked_at[region] = weakref.ref(view, partial(_release, self._released, region))
        outputs = tuple(self._layouts.decode(answer.body, view.data))
        self.output_copies += len(outputs)
        return RunResult(outputs, None, seconds)
