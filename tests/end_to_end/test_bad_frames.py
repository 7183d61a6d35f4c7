"""Data that does not fit the model, sources and sinks that cannot be, and a deployment that goes on regardless."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import termios
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mesh
from mesh.core.tensor import DType, Tensor
from mesh.errors import DeploymentNotFound, MeshError, NoNodes, TensorMismatch
from tests.end_to_end.commands import DIGITS, LocalFleet, Running, run, run_together, wait_until

FRAMES = np.zeros((3, 1, 1, 8, 8), np.float32)


@pytest.fixture(scope="module", autouse=True)
def the_deployment_goes_on(fleet: LocalFleet, digits: str, images: Path) -> Iterator[None]:
    """Whatever was thrown at it in this module, it answers in the end as it did at first."""
    before = fleet.run("infer", digits, "--input", str(images), "--output", str(images.with_name("a.npz"))).ok()
    yield
    after = fleet.run("infer", digits, "--input", str(images), "--output", str(images.with_name("b.npz"))).ok()
    assert before.stdout.replace("a.npz", "b.npz") == after.stdout
    with np.load(images.with_name("a.npz")) as first, np.load(images.with_name("b.npz")) as second:
        np.testing.assert_array_equal(first["scores"], second["scores"])


def cut(path: Path) -> None:
    np.savez(path, image=FRAMES)
    path.write_bytes(path.read_bytes()[:-40])


def bomb(path: Path) -> None:
    """A few kilobytes that say they unpack to 2 GiB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", b"\x93NUMPY")
        archive.infolist()[0].file_size = 2 << 30


BAD_ARRAYS: dict[str, tuple[Callable[[Path], Any], str, int, str]] = {
    "dtype": (lambda path: np.savez(path, image=FRAMES.astype(np.float64)), "tensor-mismatch", 1, "float64"),
    "rank": (lambda path: np.savez(path, image=np.zeros((8, 8), np.float32)), "tensor-mismatch", 1, "rank"),
    "dimension": (lambda path: np.savez(path, image=np.zeros((3, 1, 1, 8, 9), np.float32)), "tensor-mismatch", 1, "9"),
    "no arrays": (lambda path: np.savez(path), "tensor-mismatch", 1, "image"),
    "no frames": (lambda path: np.savez(path, image=FRAMES[:0]), "tensor-mismatch", 1, "no frames"),
    "objects": (lambda path: np.savez(path, image=np.array([{}], object)), "source-unreadable", 1, "Python objects"),
    "text": (lambda path: path.write_text("image " * 100), "source-unreadable", 1, ".npz"),
    "empty": (lambda path: path.touch(), "source-unreadable", 1, ".npz"),
    "truncated": (cut, "source-unreadable", 1, "zip"),
    "bomb": (bomb, "source-unreadable", 1, "unpacks to"),
    "folder": (lambda path: path.mkdir(), "source-unreadable", 1, "no ordinary file"),
    "pipe": (lambda path: os.mkfifo(path), "source-unreadable", 1, "no ordinary file"),
    "missing": (lambda path: None, "not-found", 3, "no such file"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_bad_arrays(fleet: LocalFleet, digits: str, tmp_path: Path, kind: str) -> None:
    make, error, code, words = BAD_ARRAYS[kind]
    path = tmp_path / "frames.npz"
    make(path)
    ends = run_together(
        ("infer", digits, "--input", str(path), "--json", *fleet.seeds),
        ("stream", digits, "--source", str(path), "--sink", "null:", "--json", *fleet.seeds),
    )
    for end in ends:
        end.fails(error, code, words)


def test_wrong_name(fleet: LocalFleet, digits: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "frames.npz", picture=FRAMES, photo=FRAMES)
    for arguments in (("infer", digits, "--input"), ("stream", digits, "--sink", "null:", "--source")):
        end = fleet.run(*arguments, str(tmp_path / "frames.npz"), "--json")
        end.fails("tensor-mismatch", 1, "image", "picture")


def test_wrong_byte_count_on_a_pipe(fleet: LocalFleet, digits: str, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(3 * 256 + 100))
    with (tmp_path / "raw").open("rb") as raw:
        end = run("stream", digits, "--source", "stdin:", "--sink", "null:", "--json", *fleet.seeds, stdin=raw.fileno())
    end.fails("tensor-mismatch", 1, "100 of 256 bytes")


IMPOSSIBLE_STREAMS = [
    (("--rate", "nan"), "usage", 2, "rate of nan"),
    (("--rate", "-1"), "usage", 2, "rate of -1"),
    (("--rate", "1e-300"), "usage", 2, "frame a day"),
    (("--rate", "fast"), "usage", 2, "--rate"),
    (("--deadline", "nan"), "usage", 2, "deadline of nan"),
    (("--deadline", "1e300"), "usage", 2, "at most"),
    (("--source", "carrier-pigeon:"), "usage", 2, "known: npz"),
    (("--source", "synthetic:random?count=many"), "usage", 2, "count"),
    (("--source", "images:/nowhere"), "not-found", 3, "/nowhere"),
    (("--sink", "npz:/nowhere/y.npz"), "storage", 1, "/nowhere"),
    (("--sink", "npz:/dev/null"), "storage", 1, "no ordinary file"),
    (("--sink", "jsonl:/dev/full"), "storage-full", 1, "/dev/full"),
]


def test_streams_that_cannot_be(fleet: LocalFleet, digits: str) -> None:
    usual = ("--source", "synthetic:random?count=3", "--sink", "null:", *fleet.seeds, "--json")
    ends = run_together(*(("stream", digits, *usual, *arguments) for arguments, *_ in IMPOSSIBLE_STREAMS))
    for end, (_, error, code, words) in zip(ends, IMPOSSIBLE_STREAMS, strict=True):
        end.fails(error, code, words)


@pytest.mark.parametrize("output", ["/dev/null", "/nowhere/y.npz", "/dev/full"])
def test_outputs_that_cannot_be(fleet: LocalFleet, digits: str, images: Path, output: str) -> None:
    end = fleet.run("infer", digits, "--input", str(images), "--output", output, "--json")
    end.fails("storage", 1, output)
    assert output == "/nowhere/y.npz" or Path(output).is_char_device()


def test_what_is_not_deployed(fleet: LocalFleet, digits: str, images: Path) -> None:
    ends = run_together(
        ("status", "nothing", "--json", *fleet.seeds),
        ("infer", "nothing", "--input", str(images), "--json", *fleet.seeds),
        ("stream", "nothing", "--source", "synthetic:random", "--json", *fleet.seeds),
        ("undeploy", "nothing", "--json", *fleet.seeds),
    )
    for end in ends:
        end.fails("deployment-not-found", 3, "'nothing'", digits)
    for command in ("status", "undeploy"):
        fleet.run(command, "Digits", "--json").fails("usage", 2, "a-z, 0-9")


def test_no_nodes(images: Path) -> None:
    commands = (
        ("nodes",),
        ("status",),
        ("plan", str(DIGITS)),
        ("infer", "digits", "--input", str(images)),
        ("stream", "digits", "--source", "synthetic:random"),
        ("undeploy", "digits"),
    )
    nobody = ("--no-mdns", "--peer", "127.0.0.1:9", "--json")
    for end in run_together(*((*command, *nobody) for command in commands)):
        end.fails("no-nodes", 3, "no node answers", "mesh node")


def waiting_bytes(descriptor: int) -> int:
    """In a pipe, not yet read."""
    return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_pipes_that_block_do_not_hold_what_is_interrupted(fleet: LocalFleet, digits: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "answers.jsonl")
    answers = os.open(tmp_path / "answers.jsonl", os.O_RDWR)  # open, and never read
    reader, writer = os.pipe()
    arguments = ("stream", digits, "--json", *fleet.seeds)
    with (
        Running(*arguments, "--source", "synthetic:random", "--sink", str(tmp_path / "answers.jsonl")) as no_reader,
        Running(*arguments, "--source", "stdin:", "--sink", "null:", stdin=reader) as no_writer,
    ):
        wait_until(lambda: waiting_bytes(answers) > 60_000, 10, "the pipe of answers full")
        no_reader.send(signal.SIGINT)
        no_reader.wait().interrupted()
        before = fleet.frames(digits)
        os.write(writer, bytes(256))  # one frame, and no more
        wait_until(lambda: fleet.frames(digits) == before + 1, 10, "the only frame computed")
        no_writer.send(signal.SIGINT)
        no_writer.wait().interrupted()
    for descriptor in (reader, writer, answers):
        os.close(descriptor)


# The Python client ----------------------------------------------------------------------------------


async def test_feeds_that_do_not_fit(fleet: LocalFleet, digits: str) -> None:
    good = FRAMES[0]
    bad: list[Any] = [
        {"picture": good},
        {"image": good, "more": good},
        {"image": good.astype(np.float64)},
        {"image": good[0]},
        {"image": np.zeros((1, 1, 8, 9), np.float32)},
        [good, good],
        {"image": Tensor(DType.FLOAT32, (1, 1, 8, 8), memoryview(bytes(255)))},
        {"image": object()},
    ]
    async with mesh.connect(peers=[daemon.address for daemon in fleet.daemons], mdns=False) as connection:
        model = await connection.model(digits)
        for feeds in bad:
            with pytest.raises(TensorMismatch):
                await model.run(feeds)
            with pytest.raises(TensorMismatch):
                async for _ in model.stream([{"image": good}, feeds]):
                    pass
        assert (await model.run({"image": good}))["scores"].shape == (1, 10)
        with pytest.raises(DeploymentNotFound):
            await connection.model("nothing")
        with pytest.raises(MeshError):
            await connection.deploy(__file__)


def test_a_blocking_session_without_a_mesh() -> None:
    with pytest.raises(NoNodes):
        mesh.InferenceSession("digits", peers=["127.0.0.1:9"], mdns=False)
    with pytest.raises(MeshError):
        mesh.InferenceSession("nowhere.onnx", peers=["127.0.0.1:9"], mdns=False)
