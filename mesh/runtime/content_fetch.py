"""Content that a node gets from other nodes: what a stand-by needs ahead of time, or when it takes over.

Called by the node's service and by its deployment driver, on the event loop. Nothing is kept here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from mesh.core.ids import Sha256
from mesh.errors import MeshError, NodeLost, NotFound, Timeout
from mesh.storage.content import ContentStore, ContentWriter
from mesh.wire.channel import NodeClient

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
    writer: ContentWriter | None = None
    try:
        async for total_bytes, piece in client.get_content(sha256):
            if writer is None:
                writer = await asyncio.to_thread(store.begin, sha256, total_bytes)
            await asyncio.to_thread(writer.write, piece)
        if writer is None:
            raise NotFound(f"the node at {client.address} sent nothing of {sha256[:12]}…")
        await asyncio.to_thread(writer.commit)
    except BaseException:
        if writer is not None:
            writer.abort()  # not awaited in a thread: a cancelled copy must still leave nothing behind
        raise
