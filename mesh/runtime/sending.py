"""Content on its way to nodes: models and segments, each by its SHA-256, packed where that is smaller.

The hash is of the bytes themselves: the node's content store checks it whatever way they came.
"""

from __future__ import annotations

import asyncio

from mesh.core.coding import LOSSLESS
from mesh.core.ids import Sha256
from mesh.errors import NodeLost, StorageError, Timeout
from mesh.packing import Piece, is_available, pack_piece
from mesh.runtime.fleet import Answered


async def send_content(node: Answered, sha256: Sha256, data: bytes) -> None:
    """Send what `node` does not have yet. Raises `NodeLost`, `StorageError` naming the node, `Overloaded`."""
    try:
        if sha256 not in await node.client.has_content([sha256]):
            reads_packed = any(codec.name == LOSSLESS for codec in node.view.capabilities.codecs)
            pack = _pack if reads_packed and is_available() else None
            await node.client.put_content(sha256, data, pack)
    except Timeout as error:  # of calls that any node answers at once, however slow it computes
        raise NodeLost(error.message, hint="check that it runs and can be reached") from None
    except StorageError as error:
        raise type(error)(f"{node.view.capabilities.name}: {error.message}", hint=error.hint) from None


async def _pack(data: bytes) -> Piece:
    return await asyncio.to_thread(pack_piece, data)
