"""`mesh optimize` as a person runs it: what it prints, what it leaves, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mesh.optimize.golden_set import GOLDEN_FILE, decode_golden_set
from mesh.optimize.plot import PLOT

ROOT = Path(__file__).parents[2]
DATA = ROOT / "nodes" / "demo_data"


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    with np.load(DATA / "digits_test.npz") as archive:
        np.savez(folder / "x.npz", image=archive["image"][:40])
        np.savez(folder / "y.npz", label=archive["label"][:40])
    return folder


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "nodes", "optimize", str(DATA / "digits.onnx"), *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=ROOT, timeout=50)


def test_the_folder_holds_what_is_offered_and_the_report(sample: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("--calibration", sample / "x.npz", "--labels", sample / "y.npz", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert json.loads((out / "report.json").read_text()) == report
    files = {each["file"] for each in report["offered"]}
    assert {path.name for path in out.iterdir()} == {"report.json", GOLDEN_FILE, PLOT, *files}
    taken = decode_golden_set((out / GOLDEN_FILE).read_bytes())
    assert 0 < len(taken.samples) <= report["reference"]["samples"]["judged"]
    assert all(0 <= each["golden_accuracy"] <= 1 for each in report["offered"])
    assert all((out / each["file"]).stat().st_size == each["bytes"] for each in report["offered"])
    assert "timing" in done.stderr
    again = run("--calibration", sample / "x.npz", "--out", out)
    assert again.returncode == 0, again.stderr
    assert "VARIANT" in again.stdout and "chosen for this machine" in again.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--calibration", "missing.npz"], 3, "missing.npz"),
        (["--calibration", "y.npz"], 1, "no array named image"),
        (["--calibration", "x.npz", "--labels", "x.npz"], 1, "labels"),
        (["--calibration", "x.npz", "--max-drop", "-3"], 2, "--max-drop"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(
    sample: Path, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    words = [sample / word if word.endswith(".npz") else word for word in arguments]
    done = run(*words, "--out", tmp_path / "out", "--json")
    assert done.returncode == code, done.stderr
    assert said in json.loads(done.stdout)["error"]["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_ctrl_c_leaves_nothing(sample: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    words = command("--calibration", sample / "x.npz", "--out", out)
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("int8"):
                process.send_signal(signal.SIGINT)
                break
        process.stderr.read()
        assert process.wait(timeout=50) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "temporary"]
    # The runtime itself keeps a file of its own there from its import on.
    assert [path for path in temporary.rglob("*") if path.is_dir() or path.suffix == ".onnx"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--optimize"], "--optimize needs samples"),
        (["--calibration", "x.npz"], "--calibration and --labels go with --optimize"),
        (["--labels", "y.npz"], "--calibration and --labels go with --optimize"),
        (["--optimize", "--calibration", "x.npz", "--plan", "plan.json"], "a plan is for one model file"),
        (["--optimize", "--calibration", "none.npz"], "none.npz"),
    ],
)
def test_deploying_with_wrong_wishes_for_variants_is_refused_before_anything_is_made(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    model = tmp_path / "digits.onnx"
    model.write_bytes((DATA / "digits.onnx").read_bytes())
    line = [sys.executable, "-m", "nodes", "deploy", str(model), "--no-mdns", "--peer", "127.0.0.1:1", *arguments]
    done = subprocess.run(
        line, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert said in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["digits.onnx"]
