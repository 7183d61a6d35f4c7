"""Content on its way to nodes: models and segments, each by its SHA-256, packed where that is smaller.

The hash is of the bytes themselves: the node's content store checks it whatever way they came.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from itertools import pairwise

from mesh.core.coding import LOSSLESS
from mesh.core.graph import Graph
from mesh.core.ids import Sha256
from mesh.core.segments import segment_between
from mesh.errors import NodeLost, StorageError, Timeout
from mesh.model.extract import extract
from mesh.model.read import SourceModel
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


async def send_parts(
    node: Answered, model: SourceModel, graph: Graph, positions: Sequence[int]
) -> list[tuple[Sha256, int, int]]:
    """Cut `model` at `positions` and send the parts: content, first group, last group (exclusive) of each. Raises as
    `send_content` does, and `ModelInvalid` for what cannot be cut."""
    sent = []
    for start, end in pairwise(positions):
        data = await asyncio.to_thread(extract, model, graph, segment_between(graph, start, end))
        sha256 = Sha256(hashlib.sha256(data).hexdigest())
        await send_content(node, sha256, data)
        sent.append((sha256, start, end))
    return sent


async def _pack(data: bytes) -> Piece:
    return await asyncio.to_thread(pack_piece, data)
