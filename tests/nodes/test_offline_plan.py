"""`mesh plan MODEL --fleet FILE`: as `mesh plan`, without anybody to ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import MissingExtra
from mesh.model.read import read_model
from mesh.model.summarise import summarise
from mesh.planning.document import plan_from_json
from mesh.runtime import offline_plan
from nodes.cli import run_command

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "nodes" / "demo_data" / "digits.onnx"
BOARDS = '[[device]]\nname = "board"\ncount = 2\ncpu = 0.4\nmemory = "384MB"\nrate = "100Mbit"\n'


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(BOARDS + '[[device]]\nname = "watch"\nrole = "client"\ncpu = 4\n')
    return path


def plan(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = run_command(["plan", *map(str, arguments)])
    output = capsys.readouterr()
    return code, output.out, output.err


def plan_json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    code, output, _ = plan(capsys, *arguments, "--json")
    document: dict[str, Any] = json.loads(output)
    return code, document


def test_the_document_is_a_plan_for_the_devices_of_the_file(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = plan_json(capsys, MODEL, "--fleet", fleet, "--stages", "2")
    assert code == 0
    assert (len(document["stages"]), document["forced"]) == (2, True)
    assert sorted(document["names"].values()) == ["board-1", "board-2"]
    assert not any(stage["measured"] for stage in document["stages"])
    assert "all costs are estimates" in document["certificate"]
    assert document["predicted"]["throughput_per_s"] > 0
    model = read_model(MODEL)
    assert plan_from_json(document, summarise(model)).certificate == document["certificate"]


def test_people_read_names_and_reasons(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, talk = plan(capsys, MODEL, "--fleet", fleet, "--explain", "--objective", "latency")
    assert code == 0
    assert "for latency" in output
    assert "alone on board-2" in output
    assert "(estimated)" in output
    assert "all costs are estimates" in output
    assert "one core of this machine" in talk


def test_without_a_runtime_the_speed_is_nominal(
    fleet: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise MissingExtra("onnxruntime is not installed")

    monkeypatch.setattr(offline_plan, "make_engine", missing)
    code, document = plan_json(capsys, MODEL, "--fleet", fleet)
    assert (code, "nominal" in document["certificate"]) == (0, True)


@pytest.mark.parametrize(
    ("text", "exit_code", "words"),
    [
        ("[[device]]\nname = 3\n", 2, "device 1: name"),
        ('[[device]]\nname = "a"\ncpus = 1\n', 2, "unknown key 'cpus'"),
        ('[[device]]\nname = "a"\nlike = "pi-4"\n', 2, "like"),
        ('[[device]]\nname = "a"\nmemory = "1MB"\n', 5, "memory"),
        (BOARDS.replace("count = 2", "count = 1"), 5, "2 stages need 2 devices"),
    ],
)
def test_what_is_wrong_is_named(
    text: str, exit_code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    stages = "2" if text.startswith(BOARDS[:20]) and "cpu" in text else "1"
    code, document = plan_json(capsys, MODEL, "--fleet", path, "--stages", stages)
    assert (code, words in document["error"]["message"]) == (exit_code, True), document


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = plan_json(capsys, MODEL, "--fleet", tmp_path / "none.toml")
    assert (code, document["error"]["code"]) == (3, "not-found")


def test_pins_and_exclusions_are_kept(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = plan_json(
        capsys, MODEL, "--fleet", fleet, "--first-on", "board-2", "--exclude", "board-1", "--explain"
    )
    assert code == 0
    assert list(document["names"].values()) == ["board-2"]
    (pinned,) = document["names"]
    assert document["limits"]["head"] == pinned
    assert document["explanation"]["bottleneck"] == {
        "stage": 0,
        "is_link": False,
        "period_ms": pytest.approx(1e3 / document["predicted"]["throughput_per_s"]),
    }
    (more,) = document["explanation"]["improvements"]
    assert more["name"] == "one more board like board-2"


def test_a_node_that_is_not_in_the_file(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, talk = plan(capsys, MODEL, "--fleet", fleet, "--exclude", "bord-1")
    assert code == 3
    assert "there are: board-1, board-2" in talk


def test_people_read_what_each_part_takes_and_what_would_help(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet.write_text(BOARDS.replace("100Mbit", "1Mbit") + 'air = "channel-1"\n')
    code, output, _ = plan(capsys, MODEL, "--fleet", fleet, "--explain")
    assert code == 0
    assert "bottleneck: stage 0 on board-1 sets the pace" in output
    assert "MB of weights" in output
    assert "wires (100 Mbit) in place of radio:" in output
    assert "with board-2:" in output
