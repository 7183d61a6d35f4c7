"""`mesh simulate`, and what `mesh plan` and `mesh simulate` answer to input that makes no sense."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nodes.cli import run_command

MODEL = Path(__file__).parents[2] / "nodes" / "demo_data" / "digits.onnx"
BOARDS = '[[device]]\nname = "board"\ncount = 3\ncpu = 0.1\nmemory = "384MB"\nrate = "100Mbit"\n'
SCENARIO = """
seed = 3
seconds = 20
rate = 50
[[event]]
at = "5s"
device = "board-1"
what = "leave"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fleet.toml").write_text(BOARDS)
    (tmp_path / "storm.toml").write_text(SCENARIO)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = run_command([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def simulate(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str | Path) -> tuple[int, str, str]:
    return run(capsys, "simulate", MODEL, "--fleet", folder / "fleet.toml", "--core-ms", "5", *arguments)


def test_a_quiet_run_makes_what_was_predicted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = simulate(capsys, folder, "--seconds", "10", "--json")
    assert code == 0
    document: dict[str, Any] = json.loads(output)
    (only,) = document["generations"]
    predicted = document["predicted"]["throughput_per_s"]
    assert only["throughput_per_s"] == pytest.approx(predicted, rel=0.01)
    assert only["predicted_per_s"] == pytest.approx(predicted)
    assert (document["dropped"], document["replayed"], document["events"]) == (0, 0, [])
    assert document["plan"]["stages"][0]["devices"][0] in document["names"]


def test_a_scenario_is_one_history_per_seed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--scenario", folder / "storm.toml", "--replicas", "2", "--json")
    code, first, _ = simulate(capsys, folder, *arguments)
    assert code == 0
    assert simulate(capsys, folder, *arguments)[1] == first
    assert simulate(capsys, folder, *arguments, "--seed", "9")[1] != first
    assert json.loads(first)["events"][0] == {"time_s": 5.0, "text": "board-1 leaves"}


def test_people_read_what_happened(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = simulate(capsys, folder, "--scenario", folder / "storm.toml")
    assert code == 0
    assert "5.00 s  board-1 leaves" in output
    assert "GENERATION" in output
    assert "20 s with seed 3:" in output


def spoil(name: str, before: str, after: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert before in text
        (folder / name).write_text(text.replace(before, after, 1))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (spoil("storm.toml", "rate = 50", "rate = 0"), "rate must be a number from 0.001"),
        (spoil("storm.toml", "rate = 50", "rate = nan"), "rate must be a number"),
        (spoil("storm.toml", "seed", "sed"), "unknown key 'sed'"),
        (spoil("storm.toml", "board-1", "board-9"), "there is no device 'board-9'"),
        (spoil("fleet.toml", '"100Mbit"', '"0Mbit"'), "rate must be between"),
        (spoil("fleet.toml", '"100Mbit"', '"-1Mbit"'), "rate must be a rate such as"),
        (spoil("fleet.toml", "cpu = 0.1", "cpu = 0"), "cpu must be between"),
        (spoil("fleet.toml", "cpu = 0.1", "cpu = nan"), "cpu must be a number"),
        (spoil("fleet.toml", "cpu", "cpus"), "unknown key 'cpus'"),
    ],
)
def test_files_that_make_no_sense(
    folder: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None], said: str
) -> None:
    change(folder)
    code, _, talk = simulate(capsys, folder, "--scenario", folder / "storm.toml")
    assert code == 2
    assert said in talk


def test_a_scenario_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, talk = simulate(capsys, folder, "--scenario", folder / "calm.toml")
    assert code == 3
    assert "there is no scenario file" in talk
    code, _, talk = simulate(capsys, folder, "--scenario", folder / "storm.toml", "--seconds", "2")
    assert code == 2
    assert "ends before the event at 5 s" in talk


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plan: plan.update(model_sha256="0" * 64), "the plan is for model 000000000000"),
        (lambda plan: plan.update(speed=1), "plan.speed is not a known key"),
        (lambda plan: plan["stages"][0].update(codec="zip"), "plan.stages[0].codec is 'zip', which no node speaks"),
        (lambda plan: plan["stages"][0].update(compute_ms=-1), "plan.stages[0].compute_ms is -1"),
        (lambda plan: plan["stages"][0].update(devices=["0" * 32]), "the plan cannot be carried out"),
        (lambda plan: plan["stages"].pop(), "plan.stages has 0 entries"),
    ],
)
def test_plans_that_make_no_sense(folder: Path, capsys: pytest.CaptureFixture[str], change: Change, said: str) -> None:
    fleet = folder / "fleet.toml"
    _, output, _ = run(
        capsys, "plan", MODEL, "--fleet", fleet, "--exclude", "board-2", "--exclude", "board-3", "--json"
    )
    document = json.loads(output)
    document["limits"]["excluded"] = []
    given = folder / "plan.json"
    given.write_text(json.dumps(document))
    assert simulate(capsys, folder, "--plan", given, "--seconds", "1")[0] == 0
    change(document)
    given.write_text(json.dumps(document))
    code, _, talk = simulate(capsys, folder, "--plan", given, "--seconds", "1")
    assert code == 2
    assert said in talk


def test_a_plan_and_pins_contradict_each_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, output, _ = run(capsys, "plan", MODEL, "--fleet", folder / "fleet.toml", "--explain", "--json")
    given = folder / "plan.json"
    given.write_text(output)
    code, _, talk = simulate(capsys, folder, "--plan", given, "--exclude", "board-1")
    assert code == 2
    assert "carried out as it is" in talk
    assert simulate(capsys, folder, "--plan", given, "--seconds", "1")[0] == 0, "an explained plan is a plan"
