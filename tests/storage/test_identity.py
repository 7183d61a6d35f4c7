from __future__ import annotations

import hashlib
import re
import stat
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.ids import NAME_PATTERN, NODE_ID_PATTERN, NodeId
from mesh.errors import MissingExtra, StorageError, UsageError
from mesh.storage.folder import DataFolder
from mesh.storage.identity import KEY_FILE, derive_name, load_identity, load_private_key, node_id_of


def test_the_identity_is_made_once_and_stays(tmp_path: Path) -> None:
    with DataFolder.open(tmp_path) as folder:
        first = load_identity(folder, host_name="Pi4 Kitchen.local")
    with DataFolder.open(tmp_path) as folder:
        again = load_identity(folder, host_name="Pi4 Kitchen.local")
    assert first == again
    assert NODE_ID_PATTERN.fullmatch(first.node_id)
    assert first.node_id == hashlib.sha256(first.public_key).hexdigest()[:32] == node_id_of(first.public_key)
    assert first.name == f"pi4-kitchen-{first.node_id[:4]}"
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert b"PRIVATE KEY" in first.private_key_pem
    assert "PRIVATE" not in repr(first)


def test_the_private_key_signs_for_the_public_one(tmp_path: Path) -> None:
    with DataFolder.open(tmp_path) as folder:
        identity = load_identity(folder)
    signature = load_private_key(identity.private_key_pem, "test").sign(b"message")
    Ed25519PublicKey.from_public_bytes(identity.public_key).verify(signature, b"message")


def test_two_folders_are_two_nodes(tmp_path: Path) -> None:
    ids = set()
    for name in ("a", "b"):
        with DataFolder.open(tmp_path / name) as folder:
            ids.add(load_identity(folder).node_id)
    assert len(ids) == 2


def test_a_given_name_is_used_or_refused(tmp_path: Path) -> None:
    with DataFolder.open(tmp_path) as folder:
        assert load_identity(folder, "kitchen").name == "kitchen"
        with pytest.raises(UsageError, match="node name"):
            load_identity(folder, "The Kitchen")


@given(st.text(max_size=300))
def test_every_host_name_gives_a_valid_name(host_name: str) -> None:
    name = derive_name(host_name, NodeId("8f3a" * 8))
    assert NAME_PATTERN.fullmatch(name)
    assert name.endswith("-8f3a")


def _rsa_pem() -> bytes:
    return generate_private_key(65537, 1024).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_key(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o600)


@pytest.mark.parametrize("damage", ["empty", "noise", "cut", "flipped", "other"])
def test_a_damaged_key_is_told_and_not_replaced(tmp_path: Path, damage: str) -> None:
    with DataFolder.open(tmp_path) as folder:
        pem = load_identity(folder).private_key_pem
        middle = pem.index(b"\n") + 10
        data = {
            "empty": b"",
            "noise": bytes(range(256)),
            "cut": pem[: len(pem) // 2],
            "flipped": pem[:middle] + b"!" + pem[middle + 1 :],
            "other": _rsa_pem(),
        }[damage]
        _write_key(tmp_path / KEY_FILE, data)
        with pytest.raises(StorageError, match=re.escape(KEY_FILE)) as refused:
            load_identity(folder)
        assert "new identity" in refused.value.hint
        assert (tmp_path / KEY_FILE).read_bytes() == data


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_key_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    with DataFolder.open(tmp_path) as folder:
        load_identity(folder)
        (tmp_path / KEY_FILE).chmod(mode)
        with pytest.raises(StorageError, match="others") as refused:
            load_identity(folder)
        assert "chmod 600" in refused.value.hint


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with DataFolder.open(tmp_path) as folder, pytest.raises(MissingExtra) as refused:
        load_identity(folder)
    assert "infermesh[node]" in refused.value.hint
    assert not (tmp_path / KEY_FILE).exists()
