from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mesh.errors import FolderInUse, StorageError, StorageFull, StorageReadOnly
from mesh.storage.folder import DataFolder, read_small_file, translated, write_atomically

NOBODY = 65534

HOLD = """
import sys
from pathlib import Path
from mesh.storage.folder import DataFolder
folder = DataFolder.open(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.partial")]


def failing(number: int) -> Callable[..., None]:
    """A stand-in for a system call that fails; permissions do not bind a root user, so tests cannot rely on them."""

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_new_folder_is_private_and_nested_ones_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with DataFolder.open(path) as folder:
        assert folder.path == path
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert (path / "format").read_text() == "1\n"
        assert (path / "lock").read_text() == f"{os.getpid()}\n"
        assert stat.S_IMODE(folder.subfolder("content").stat().st_mode) == 0o700
        assert folder.disk_available_bytes() > 0


def test_a_second_daemon_is_refused_by_the_name_of_the_first(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "open\n"
        with pytest.raises(FolderInUse, match=f"process {first.pid}") as refused:
            DataFolder.open(tmp_path)
        assert "--data-dir" in refused.value.hint
        first.kill()  # the kernel releases the lock of a daemon that was killed
        first.wait()
        DataFolder.open(tmp_path).close()


def test_a_closed_folder_can_be_opened_again_and_closed_twice(tmp_path: Path) -> None:
    folder = DataFolder.open(tmp_path)
    with pytest.raises(FolderInUse, match=str(os.getpid())):
        DataFolder.open(tmp_path)
    folder.close()
    folder.close()
    DataFolder.open(tmp_path).close()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("x")
    for path in (blocker, blocker / "below"):
        with pytest.raises(StorageError, match="file") as refused:
            DataFolder.open(path)
        assert "in the way" in refused.value.hint


def test_a_folder_that_anyone_may_write_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    path.mkdir()
    path.chmod(0o777)
    with pytest.raises(StorageError, match="anyone"):
        DataFolder.open(path)
    assert not list(path.iterdir())


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    with pytest.raises(StorageError, match="belongs to user id"):
        DataFolder.open(tmp_path)


@pytest.mark.parametrize("text", ["2\n", "99"])
def test_a_folder_of_newer_software_is_refused_and_released(tmp_path: Path, text: str) -> None:
    (tmp_path / "format").write_text(text)
    for _ in range(2):  # the second attempt shows that the first one released the lock
        with pytest.raises(StorageError, match="format") as refused:
            DataFolder.open(tmp_path)
        assert "upgrade" in refused.value.hint


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"one", b"9" * 5000])
def test_a_damaged_format_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "format").write_bytes(content)
    with pytest.raises(StorageError, match="format"):
        DataFolder.open(tmp_path)


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder that belongs to a user whom permissions bind: this one, or nobody while root runs the tests."""
    with tempfile.TemporaryDirectory() as path:
        was_root = os.geteuid() == 0
        if was_root:
            os.chown(path, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield Path(path)
        finally:
            if was_root:
                os.seteuid(0)
            Path(path).chmod(0o700)


def test_a_folder_without_write_permission_is_read_only(unprivileged: Path) -> None:
    unprivileged.chmod(0o500)
    for path in (unprivileged, unprivileged / "new"):
        with pytest.raises(StorageReadOnly, match="Permission denied") as refused:
            DataFolder.open(path)
        assert "--data-dir" in refused.value.hint


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EROFS, StorageReadOnly),
        (errno.EACCES, StorageReadOnly),
        (errno.EPERM, StorageReadOnly),
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EFBIG, StorageFull),
        (errno.ENOTDIR, StorageError),
        (errno.EIO, StorageError),
    ],
)
def test_failures_of_the_system_become_errors_with_hints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[StorageError]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing(number))
        with pytest.raises(StorageError) as refused:
            DataFolder.open(tmp_path / "new")
    assert type(refused.value) is expected
    assert str(tmp_path) in refused.value.message
    assert os.strerror(number) in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize("call", ["fsync", "fdopen"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "record"
    write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(errno.ENOSPC))
        with pytest.raises(StorageFull):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["record"]


def test_an_atomic_write_is_private_and_replaces_a_link_not_its_target(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"keep")
    path = tmp_path / "record"
    path.symlink_to(target)
    write_atomically(path, b"new")
    assert target.read_bytes() == b"keep"
    assert not path.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not leftovers(tmp_path)


def test_other_errors_pass_untranslated(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), translated("test", tmp_path):
        raise ValueError("mine")


def test_a_small_file_that_is_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(bytes(65537))
    with pytest.raises(StorageError, match="larger"):
        read_small_file(path)
    with pytest.raises(StorageError):
        read_small_file(tmp_path / "missing")
