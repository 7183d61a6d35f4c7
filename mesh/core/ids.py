"""Identifiers: distinct types for what would otherwise all be `str`, and the rule for names.

Names that people choose (deployments, nodes, streams) end up in topics, labels, paths and logs, so
one narrow alphabet is enforced at the door.
"""

from __future__ import annotations

import re
from typing import NewType

from mesh.errors import UsageError

NodeId = NewType("NodeId", str)
"""Fingerprint of a node's public key: 32 lower-case hex digits."""

Sha256 = NewType("Sha256", str)
"""64 lower-case hex digits."""

DeploymentName = NewType("DeploymentName", str)

NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
SHA256_PATTERN = re.compile(r"[0-9a-f]{64}")
NODE_ID_PATTERN = re.compile(r"[0-9a-f]{32}")


def check_name(name: str, what: str) -> str:
    """Return `name` if it is 1-63 characters of a-z, 0-9 and inner hyphens; raise `UsageError` otherwise."""
    if not NAME_PATTERN.fullmatch(name):
        raise UsageError(
            f"{what} {name[:80]!r} is not a valid name",
            hint="use 1 to 63 characters of a-z, 0-9 and '-', beginning and ending with a letter or digit",
        )
    return name


def make_name(text: str, fallback: str) -> str:
    """Turn free text such as a file name into a valid name; `fallback` if nothing of it remains."""
    if NAME_PATTERN.fullmatch(text):
        return text
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-")
    return name or fallback


def check_sha256(digest: str) -> Sha256:
    """Return `digest` if it is a SHA-256 in lower-case hex; raise `UsageError` otherwise."""
    if not SHA256_PATTERN.fullmatch(digest):
        raise UsageError(f"{digest[:80]!r} is not a SHA-256 in lower-case hex")
    return Sha256(digest)


def check_node_id(node_id: str) -> NodeId:
    """Return `node_id` if it is 32 digits of lower-case hex; raise `UsageError` otherwise."""
    if not NODE_ID_PATTERN.fullmatch(node_id):
        raise UsageError(f"{node_id[:80]!r} is not a node id", hint="a node id is 32 digits of lower-case hex")
    return NodeId(node_id)
