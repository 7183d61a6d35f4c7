"""Model files that must be refused, through every command that takes one, while a mesh is there to be spoilt."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest

from tests.end_to_end.commands import DIGITS, LocalFleet, run_together
from tests.model.bad_models import BAD_MODELS, chain

PARSED_ONCE = ("empty", "truncated", "random", "unknown operator", "cycle", "2^40 elements", "wrapped product")
"""What is promised by name; tests/model has every kind of bad model, in one process."""


IS_SPLIT_NEXT = itertools.cycle([True, False])
"""`split` and `verify` open models by the same door: they take turns, to save time."""


@pytest.fixture(scope="module", autouse=True)
def nothing_refused_is_deployed(fleet: LocalFleet) -> Iterator[None]:
    yield
    assert "refused" not in fleet.names()


def refuse_everywhere(fleet: LocalFleet, folder: Path, model: Path | str, error: str, code: int, *words: str) -> None:
    """`split` or `verify`, and `deploy` at the same time; nothing is written."""
    out = folder / "parts"
    split = ("split", str(model), "--stages", "2", "--out", str(out), "--json")
    verify = ("verify", str(model), "--json")
    ends = run_together(
        split if next(IS_SPLIT_NEXT) else verify, ("deploy", str(model), "--name", "refused", "--json", *fleet.seeds)
    )
    for end in ends:
        end.fails(error, code, *words)
    assert not out.exists()


@pytest.mark.parametrize("kind", PARSED_ONCE)
def test_bad_bytes(fleet: LocalFleet, tmp_path: Path, kind: str) -> None:
    make, error, words = BAD_MODELS[kind]
    path = tmp_path / "a modèl with spaces.onnx"
    path.write_bytes(make())
    refuse_everywhere(fleet, tmp_path, path, error.code, 1, words)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_nothing(path: Path) -> None:
    """There is no such file."""


@pytest.mark.parametrize(
    ("make", "error", "code", "words"),
    [
        (make_folder, "model-unreadable", 1, "is a folder"),
        (make_pipe, "model-unreadable", 1, "not a regular file"),
        (make_loop, "model-unreadable", 1, "cannot be read"),
        (make_nothing, "not-found", 3, "no model file"),
    ],
)
def test_no_file(
    fleet: LocalFleet, tmp_path: Path, make: Callable[[Path], None], error: str, code: int, words: str
) -> None:
    path = tmp_path / "model.onnx"
    make(path)
    refuse_everywhere(fleet, tmp_path, path, error, code, words, str(path))


def refer_to(location: str, path: Path) -> None:
    """A model at `path` whose first weight is kept at `location`."""
    model = chain()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("way", ["parent", "absolute", "symlink", "hard link"])
def test_external_data_outside_the_folder(fleet: LocalFleet, tmp_path: Path, way: str) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(range(64)))
    folder = tmp_path / "model"
    folder.mkdir()
    if way == "symlink":
        (folder / "weights.bin").symlink_to(secret)
    elif way == "hard link":
        (folder / "weights.bin").hardlink_to(secret)
    location = {"parent": "../secret.bin", "absolute": str(secret)}.get(way, "weights.bin")
    refer_to(location, folder / "model.onnx")
    refuse_everywhere(fleet, tmp_path, folder / "model.onnx", "external-data-refused", 1, Path(location).name)


def test_external_data_in_the_folder_is_taken(fleet: LocalFleet, tmp_path: Path) -> None:
    refer_to("weights.bin", tmp_path / "model.onnx")
    (tmp_path / "weights.bin").write_bytes(bytes(64))
    fleet.run("deploy", str(tmp_path / "model.onnx"), "--name", "external", "--json").ok()
    fleet.run("undeploy", "external", "--json").ok()


def test_plan_files_that_do_not_fit(fleet: LocalFleet, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "other.json").write_text("[1, 2]")
    (tmp_path / "half.json").write_text(json.dumps({"stages": [{"devices": ["nobody"]}]}))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    known = ("--name", "refused", "--json", *fleet.seeds)
    ends = run_together(
        *(("deploy", str(DIGITS), "--plan", str(tmp_path / f"{name}.json"), *known) for name in ("text", "other")),
        *(("split", str(DIGITS), "--plan", str(tmp_path / f"{name}.json"), "--out", str(tmp_path / "o"), "--json")
          for name in ("half", "deep")),
    )  # fmt: skip
    for end in ends:
        end.fails("usage", 2, "plan")
    fleet.run("deploy", str(DIGITS), "--plan", str(tmp_path / "none.json"), "--json").fails("not-found", 3, "none.json")
    fleet.run("deploy", str(DIGITS), "--plan", str(tmp_path), "--json").fails("usage", 2, str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "error", "code", "words"),
    [
        (("--name", "Upper"), "usage", 2, "a-z, 0-9"),
        (("--name", ""), "usage", 2, "name"),
        (("--objective", "speed"), "usage", 2, "throughput, latency"),
        (("--stages", "9"), "infeasible", 5, "9 stages"),
        (("--stages", "0"), "usage", 2, "--stages"),
        (("--stages", "many"), "usage", 2, "--stages"),
        (("--stages", "2", "--plan", "p.json"), "usage", 2, "give one"),
    ],
)
def test_wishes_that_make_no_sense(
    fleet: LocalFleet, arguments: tuple[str, ...], error: str, code: int, words: str
) -> None:
    # Three nodes measure the model before 9 stages are known to be too many for them.
    end = fleet.run("deploy", str(DIGITS), *arguments, "--json")
    end.fails(error, code, words)
