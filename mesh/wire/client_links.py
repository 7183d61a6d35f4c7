"""The two kinds of streams that a client opens, as links of messages. Used by `mesh.wire.channel`."""

from __future__ import annotations

from typing import Any

from mesh.core.messages import Message
from mesh.core.tensor import TensorSpec
from mesh.wire.frame_codec import FrameAssembler
from mesh.wire.links import ClientLink
from mesh.wire.stream_codec import (
    decode_edge_response,
    decode_results_response,
    encode_edge_request,
    encode_message,
)


def edge_link(call: Any, peer: str) -> ClientLink:
    return ClientLink(call, peer, encode_edge_request, _decode_edge_response)


def results_link(call: Any, peer: str, boundary: tuple[TensorSpec, ...]) -> ClientLink:
    """`boundary`: the model's outputs, as answers carry them."""
    return ClientLink(call, peer, encode_message, decode_results_response, boundary)


def _decode_edge_response(data: bytes, assembler: FrameAssembler | None) -> tuple[Message]:
    return (decode_edge_response(data),)
