"""Who this node is: an Ed25519 key made at the first start and kept in the data folder.

The node id is a fingerprint of the public key, so it cannot be claimed without the key, survives a
change of name or address, and two nodes never share one. `cryptography` is imported where it is used:
sensor clients do not have it.
"""

from __future__ import annotations

import hashlib
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.core.ids import NodeId, check_name, make_name
from mesh.errors import MissingExtra, StorageError
from mesh.storage.folder import DataFolder, read_small_file, translated, write_atomically

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_FILE = "identity.pem"
NODE_ID_DIGITS = 32
LABEL_DIGITS = 4
"""Digits of the id that tell machines of one host name apart in a derived name."""

HOST_LABEL_CHARACTERS = 63 - 1 - LABEL_DIGITS
"""What a name of 63 characters leaves for the host's part."""


@dataclass(frozen=True, slots=True)
class Identity:
    node_id: NodeId
    name: str
    """As given, or host name and the beginning of the id; valid by `check_name`."""
    public_key: bytes
    """Raw Ed25519 public key, 32 bytes."""
    private_key_pem: bytes = field(repr=False)
    """PKCS #8, unencrypted."""


def load_identity(folder: DataFolder, name: str | None = None, host_name: str | None = None) -> Identity:
    """Read the folder's key, or make and keep one.

    `name` is the node's name as given by the user; without it one is derived from `host_name` (default:
    this machine's). Raises `UsageError` for an invalid name, `StorageError` for a key file that is
    damaged, of another kind, or readable by others, `MissingExtra` without the package `cryptography`.
    """
    if name is not None:
        check_name(name, "node name")
    path = folder.path / KEY_FILE
    pem = _read_key(path) if path.exists() else _make_key(path)
    public_key = _public_key(pem, path)
    node_id = node_id_of(public_key)
    if name is None:
        name = derive_name(host_name if host_name is not None else socket.gethostname(), node_id)
    return Identity(node_id=node_id, name=name, public_key=public_key, private_key_pem=pem)


def node_id_of(public_key: bytes) -> NodeId:
    """The fingerprint of a raw public key: the first 32 hex digits of its SHA-256."""
    return NodeId(hashlib.sha256(public_key).hexdigest()[:NODE_ID_DIGITS])


def derive_name(host_name: str, node_id: NodeId) -> str:
    """A name for people: the host's first label and the beginning of the id, e.g. "pi4-kitchen-8f3a"."""
    host = make_name(host_name.split(".")[0], "node")[:HOST_LABEL_CHARACTERS].strip("-")
    return f"{host}-{node_id[:LABEL_DIGITS]}"


def _read_key(path: Path) -> bytes:
    with translated("examine", path):
        facts = path.stat()
    if facts.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise StorageError(
            f"others may read or write the private key {path}",
            hint=f"run chmod 600 {path}; if it may have been copied, delete it, and the node gets a new identity",
        )
    return read_small_file(path)


def _make_key(path: Path) -> bytes:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise _missing(error) from error
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_atomically(path, pem)
    return pem


def _public_key(pem: bytes, path: Path) -> bytes:
    return load_private_key(pem, str(path)).public_key().public_bytes_raw()


def load_private_key(pem: bytes, where: str) -> Ed25519PrivateKey:
    """Parse a private key; raises `StorageError` naming `where` unless it is an unencrypted Ed25519 key."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise _missing(error) from error
    hint = "restore it from a copy, or delete it: the node then gets a new identity"
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StorageError(f"the private key {where} is damaged", hint=hint) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise StorageError(f"the private key {where} is not an Ed25519 key", hint=hint)
    return key


def _missing(error: ImportError) -> MissingExtra:
    return MissingExtra(
        f"a node needs the package {error.name}",
        hint="install the extra infermesh[node]: pip install '.[node]' in a clone",
    )
