"""Engines in child processes, behind the same port: `ChildEngine` starts one process per loaded model.

A native crash, a hang or an allocation beyond the limit takes the child; whoever runs the session gets
`EngineDied`, and may load again. `close` kills, at whatever the child is. Feeds are copied once, into a
region that the child maps; answers are views of regions that the child wrote (one copy there), and go
back to it when the last view is dropped. Blocking and without threads, as the port is.

On Linux a child ends with the thread that loaded it, so that thread must live as long as the session.
"""

from __future__ import annotations

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
from pathlib import Path

import numpy as np

from mesh.arrays import Array
from mesh.core.tensor import Tensor, TensorSpec
from mesh.engines import DEFAULT_ENGINE
from mesh.engines.child_channel import (
    RUN_NUMBER,
    Channel,
    Message,
    Region,
    describe_empty,
    needed_bytes,
    read_layout,
    spec_from_json,
)
from mesh.engines.contract import LoadOptions
from mesh.errors import EngineDied, LoadFailed, from_code

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
        self._memory_limit_bytes = memory_limit_bytes

    def load(self, model: bytes | Path, options: LoadOptions) -> ChildSession:
        """Raises `LoadFailed`, also for a child that dies or does not answer, `MissingExtra`."""
        process, channel, control = _start()
        opening: Message = {
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


def _open(channel: Channel, model: bytes | Path, opening: Message) -> Message:
    if isinstance(model, Path):
        channel.send({**opening, "path": str(model)})
    else:
        descriptor = os.memfd_create("mesh-model", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "wb") as file:
            file.write(model)
            file.flush()
            file.seek(0)
            channel.send({**opening, "size": len(model)}, descriptor)
    specs, _ = channel.receive()
    _raise_error(specs)
    return specs


def _raise_error(answer: Message) -> None:
    if "error" in answer:
        code, message, hint = answer["error"]
        raise from_code(code, message, hint)


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
        self.feeds: Region | None = None
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
        if self.feeds is not None:
            self.feeds.close()
        self.regions.clear()


class ChildSession:
    """Implements `mesh.engines.contract.Session`."""

    def __init__(
        self, process: subprocess.Popen[bytes], channel: Channel, control: socket.socket, specs: Message
    ) -> None:
        self._held = Held(process, channel, control)
        weakref.finalize(self, self._held.free)
        self._inputs = tuple(map(spec_from_json, specs["inputs"]))
        self._outputs = tuple(map(spec_from_json, specs["outputs"]))
        self._released: deque[int] = deque()
        """Regions that nobody looks at any more; filled by finalizers, on any thread."""
        self._runs = 0
        self._running = 0
        self._is_ended = False
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

    def run(self, feeds: Sequence[Tensor]) -> list[Tensor]:
        """As the port says; also raises `EngineDied` where the child ended, after which only `close` is left."""
        if self._is_ended:
            raise EngineDied("the engine's process has ended")
        self._runs += 1
        self._running = self._runs
        try:
            self._ask(feeds)
            answer, descriptor = self._held.channel.receive()
        except (EOFError, OSError) as failure:
            self._is_ended = True
            raise EngineDied(f"the engine's process ended during a run: {self._held.ended()}") from failure
        finally:
            self._running = 0
        _raise_error(answer)
        return self._look_at(answer, descriptor)

    def terminate(self) -> None:
        number = self._running
        if not number:
            return
        try:
            self._held.control.send(RUN_NUMBER.pack(number), socket.MSG_DONTWAIT)
        except OSError:
            return  # it has ended, or has been told often enough

    def close(self) -> None:
        """Kill the child, whatever it does; a run that is under way raises `EngineDied`.

        Does not wait for its end; that is done when the session is freed.
        """
        self._is_ended = True
        self._held.kill()

    def _ask(self, feeds: Sequence[Tensor]) -> None:
        size = needed_bytes(feeds)
        message: Message = {"run": self._running, "free": self._take_released()}
        if not size:
            self._held.channel.send({**message, "feeds": describe_empty(feeds)})
            return
        descriptor: int | None = None
        if self._held.feeds is None or self._held.feeds.size_bytes < size:
            if self._held.feeds is not None:
                self._held.feeds.close()
            self._held.feeds = Region(0, size)
            descriptor = self._held.feeds.descriptor
        layout = self._held.feeds.write(feeds)
        self.input_copies += len(layout)
        self._held.channel.send({**message, "feeds": layout, "size": self._held.feeds.size_bytes}, descriptor)

    def _take_released(self) -> list[int]:
        taken: list[int] = []
        while self._released:
            taken.append(self._released.popleft())
        return taken

    def _look_at(self, answer: Message, descriptor: int | None) -> list[Tensor]:
        number = answer["region"]
        for dropped in answer["dropped"]:
            del self._held.regions[dropped]
        if not number:
            return read_layout(answer["outputs"], memoryview(b""))
        if descriptor is not None:
            mapping = mmap.mmap(descriptor, answer["size"], prot=mmap.PROT_READ)
            os.close(descriptor)
            self._held.regions[number] = np.frombuffer(mapping, np.uint8)
        # One view per answer: it lives exactly as long as somebody looks at its bytes.
        view = self._held.regions[number].view()
        weakref.finalize(view, self._released.append, number).atexit = False
        self.output_copies += len(answer["outputs"])
        return read_layout(answer["outputs"], view.data)
