"""What stands in an mDNS record of the mesh, and how much of a stranger's record is believed. Pure.

Anybody on the LAN can send anything: a record is read completely or rejected with a reason; it never
raises. What passes is a hint whom to call, no more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mesh.core.fleet import Peer
from mesh.core.ids import NAME_PATTERN, NODE_ID_PATTERN, NodeId
from mesh.discovery.addresses import IpNetwork, format_address, rank_addresses
from mesh.discovery.contract import Advertisement
from mesh.errors import UsageError

SERVICE_TYPE = "_infermesh._tcp.local."
TXT_VERSION = "1"

MAX_OWN_TXT_BYTES = 400
"""Of what we announce: TXT, SRV and addresses together fit one unfragmented packet beside others' answers."""

MAX_READ_TXT_BYTES = 1300
"""Of what we read: the hard limit that RFC 6763 section 6.2 gives for one packet on Ethernet."""

MAX_KEY_CHARACTERS = 9
"""RFC 6763 section 6.4."""

MAX_STRING_BYTES = 255
"""One "key=value" string of a TXT record has a length of one byte."""

MAX_LABEL_BYTES = 63
"""One DNS label."""

LABEL_ID_DIGITS = 4
HOST_ID_DIGITS = 8

ROLES = ("node", "coordinator")
OWN_KEYS = ("txtvers", "id", "role", "name")

_KEY_PATTERN = re.compile(r"[a-z0-9_-]+")


def instance_name(advertisement: Advertisement) -> str:
    """ "kitchen (8f3a)._infermesh._tcp.local.": for people in service browsers; the id stands in the TXT.

    A coordinator says so: it may share name and id with the node beside it, and two that probe for one
    name in the same moment both take it.
    """
    kind = "" if advertisement.role == "node" else f" {advertisement.role}"
    suffix = f"{kind} ({advertisement.node_id[:LABEL_ID_DIGITS]})"
    name = advertisement.name.encode()[: MAX_LABEL_BYTES - len(suffix)].decode("utf-8", "ignore").rstrip("-. ")
    return f"{name}{suffix}.{SERVICE_TYPE}"


def host_name(node_id: NodeId) -> str:
    """ "mesh-8f3a1c02.local.": unique, because mDNS defends instance names but not host names."""
    return f"mesh-{node_id[:HOST_ID_DIGITS]}.local."


def txt_properties(advertisement: Advertisement) -> dict[str, str]:
    """Keys and values of the TXT record, `txtvers` first.

    Raises `UsageError` for a role, id, key or value that no reader would accept, and above
    `MAX_OWN_TXT_BYTES`.
    """
    if advertisement.role not in ROLES:
        raise UsageError(f"role {advertisement.role!r} is not one of {', '.join(ROLES)}")
    if not NODE_ID_PATTERN.fullmatch(advertisement.node_id):
        raise UsageError(f"{advertisement.node_id!r} is not a node id")
    properties = {
        "txtvers": TXT_VERSION,
        "id": advertisement.node_id,
        "role": advertisement.role,
        "name": advertisement.name,
    }
    for key, value in advertisement.properties.items():
        if key in OWN_KEYS or len(key) > MAX_KEY_CHARACTERS or not _KEY_PATTERN.fullmatch(key):
            raise UsageError(f"{key!r} cannot be announced", hint="use up to 9 characters of a-z, 0-9, '-' and '_'")
        properties[key] = value
    lengths = [len(f"{key}={value}".encode()) for key, value in properties.items()]
    total = sum(length + 1 for length in lengths)
    if total >= MAX_OWN_TXT_BYTES or max(lengths) > MAX_STRING_BYTES:
        raise UsageError(
            f"the announcement has {total} bytes, fewer than {MAX_OWN_TXT_BYTES} are allowed",
            hint="announce static facts only; the rest is asked for by a call",
        )
    return properties


def read_record(
    text: Mapping[bytes, bytes | None],
    text_bytes: int,
    port: int,
    addresses: Sequence[str],
    own_networks: Sequence[IpNetwork],
    on_loopback: bool,
) -> Peer | str:
    """The peer that a record speaks of, or why it is rejected.

    `text`: TXT keys and values as they came; `text_bytes`: size of the raw TXT; `addresses`: IP addresses.
    """
    if text_bytes > MAX_READ_TXT_BYTES:
        return f"TXT of {text_bytes} bytes"
    try:
        properties = {key.decode("ascii").lower(): (value or b"").decode("utf-8") for key, value in text.items()}
    except UnicodeDecodeError:
        return "TXT is not text"
    if properties.get("txtvers") != TXT_VERSION:
        return "another or no TXT version"
    node_id, role, name = (properties.get(key, "") for key in ("id", "role", "name"))
    if not NODE_ID_PATTERN.fullmatch(node_id):
        return "no valid id"
    if role not in ROLES:
        return "no valid role"
    if not NAME_PATTERN.fullmatch(name):
        return "no valid name"
    if not 0 < port <= 65535:
        return f"port {port}"
    ranked = rank_addresses(addresses, own_networks, on_loopback)
    if not ranked:
        return "no usable address"
    return Peer(
        node_id=NodeId(node_id),
        name=name,
        role=role,
        addresses=tuple(format_address(address, port) for address in ranked),
        source="mdns",
        properties={key: value for key, value in properties.items() if key not in OWN_KEYS},
    )
