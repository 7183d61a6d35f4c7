from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.ids import Sha256
from mesh.errors import NotFound, ProtocolViolation, StorageError, StorageFull, UsageError
from mesh.storage import content as content_module
from mesh.storage.content import ContentStore
from mesh.storage.folder import DataFolder


def sha(data: bytes) -> Sha256:
    return Sha256(hashlib.sha256(data).hexdigest())


def put(store: ContentStore, data: bytes, pin: bool = False) -> Sha256:
    with store.begin(sha(data), len(data)) as writer:
        writer.write(data[: len(data) // 2])
        writer.write(memoryview(data)[len(data) // 2 :])
        writer.commit(pin)
    return sha(data)


def files(folder: DataFolder) -> list[str]:
    return sorted(path.name for path in (folder.path / "content").iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DataFolder]:
    with DataFolder.open(tmp_path) as folder:
        yield folder


@pytest.fixture
def store(folder: DataFolder) -> ContentStore:
    return ContentStore(folder, 100)


def test_what_is_put_is_there_also_after_a_restart(folder: DataFolder, store: ContentStore) -> None:
    key = put(store, b"model")
    assert store.has(key)
    assert store.path(key).read_bytes() == b"model"
    again = ContentStore(folder, 100)
    assert again.contents() == {key: 5}
    assert again.used_bytes == 5
    assert again.verify(key)


def test_empty_content_is_content(store: ContentStore) -> None:
    assert store.path(put(store, b"")).read_bytes() == b""


def test_nothing_is_visible_before_the_commit(folder: DataFolder, store: ContentStore) -> None:
    with store.begin(sha(b"model"), 5) as writer:
        writer.write(b"model")
        assert not store.has(sha(b"model"))
    assert not store.has(sha(b"model"))
    assert files(folder) == []
    assert store.available_bytes() == 100


@pytest.mark.parametrize("data", [b"mode", b"modem", b"", b"models"])
def test_other_bytes_than_announced_are_refused_and_gone(folder: DataFolder, store: ContentStore, data: bytes) -> None:
    with pytest.raises(ProtocolViolation), store.begin(sha(b"model"), 5) as writer:
        writer.write(data)
        writer.commit()
    assert files(folder) == []
    assert store.available_bytes() == 100
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"x")
    with pytest.raises(ValueError, match="closed"):
        writer.commit()


def test_announcements_that_make_no_sense_are_refused(store: ContentStore) -> None:
    for digest in ("", "../../etc/passwd", "A" * 64, "0" * 63):
        with pytest.raises(UsageError):
            store.begin(digest, 1)
    with pytest.raises(ProtocolViolation):
        store.begin("0" * 64, -1)


def test_unknown_content_is_not_found(store: ContentStore) -> None:
    for call in (store.path, store.pin, store.unpin, store.remove, store.verify):
        with pytest.raises(NotFound):
            call(sha(b"nothing"))


def test_the_least_recently_used_goes_first(store: ContentStore) -> None:
    one, two = (put(store, bytes([number]) * 40) for number in range(2))
    store.path(one)
    third = put(store, b"c" * 40)
    assert list(store.contents()) == [one, third]
    assert not store.has(two)


def test_pinned_content_stays_and_makes_the_store_full(store: ContentStore) -> None:
    one, two = put(store, b"a" * 60, pin=True), put(store, b"b" * 40)
    assert store.available_bytes() == 40
    with pytest.raises(StorageFull, match="room for 40") as refused:
        store.begin(sha(b"c" * 41), 41)
    assert "undeploy" in refused.value.hint
    assert store.has(two), "nothing is evicted for content that does not fit anyway"
    three = put(store, b"c" * 40)
    assert (store.has(one), store.has(two), store.has(three)) == (True, False, True)
    with pytest.raises(StorageError, match="in use"):
        store.remove(one)
    store.unpin(one)
    with pytest.raises(ValueError, match="not pinned"):
        store.unpin(one)
    put(store, b"d" * 100)
    assert not store.has(one)


def test_pins_are_counted(store: ContentStore) -> None:
    key = put(store, b"a" * 60)
    store.pin(key)
    store.pin(key)
    store.unpin(key)
    with pytest.raises(StorageFull):
        store.begin(sha(b"b" * 60), 60)
    store.unpin(key)
    put(store, b"b" * 60)
    assert not store.has(key)


def test_what_is_arriving_counts_against_the_capacity(folder: DataFolder, store: ContentStore) -> None:
    with store.begin(sha(b"a" * 60), 60) as first:
        with pytest.raises(StorageFull):
            store.begin(sha(b"b" * 60), 60)
        with store.begin(sha(b"c" * 40), 40) as second:
            first.write(b"a" * 60)
            second.write(b"c" * 40)
            second.commit()
        first.commit()
    assert store.used_bytes == 100


def test_content_that_is_here_already_is_accepted_again(folder: DataFolder, store: ContentStore) -> None:
    with store.begin(sha(b"a" * 40), 40) as one, store.begin(sha(b"a" * 40), 40) as two:
        for writer in (one, two):
            writer.write(b"a" * 40)
            writer.commit(pin=True)
    assert len(files(folder)) == 1
    assert store.used_bytes == 40
    put(store, b"a" * 40)  # pinned twice, and no room for a second copy is needed
    with store.begin(sha(b"a" * 40), 40) as writer:
        writer.write(b"a" * 40)  # and left without commit
    assert store.available_bytes() == 60
    store.unpin(sha(b"a" * 40))
    store.unpin(sha(b"a" * 40))
    assert store.available_bytes() == 100


def test_content_that_is_here_stays_while_it_is_sent_again_and_is_checked(store: ContentStore) -> None:
    key = put(store, b"a" * 60)
    with store.begin(key, 60) as writer:
        with pytest.raises(StorageFull):
            store.begin(sha(b"b" * 60), 60)
        writer.write(b"b" * 60)
        with pytest.raises(ProtocolViolation):
            writer.commit()
    assert store.verify(key)
    put(store, b"b" * 60)
    assert not store.has(key)


def test_a_start_removes_what_is_partial_truncated_or_no_file(folder: DataFolder, store: ContentStore) -> None:
    good = put(store, b"good")
    content = folder.path / "content"
    (content / f"{'a' * 64}.1-0.partial").write_bytes(b"half")
    (content / f"{'b' * 64}-10").write_bytes(b"nine byte")
    (content / f"{'c' * 64}-4").symlink_to(store.path(good))
    (content / "notes.txt").write_bytes(b"not ours")
    assert ContentStore(folder, 100).contents() == {good: 4}
    assert files(folder) == sorted([f"{good}-4", "notes.txt"])


def test_a_smaller_capacity_evicts_at_the_start_in_order_of_use(folder: DataFolder, store: ContentStore) -> None:
    keys = [put(store, bytes([number]) * 25) for number in range(4)]
    store.path(keys[0])
    assert list(ContentStore(folder, 60).contents()) == [keys[3], keys[0]]


def test_the_order_of_use_survives_a_clock_that_stands_or_jumps_back(folder: DataFolder) -> None:
    times = iter([10**18, 10**18, 5, 5, 5])
    store = ContentStore(folder, 100, clock_ns=lambda: next(times))
    keys = [put(store, bytes([number]) * 25) for number in range(4)]
    store.path(keys[1])
    expected = [keys[0], keys[2], keys[3], keys[1]]
    assert list(store.contents()) == expected
    assert list(ContentStore(folder, 100).contents()) == expected


def test_flipped_bits_are_found_and_the_content_removed(folder: DataFolder, store: ContentStore) -> None:
    key = put(store, b"model")
    store.path(key).write_bytes(b"mudel")
    assert not store.verify(key)
    assert not store.has(key)
    assert files(folder) == []


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_is_told_and_nothing_left_behind(
    folder: DataFolder, store: ContentStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageFull), store.begin(sha(b"model"), 5) as writer:
        if call == "write":
            # The writer's descriptor now leads to the kernel's always-full device: a real ENOSPC.
            full = os.open("/dev/full", os.O_WRONLY)
            assert writer._file is not None
            os.dup2(full, writer._file.fileno())
            os.close(full)
        else:
            monkeypatch.setattr(os, "fsync", fail)
        writer.write(b"model")
        writer.commit()
    assert files(folder) == []
    assert store.available_bytes() == 100


def test_a_disk_without_room_is_told_before_the_first_byte(
    folder: DataFolder, store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = put(store, b"a" * 50)
    reserve = content_module.DISK_RESERVE_BYTES
    monkeypatch.setattr(folder, "disk_available_bytes", lambda: reserve + 10)
    assert store.available_bytes() == 60
    with pytest.raises(StorageFull):
        store.begin(sha(b"b" * 61), 61)
    assert store.has(old)
    put(store, b"b" * 20)
    assert not store.has(old), "unpinned content makes room on the disk as well"


LIMITED = """
import hashlib, resource, sys
from pathlib import Path
from mesh.errors import StorageFull
from mesh.storage.content import ContentStore
from mesh.storage.folder import DataFolder
with DataFolder.open(Path(sys.argv[1])) as folder:
    store = ContentStore(folder, 1 << 20)
    data = bytes(100_000)
    import signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try:
        with store.begin(hashlib.sha256(data).hexdigest(), len(data)) as writer:
            writer.write(data)
            writer.commit()
    except StorageFull as error:
        print("full", [path.name for path in (folder.path / "content").iterdir()], store.available_bytes())
"""


def test_a_real_file_size_limit_in_the_middle_of_a_write(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=30
    )
    assert (done.stdout, done.stderr) == ("full [] 1048576\n", "")


@pytest.fixture
def tiny_disk() -> Iterator[Path]:
    """A disk of 256 KiB. Mounting needs root; elsewhere /dev/full and the size limit above stand in."""
    with tempfile.TemporaryDirectory() as path:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", path], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("mounting a file system needs privileges that this user does not have")
        try:
            yield Path(path)
        finally:
            subprocess.run(["umount", path], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_real_disk_that_fills_up(tiny_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_module, "DISK_RESERVE_BYTES", 0)
    data = os.urandom(200_000)
    with DataFolder.open(tiny_disk) as folder:
        store = ContentStore(folder, 1 << 20)
        with pytest.raises(StorageFull):  # refused by what the disk says is free
            store.begin(sha(bytes(300_000)), 300_000)
        writer = store.begin(sha(data), len(data))
        (tiny_disk / "somebody-else").write_bytes(bytes(150_000))
        with pytest.raises(StorageFull), writer:
            writer.write(data)
            writer.commit()
        assert files(folder) == []
        (tiny_disk / "somebody-else").unlink()
        assert store.verify(put(store, data))


def test_several_threads_write_within_the_capacity(folder: DataFolder) -> None:
    store = ContentStore(folder, 1000)
    problems: list[BaseException] = []

    def work(number: int) -> None:
        for round_number in range(10):
            try:
                put(store, bytes([number, round_number]) * 60)
                assert store.used_bytes <= 1000
            except StorageFull:
                pass  # the others' reservations left no room at this moment
            except BaseException as error:
                problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert store.used_bytes == sum(path.stat().st_size for path in (folder.path / "content").iterdir()) <= 1000
    assert store.available_bytes() == 1000


class Model:
    """The store in ten lines: sizes in order of use, and pins."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.sizes, self.pins = capacity, dict[int, int](), dict[int, int]()

    def use(self, key: int) -> None:
        self.sizes[key] = self.sizes.pop(key)

    def put(self, key: int, size: int) -> bool:
        if key in self.sizes:
            self.use(key)
            return True
        pinned = sum(each for name, each in self.sizes.items() if self.pins.get(name))
        if pinned + size > self.capacity:
            return False
        while sum(self.sizes.values()) + size > self.capacity:
            del self.sizes[next(name for name in self.sizes if not self.pins.get(name))]
        self.sizes[key] = size
        return True


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "use", "pin", "unpin", "restart"]), st.integers(0, 5)), max_size=40
)


@settings(max_examples=40)
@given(operations=OPERATIONS)
def test_the_store_behaves_as_its_model(operations: list[tuple[str, int]]) -> None:
    blobs = [bytes([number]) * (15 + 12 * number) for number in range(6)]
    with tempfile.TemporaryDirectory() as path, DataFolder.open(Path(path)) as folder:
        store, model = ContentStore(folder, 120), Model(120)
        for operation, key in operations:
            if operation == "put":
                try:
                    put(store, blobs[key])
                    fits = True
                except StorageFull:
                    fits = False
                assert fits == model.put(key, len(blobs[key]))
            elif operation == "restart":
                store, model.pins = ContentStore(folder, 120), {}
            elif operation == "unpin" and model.pins.get(key):
                store.unpin(sha(blobs[key]))
                model.pins[key] -= 1
            elif operation in ("use", "pin") and key in model.sizes:
                (store.path if operation == "use" else store.pin)(sha(blobs[key]))
                model.use(key)
                if operation == "pin":
                    model.pins[key] = model.pins.get(key, 0) + 1
            elif operation in ("use", "pin"):
                with pytest.raises(NotFound):
                    store.path(sha(blobs[key]))
            assert list(store.contents()) == [sha(blobs[name]) for name in model.sizes]
            assert store.used_bytes <= 120
