"""The sending half of an edge, as stages and clients have it: dials, opens streams, keeps the shipped credits."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from mesh.control.flow import SendWindow
from mesh.control.timing import DIAL_TIMEOUT_S, STREAM_OPEN_TIMEOUT_S
from mesh.core.frame import Frame
from mesh.core.messages import CloseStream, Credit, EdgeAccepted, Message, OpenEdge, OpenStream, StreamAccepted
from mesh.errors import MeshError, NodeLost, Timeout
from mesh.simulate.network import End, Network
from mesh.simulate.world import Host, Violation


class EdgeOwner(Protocol):
    def stream_accepted(self, stream: int) -> None: ...

    def stream_closed(self, stream: int, error: MeshError | None) -> None: ...

    def may_send_more(self) -> None: ...


class Serving(Protocol):
    """A node, as those that dial it know it."""

    @property
    def host(self) -> Host: ...

    def accept(self, end: End) -> None: ...


class EdgeOut:
    def __init__(self, network: Network, host: Host, target: Serving, opening: OpenEdge, owner: EdgeOwner) -> None:
        self._network = network
        self._host = host
        self._target = target
        self._opening = opening
        self._owner = owner
        self._end: End | None = None
        self._window: SendWindow | None = None
        self._streams: set[int] = set()
        self._unopened: set[int] = set()
        self._unsaid: deque[OpenStream] = deque()
        """To be said once the edge is accepted."""

    def open_stream(self, info: OpenStream) -> None:
        if self._end is None:
            self._dial()
        end = self._end
        self._streams.add(info.stream)
        self._unopened.add(info.stream)
        self._host.after(STREAM_OPEN_TIMEOUT_S, lambda: self._give_up(end, info.stream))
        if self._window is None:
            self._unsaid.append(info)
        elif end is not None:
            end.send(info)

    def _give_up(self, end: End | None, stream: int) -> None:
        if end is self._end and stream in self._unopened:
            self.close_stream(stream, None)
            self._owner.stream_closed(stream, Timeout(f"{self._target.host.name} did not open the stream"))

    def _dial(self) -> None:
        end, far = self._network.connect(self._host, self._target.host)
        self._end = end
        end.on_message = lambda message: self._handle(end, message)
        end.on_lost = lambda error: self._lose(end, error)
        if self._target.host.is_up:
            self._target.accept(far)
        end.send(self._opening)

        def is_overdue() -> None:
            if self._end is end and self._window is None:
                end.lose(NodeLost(f"{self._target.host.name} did not answer"))

        self._host.after(DIAL_TIMEOUT_S, is_overdue)

    def may_send(self, frame: Frame) -> bool:
        return self._window is not None and self._window.may_send(frame.payload_bytes)

    def send(self, frame: Frame) -> None:
        if self._end is None or self._window is None or frame.stream not in self._streams:
            return
        if frame.payload_bytes:
            self._window.sent(frame.payload_bytes)
        self._end.send(frame)

    def is_open(self, stream: int) -> bool:
        return stream in self._streams

    def close_stream(self, stream: int, error: MeshError | None) -> None:
        if stream in self._streams and self._end is not None:
            self._forget(stream)
            self._end.send(CloseStream(stream, error))

    def close(self) -> None:
        end, self._end, self._window = self._end, None, None
        self._streams.clear()
        if end is not None:
            end.close()

    def _forget(self, stream: int) -> None:
        self._streams.discard(stream)
        self._unopened.discard(stream)
        self._unsaid = deque(info for info in self._unsaid if info.stream != stream)

    def _handle(self, end: End, message: Message) -> None:
        if end is not self._end:
            return
        match message:
            case EdgeAccepted(credit_bytes):
                self._window = SendWindow(credit_bytes)
                while self._unsaid:
                    end.send(self._unsaid.popleft())
            case Credit(size_bytes):
                if self._window is not None:
                    self._window.credited(size_bytes)
            case StreamAccepted(stream):
                if stream in self._streams:
                    self._unopened.discard(stream)
                    self._owner.stream_accepted(stream)
            case CloseStream(stream, error):
                if stream in self._streams:
                    self._forget(stream)
                    self._owner.stream_closed(stream, error)
            case _:
                raise Violation(f"{type(message).__name__} came up an edge")
        self._owner.may_send_more()

    def _lose(self, end: End, error: MeshError) -> None:
        if end is not self._end:
            return
        if isinstance(error, NodeLost) and not error.address:
            error.address = self._target.host.name
        self._end, self._window = None, None
        streams, self._streams = sorted(self._streams), set()
        self._unsaid.clear()
        for stream in streams:
            self._unopened.discard(stream)
            self._owner.stream_closed(stream, error)
        self._owner.may_send_more()
