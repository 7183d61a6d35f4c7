"""Checks of single values that came from a peer: each returns the value or raises, naming the field.

Used by the decoders of `mesh.wire.convert`. Pure. Counts are checked before anything is built from
the items, because parsed protobuf can be many times its bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sized
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from mesh.core.ids import NodeId, Sha256, check_node_id, check_sha256
from mesh.errors import MeshError, ProtocolViolation

Item = TypeVar("Item")
Result = TypeVar("Result")
AnyMessage = TypeVar("AnyMessage", bound=Message)

MAX_TEXT_BYTES = 4096
"""Reasons, certificates, events: people read them."""

MAX_LABEL_BYTES = 256
"""Architectures, versions, variants."""

MAX_TENSOR_NAME_BYTES = 4096
"""Exporters put whole module paths into tensor names."""

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._-]{1,32})?\])"
_ADDRESS = re.compile(_HOST + r":([1-9][0-9]{0,4})")


def check_count(items: Sized, limit: int, what: str) -> None:
    if len(items) > limit:
        raise ProtocolViolation(f"{what}: {len(items)} items, the limit is {limit}")


def check_list(items: Collection[Item], limit: int, what: str, decode: Callable[[Item], Result]) -> tuple[Result, ...]:
    """`decode` each of at most `limit` items; an item that is refused is named by its position."""
    check_count(items, limit, what)
    decoded: list[Result] = []
    for index, item in enumerate(items):
        try:
            decoded.append(decode(item))
        except MeshError as error:
            raise type(error)(f"{what}[{index}]: {error.message}", hint=error.hint) from error
    return tuple(decoded)


def check_text(text: str, what: str, limit: int = MAX_TEXT_BYTES) -> str:
    size = len(text.encode())
    if size > limit:
        raise ProtocolViolation(f"{what}: {size} bytes of text, the limit is {limit}")
    return text


def check_label(text: str, what: str) -> str:
    """Text of one printable line."""
    if not check_text(text, what, MAX_LABEL_BYTES).isprintable():
        raise ProtocolViolation(f"{what}: {text[:80]!r} is not printable")
    return text


def check_tensor_name(name: str) -> str:
    if not name:
        raise ProtocolViolation("a tensor has no name")
    return check_text(name, "tensor name", MAX_TENSOR_NAME_BYTES)


def check_number(value: float, what: str, *, may_be_infinite: bool = False) -> float:
    """A number that is not negative and not NaN, and finite unless `may_be_infinite`."""
    if not (0 <= value < math.inf or (may_be_infinite and value == math.inf)):
        raise ProtocolViolation(f"{what}: {value} is not a possible value")
    return value


def check_range(value: int, low: int, high: int, what: str) -> int:
    if not low <= value <= high:
        raise ProtocolViolation(f"{what}: {value} is not between {low} and {high}")
    return value


def check_id(node_id: str, what: str) -> NodeId:
    try:
        return check_node_id(node_id)
    except MeshError as error:
        raise ProtocolViolation(f"{what}: {error.message}") from error


def check_digest(digest: str, what: str) -> Sha256:
    try:
        return check_sha256(digest)
    except MeshError as error:
        raise ProtocolViolation(f"{what}: {error.message}") from error


def check_address(address: str, what: str) -> str:
    """ "host:port" and nothing else: no other scheme that a dialler might understand, such as a local socket."""
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[1]) > 65535:
        raise ProtocolViolation(f'{what}: {address[:80]!r} is not of the form "host:port"')
    return address


def parse_message(kind: type[AnyMessage], data: bytes, limit: int) -> AnyMessage:
    """`data` as a `kind`; raises `ProtocolViolation` if it is too long or no such message."""
    if len(data) > limit:
        raise ProtocolViolation(f"{kind.DESCRIPTOR.name}: {len(data)} bytes, the limit is {limit}")
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise ProtocolViolation(f"{kind.DESCRIPTOR.name}: not a valid message") from error
