"""Content that stops arriving leaves nothing behind, however it stops."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mesh.core.ids import Sha256
from mesh.errors import ProtocolViolation
from mesh.runtime.content_fetch import store_content
from mesh.storage.content import CONTENT_FOLDER, ContentStore, ContentWriter
from mesh.storage.folder import DataFolder
from tests.runtime.fake_models import until

DATA = b"some bytes " * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


class Slow:
    """Holds up the first call of one method until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self.entered, self.go = threading.Event(), threading.Event()
        original = getattr(owner, name)

        def wait(*arguments: object) -> object:
            self.entered.set()
            assert self.go.wait(15)
            return original(*arguments)

        monkeypatch.setattr(owner, name, wait)


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DataFolder]:
    with DataFolder.open(tmp_path) as opened:
        yield opened


@pytest.fixture
def store(folder: DataFolder) -> ContentStore:
    return ContentStore(folder, 3 * len(DATA))


def is_empty(store: ContentStore, folder: DataFolder) -> bool:
    """No file is left, and all of the room is free again."""
    with store.begin("0" * 64, 3 * len(DATA)):
        pass
    return not any(folder.subfolder(CONTENT_FOLDER).iterdir())


@pytest.mark.parametrize(
    ("owner", "name"), [(ContentStore, "begin"), (ContentWriter, "write"), (ContentWriter, "commit")]
)
async def test_a_cancellation_waits_for_the_disk_and_leaves_nothing(
    folder: DataFolder, store: ContentStore, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    with monkeypatch.context() as patch:
        slow = Slow(patch, owner, name)
        storing = asyncio.ensure_future(store_content(store, DIGEST, len(DATA), chunks(DATA[:5000], DATA[5000:])))
        await until(slow.entered.is_set, name)
        storing.cancel()
        done, _ = await asyncio.wait({storing}, timeout=0.05)
        assert not done, "a thread still holds the file"
        slow.go.set()
        await asyncio.wait({storing})
        assert storing.cancelled()
    if name == "commit":  # it was complete
        assert store.has(Sha256(DIGEST))
    else:
        assert not store.has(Sha256(DIGEST))
        assert is_empty(store, folder)


async def test_too_few_bytes_leave_nothing(folder: DataFolder, store: ContentStore) -> None:
    with pytest.raises(ProtocolViolation, match="ended after"):
        await store_content(store, DIGEST, len(DATA), chunks(DATA[:10]))
    assert is_empty(store, folder)


async def test_all_bytes_are_stored(store: ContentStore) -> None:
    await store_content(store, DIGEST, len(DATA), chunks(DATA[:1], DATA[1:]))
    assert store.path(Sha256(DIGEST)).read_bytes() == DATA
