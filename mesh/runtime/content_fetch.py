"""Content that a node is sent, or gets from other nodes: what a stand-by needs ahead of time, or when it takes over.

Called by the node's service and by its deployment driver, on the event loop. Nothing is kept here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TypeVar

from mesh.core.ids import Sha256
from mesh.errors import MeshError, NodeLost, NotFound, StorageError, Timeout
from mesh.runtime.supervise import carry_through
from mesh.storage.content import ContentStore, ContentWriter
from mesh.wire.channel import NodeClient

Result = TypeVar("Result")

DISK_LIMIT_S = 60.0
"""For one step on a disk. Worn SD cards stall for seconds; one that takes this long has failed."""

ASK_TIMEOUT_S = 1.0
"""For a node to say whether it has the content. The lost node, which is the reason for asking, never does."""


async def fetch_content(
    store: ContentStore, client: Callable[[str], NodeClient], digests: Sequence[Sha256], addresses: Sequence[str]
) -> None:
    """Get what of `digests` is not in `store` from whoever has it.

    Raises `NotFound` where no node at `addresses` has it or gives it, `StorageFull` where there is no room here.
    """
    for sha256 in digests:
        if not store.has(sha256):
            await _fetch(store, client, sha256, addresses)


async def _fetch(
    store: ContentStore, client: Callable[[str], NodeClient], sha256: Sha256, addresses: Sequence[str]
) -> None:
    reasons: list[str] = []
    answers = await asyncio.gather(*(_has(client(address), sha256) for address in addresses))
    for address, answer in zip(addresses, answers, strict=True):
        if answer is not None:
            reasons.append(answer)
            continue
        try:
            await _copy(store, client(address), sha256)
        except (NodeLost, NotFound, Timeout) as error:
            reasons.append(error.message)
        else:
            return
    told = "; ".join(dict.fromkeys(reasons)) or "no other node is known"
    raise NotFound(f"content {sha256[:12]}… is not on this node and could not be had: {told}")


async def _has(client: NodeClient, sha256: Sha256) -> str | None:
    """None where the node has it, else why it cannot be asked for it."""
    try:
        if sha256 in await client.has_content((sha256,), ASK_TIMEOUT_S):
            return None
    except MeshError as error:
        return error.message
    return f"the node at {client.address} does not have it"


async def _copy(store: ContentStore, client: NodeClient, sha256: Sha256) -> None:
    async with contextlib.aclosing(client.get_content(sha256)) as pieces:
        first = await anext(pieces, None)
        if first is None:
            raise NotFound(f"the node at {client.address} sent nothing of {sha256[:12]}…")
        total_bytes, beginning = first

        async def chunks() -> AsyncIterator[bytes]:
            yield beginning
            async for _, piece in pieces:
                yield piece

        await store_content(store, sha256, total_bytes, chunks())


async def store_content(store: ContentStore, sha256: str, total_bytes: int, chunks: AsyncIterator[bytes]) -> None:
    """Write content as it arrives. Whatever ends that early, a cancellation too, leaves nothing behind.

    A thread that writes is waited for first: nobody may close its file meanwhile, or miss the writer that it makes.
    Raises what the store's writer does, `StorageError` where the disk does not answer.
    """
    writer: ContentWriter | None = None

    def begin() -> ContentWriter:
        nonlocal writer
        writer = store.begin(sha256, total_bytes)
        return writer

    try:
        begun = await _on_disk(begin)
        async for chunk in chunks:
            await _on_disk(partial(begun.write, chunk))
        await _on_disk(begun.commit)
    except BaseException:
        if writer is not None:
            writer.abort()
        raise


async def _on_disk(work: Callable[[], Result]) -> Result:
    try:
        return await carry_through(asyncio.to_thread(work), DISK_LIMIT_S)
    except TimeoutError:
        raise StorageError(f"the disk has not answered for {DISK_LIMIT_S:g} s", hint="see the system's log") from None
