"""Latency of links: a process that carries the packets of TAP devices, each after its delay.

Kernels of small machines often lack the queue that delays packets (netem), so it is done here. A device with
latency has a TAP as its `eth0` and another one as its port at the switch; the wire reads whole Ethernet frames
from the one and writes them to the other, `delay` seconds later, both ways, in order. Frames carry virtio
headers, so that large TCP segments and unfinished checksums pass as they are and few packets make much data.

Started by the lab as `python -m mesh.lab.wire JSON` inside the switch's namespace, with one (namespace, port,
delay) per wire; prints a line when it carries. One thread owns everything.
Sources: Linux `Documentation/networking/tuntap.rst`, uapi `linux/if_tun.h`; setns(2), prctl(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from mesh.lab.commands import NAMESPACE_FOLDER
from mesh.lab.topology import INTERFACE

TUN_DEVICE = "/dev/net/tun"
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
CLONE_NEWNET = 0x40000000
PR_SET_TIMERSLACK = 29

MAX_FRAME_BYTES = 10 + 18 + 65536
"""Virtio header, Ethernet header with a VLAN, and the largest segment."""

MAX_QUEUED_BYTES = 64 << 20
"""Per direction: more than a second of a gigabit. What comes on top is lost, as on a real line."""

MAX_READS = 64
"""Of one side before the others get their turn."""

TIMER_SLACK_NS = 1
NICENESS = -20
"""It waits most of the time, and every moment that it is late is latency that nobody asked for."""


@dataclass(slots=True)
class Direction:
    """Frames on their way from one side to the other, oldest first."""

    source: int
    target: int
    delay_s: float
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)
    queued_bytes: int = 0
    lost: int = 0

    def take(self, now: float) -> None:
        """Read what has come; it is due `delay_s` later."""
        for _ in range(MAX_READS):
            try:
                frame = os.read(self.source, MAX_FRAME_BYTES)
            except BlockingIOError:
                return
            if self.queued_bytes + len(frame) > MAX_QUEUED_BYTES:
                self.lost += 1
                continue
            self.waiting.append((now + self.delay_s, frame))
            self.queued_bytes += len(frame)

    def deliver(self, now: float) -> None:
        """Write what is due. A frame that the other side does not take is lost, as on a real line."""
        while self.waiting and self.waiting[0][0] <= now:
            _, frame = self.waiting.popleft()
            self.queued_bytes -= len(frame)
            try:
                os.write(self.target, frame)
            except OSError:
                self.lost += 1

    @property
    def due(self) -> float | None:
        return self.waiting[0][0] if self.waiting else None


def carry(directions: list[Direction], keep_on: Callable[[], bool] = lambda: True) -> None:
    """Carry frames for as long as `keep_on` says so (asked after each turn)."""
    by_source = {direction.source: direction for direction in directions}
    while keep_on():
        dues = [direction.due for direction in directions if direction.due is not None]
        timeout = max(0.0, min(dues) - time.monotonic()) if dues else None
        readable, _, _ = select.select(list(by_source), (), (), timeout)
        now = time.monotonic()
        for source in readable:
            by_source[source].take(now)
        for direction in directions:
            direction.deliver(now)


def open_tap(name: str) -> int:
    """Attach to a TAP device that exists in this process's network namespace."""
    descriptor = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(descriptor, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    return descriptor


def enter_network(namespace: str) -> None:
    """Move this thread to another network namespace; sockets and TAPs that are open stay where they are."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(NAMESPACE_FOLDER / namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")
    finally:
        os.close(descriptor)


def main(text: str) -> None:
    wires = [(str(namespace), str(port), float(delay)) for namespace, port, delay in json.loads(text)]
    ports = [open_tap(port) for _, port, _ in wires]
    directions = []
    for (namespace, _, delay), port in zip(wires, ports, strict=True):
        enter_network(namespace)
        device = open_tap(INTERFACE)
        directions += [Direction(device, port, delay), Direction(port, device, delay)]
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS, 0, 0, 0)
    with contextlib.suppress(PermissionError):  # a container may forbid it: then wires are a little late under load
        os.nice(NICENESS)
    sys.stdout.write("carrying\n")
    sys.stdout.flush()
    carry(directions)


if __name__ == "__main__":
    main(sys.argv[1])
