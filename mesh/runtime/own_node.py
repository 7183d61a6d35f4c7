"""The node in whose process a client lives, as one end of a stream: messages are handed over, not sent.

A gateway in a node's daemon asks that node as any client does, by an `Edge` and a `Results` stream, and each would be a
way through the network stack to itself. Here both ends are objects of one event loop: a frame's tensors are the same
bytes on both sides, so neither side may change them. What either end may leave unread is bounded, and a link ends on
one side as a call over the network would.

Made by `mesh.runtime.node`; used by `FrameStream` where the node is the head or the tail of a deployment. The serving
tasks belong to the node.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from mesh.core.coding import RAW
from mesh.core.frame import Frame
from mesh.core.ids import NodeId
from mesh.core.messages import Message
from mesh.core.plan import Deployment, Fence
from mesh.core.tensor import TensorSpec
from mesh.errors import MeshError, NodeLost
from mesh.runtime.edge_receiver import ServerLink
from mesh.runtime.edge_sender import Spawn, StreamNode

MAX_UNREAD_MESSAGES = 64
"""In one direction of a link, before its writer waits; frames are bounded by credits and windows besides."""

PEER = "this process"


class Handlers(Protocol):
    """What serves the streams: `mesh.runtime.node_service.NodeService`."""

    async def serve_edge(self, link: ServerLink, peer: str) -> None: ...
    async def serve_results(self, link: ServerLink, peer: str) -> None: ...


class _Way:
    """Messages in one direction, until it is closed."""

    def __init__(self) -> None:
        self._unread: deque[Message] = deque()
        self._is_closed = False
        self._error: MeshError | None = None
        self._changed = asyncio.Event()

    async def put(self, message: Message) -> None:
        """Raises what the way was closed with, `NodeLost` where that was an orderly end."""
        while len(self._unread) >= MAX_UNREAD_MESSAGES and not self._is_closed:
            await self._wait()
        if self._is_closed:
            raise self._error or _closed()
        self._unread.append(message)
        self._changed.set()

    async def take(self) -> Message | None:
        """The next; after the last one None, or what the way was closed with."""
        while not self._unread and not self._is_closed:
            await self._wait()
        if self._unread:
            self._changed.set()
            return self._unread.popleft()
        if self._error is not None:
            raise self._error
        return None

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def close(self, error: MeshError | None) -> None:
        """What is unread can still be taken; the first closing counts."""
        if not self._is_closed:
            self._is_closed = True
            self._error = error
            self._changed.set()

    def break_off(self, error: MeshError) -> None:
        """Nothing is taken any more."""
        self._unread.clear()
        self.close(error)


class OwnLink:
    """One end. The serving side knows what frames look like: the client checks them against the model's inputs."""

    def __init__(self, outgoing: _Way, incoming: _Way) -> None:
        self._outgoing = outgoing
        self._incoming = incoming

    def expect(self, boundary: tuple[TensorSpec, ...], fence: Fence, codec: str = RAW) -> None:
        """Frames come as they are, so there is nothing to prepare."""

    async def send(self, message: Message) -> None:
        await self._outgoing.put(message)

    async def send_frames(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            await self._outgoing.put(frame)

    async def receive(self) -> Message | None:
        return await self._incoming.take()

    def end(self, error: MeshError | None) -> None:
        """Nothing more will be said or heard here: the other end reads what is on its way, and then `error`."""
        self._outgoing.close(error)
        self._incoming.break_off(error or _closed())

    def cancel(self) -> None:
        self.end(NodeLost(f"the connection to {PEER} was given up"))


def make_pair() -> tuple[OwnLink, OwnLink]:
    """The asking and the answering end of a link."""
    asking, answering = _Way(), _Way()
    return OwnLink(asking, answering), OwnLink(answering, asking)


def _closed() -> NodeLost:
    return NodeLost(f"{PEER} closed the connection")


class OwnNode:
    """`handlers` serve what is opened here, in tasks that `spawn` starts."""

    def __init__(self, node_id: NodeId, handlers: Handlers, spawn: Spawn) -> None:
        self.node_id = node_id
        self._handlers = handlers
        self._spawn = spawn

    def instead_of(self, client: Callable[[str], StreamNode], deployment: Deployment) -> Callable[[str], StreamNode]:
        """As `client`, but for the address that `deployment` has of this node."""
        here = deployment.addresses.get(self.node_id)

        def get(address: str) -> StreamNode:
            return self if address == here else client(address)

        return get

    def open_edge(self) -> OwnLink:
        return self._open(self._handlers.serve_edge, "own edge: serve")

    def open_results(self, boundary: Sequence[TensorSpec]) -> OwnLink:
        return self._open(self._handlers.serve_results, "own results: serve")

    def _open(self, serve: Callable[[ServerLink, str], Awaitable[None]], name: str) -> OwnLink:
        ours, theirs = make_pair()
        self._spawn(_serve(serve, theirs), name)
        return ours


async def _serve(serve: Callable[[ServerLink, str], Awaitable[None]], link: OwnLink) -> None:
    reason: MeshError | None = NodeLost(f"{PEER} is ending")
    try:
        await serve(link, PEER)
        reason = None
    except MeshError as error:  # told to the other end, as a call's status would be
        reason = error
    finally:
        link.end(reason)
