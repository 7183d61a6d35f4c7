from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.ids import DeploymentName
from mesh.core.plan import Fence
from mesh.errors import Overloaded, StaleGeneration, StorageError, StorageFull, UsageError
from mesh.storage import deployments as deployments_module
from mesh.storage.deployments import MAX_BLOB_BYTES, DeploymentStore, decode_record, encode_record
from mesh.storage.folder import DataFolder

NAME = DeploymentName("camera")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DataFolder]:
    with DataFolder.open(tmp_path) as folder:
        yield folder


def record(folder: DataFolder, name: str = NAME) -> Path:
    return folder.path / "deployments" / f"{name}.record"


def test_a_deployment_survives_a_restart_with_its_fence(folder: DataFolder) -> None:
    store = DeploymentStore(folder)
    store.store(NAME, b"plan", Fence(3, 7))
    store.store(DeploymentName("empty"), b"", Fence(1, 1))
    again = DeploymentStore(folder)
    assert again.load_all() == {"camera": b"plan", "empty": b""}
    assert again.fence(NAME) == Fence(3, 7)
    assert again.highest_term() == 3
    assert again.damages == []


def test_lower_plans_are_refused_also_after_a_restart_and_a_removal(folder: DataFolder) -> None:
    store = DeploymentStore(folder)
    store.raise_fence(NAME, Fence(2, 5))
    for _ in range(2):
        for stale in (Fence(2, 4), Fence(1, 99)):
            with pytest.raises(StaleGeneration, match=r"2\.5"):
                store.store(NAME, b"old", stale)
            with pytest.raises(StaleGeneration):
                store.raise_fence(NAME, stale)
        store = DeploymentStore(folder)
    store.store(NAME, b"same", Fence(2, 5))
    store.remove(NAME)
    assert store.load_all() == {}
    again = DeploymentStore(folder)
    assert again.load_all() == {}
    with pytest.raises(StaleGeneration):
        again.store(NAME, b"old", Fence(2, 4))
    again.store(NAME, b"new", Fence(3, 0))
    assert again.fences() == {NAME: Fence(3, 0)}


def test_raising_the_fence_keeps_the_deployment(folder: DataFolder) -> None:
    store = DeploymentStore(folder)
    store.store(NAME, b"plan", Fence(1, 1))
    store.raise_fence(NAME, Fence(1, 2))
    assert DeploymentStore(folder).load_all() == {NAME: b"plan"}
    assert DeploymentStore(folder).fence(NAME) == Fence(1, 2)


def test_unknown_names_are_unknown(folder: DataFolder) -> None:
    store = DeploymentStore(folder)
    assert store.fence(NAME) is None
    assert store.highest_term() == 0
    store.remove(NAME)
    assert not record(folder).exists()


def test_names_and_sizes_are_checked(folder: DataFolder) -> None:
    store = DeploymentStore(folder)
    for name in ("", "../x", "A", "a" * 64, "a\0b"):
        with pytest.raises(UsageError):
            store.store(DeploymentName(name), b"x", Fence(1, 1))
    with pytest.raises(Overloaded):
        store.store(NAME, bytes(MAX_BLOB_BYTES + 1), Fence(1, 1))
    for fence in (Fence(-1, 0), Fence(0, 1 << 64)):
        with pytest.raises(StorageError, match="range"):
            store.store(NAME, b"x", fence)
    assert list((folder.path / "deployments").iterdir()) == []


def test_a_full_disk_leaves_the_earlier_record(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DeploymentStore(folder)
    store.store(NAME, b"old", Fence(1, 1))

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StorageFull):
            store.store(NAME, b"new", Fence(1, 2))
    assert store.load_all() == DeploymentStore(folder).load_all() == {NAME: b"old"}
    assert store.fence(NAME) == Fence(1, 1)


def test_every_flipped_byte_and_every_cut_is_set_aside_and_reported(folder: DataFolder) -> None:
    whole = encode_record(Fence(4, 2), b"a deployment")
    header_bytes = deployments_module._HEADER.size + 32
    damaged = [whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :] for at in range(len(whole))]
    damaged += [whole[:at] for at in range(len(whole))] + [whole + b"x"]
    DeploymentStore(folder).store(DeploymentName("other"), b"fine", Fence(1, 1))
    for number, data in enumerate(damaged):
        record(folder).write_bytes(data)
        store = DeploymentStore(folder)
        [damage] = store.damages
        assert (damage.name, damage.path.read_bytes()) == (NAME, data)
        assert damage.path.name == "camera.corrupt"
        assert damage.reason
        assert store.load_all() == {"other": b"fine"}
        if number >= header_bytes and number < len(whole):  # damage behind the header
            assert damage.fence == store.fence(NAME) == Fence(4, 2)
            assert DeploymentStore(folder).damages == []
            with pytest.raises(StaleGeneration):
                store.store(NAME, b"x", Fence(4, 1))
        record(folder).unlink(missing_ok=True)


def test_what_only_the_runtime_finds_unreadable_is_set_aside_with_its_fence_in_force(folder: DataFolder) -> None:
    store = DeploymentStore(folder)
    store.store(NAME, b"of another version", Fence(4, 2))
    data = record(folder).read_bytes()
    store.set_aside(NAME, "it is of another version")
    store.set_aside(NAME, "again")
    store.set_aside(DeploymentName("unknown"), "never here")
    [damage] = store.damages
    assert (damage.name, damage.reason, damage.fence) == (NAME, "it is of another version", Fence(4, 2))
    assert damage.path.read_bytes() == data
    for opened in (store, DeploymentStore(folder)):
        assert (opened.load_all(), opened.fences()) == ({}, {NAME: Fence(4, 2)})
        with pytest.raises(StaleGeneration):
            opened.store(NAME, b"x", Fence(4, 1))
    store.store(NAME, b"new", Fence(4, 3))
    assert DeploymentStore(folder).load_all() == {NAME: b"new"}


def test_foreign_and_partial_files(folder: DataFolder) -> None:
    path = folder.subfolder("deployments")
    (path / "camera.record.1-2.partial").write_bytes(b"half")
    (path / "README").write_bytes(b"not ours")
    (path / "Not A Name.record").write_bytes(encode_record(Fence(1, 1), b"x"))
    store = DeploymentStore(folder)
    assert store.load_all() == {}
    assert [damage.name for damage in store.damages] == ["Not A Name"]
    assert sorted(each.name for each in path.iterdir()) == ["Not A Name.corrupt", "README"]


def test_the_number_of_names_is_bounded(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployments_module, "MAX_NAMES", 3)
    store = DeploymentStore(folder)
    for number in range(3):
        store.store(DeploymentName(f"d{number}"), b"x", Fence(1, number))
    with pytest.raises(Overloaded, match="3 deployments"):
        store.store(NAME, b"x", Fence(1, 0))
    store.remove(DeploymentName("d1"))
    store.remove(DeploymentName("d2"))
    store.store(NAME, b"x", Fence(1, 0))
    assert DeploymentStore(folder).fences().keys() == {"d0", "d2", NAME}


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.one_of(st.none(), st.binary(max_size=200)))
def test_encoding_and_decoding_are_inverse(term: int, generation: int, blob: bytes | None) -> None:
    assert decode_record(encode_record(Fence(term, generation), blob)) == (Fence(term, generation), blob, "")


@given(st.binary(max_size=300))
def test_noise_is_never_a_record(data: bytes) -> None:
    fence, blob, reason = decode_record(data)
    assert (fence, blob) == (None, None)
    assert reason


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["store", "raise", "remove", "restart"]),
            st.sampled_from(["a", "b"]),
            st.integers(0, 2),
            st.integers(0, 3),
        ),
        max_size=25,
    )
)
def test_a_fence_never_falls_and_the_last_accepted_blob_stands(steps: list[tuple[str, str, int, int]]) -> None:
    fences: dict[str, Fence] = {}
    blobs: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as path, DataFolder.open(Path(path)) as folder:
        store = DeploymentStore(folder)
        for number, (step, name, term, generation) in enumerate(steps):
            key, fence = DeploymentName(name), Fence(term, generation)
            if step == "restart":
                store = DeploymentStore(folder)
            elif step == "remove":
                store.remove(key)
                blobs.pop(name, None)
            elif name in fences and fence < fences[name]:
                with pytest.raises(StaleGeneration):
                    store.raise_fence(key, fence)
            else:
                fences[name] = fence
                if step == "store":
                    blobs[name] = bytes([number])
                    store.store(key, blobs[name], fence)
                else:
                    store.raise_fence(key, fence)
            assert store.load_all() == blobs
            assert store.fences() == fences
