"""The program of `scripts/bench_plans`: plans that the mesh makes for emulated fleets, held against what they then do.

Each case is a model and a fleet of `mesh lab`. The plan is deployed as anybody would; its throughput is measured in
rounds that take turns with the best single device's, through the same mesh. Printed: measured over predicted, the
prediction's error, and the ratio to the single device with the 90 % interval of its mean. Exits 1 where a plan is
slower than one device beyond doubt, or where what a case is about did not come true (`Case.check`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from bench_figures import interleave  # noqa: E402
from bench_fleet import wait_until_measured  # noqa: E402
from bench_lab_row import Lab, open_lab  # noqa: E402
from bench_models import default_folder, model_file  # noqa: E402

from mesh.errors import Infeasible  # noqa: E402
from nodes.render import format_table  # noqa: E402

MESH_NAME, ONE_NAME = "mesh", "one"
INTERVAL_90 = {7: 1.943, 8: 1.895, 9: 1.860, 10: 1.833, 11: 1.812}
"""Student's t for the two-sided 90 % interval of a mean, by rounds."""
SLOWER_BEYOND_DOUBT = 0.98
DESK = '[[device]]\nname = "desk"\nrole = "client"\n'


@dataclass(frozen=True)
class Board:
    name: str
    cpu: float
    count: int = 1
    memory: str = "600MB"
    rate: str = "1Gbit"

    def table(self) -> str:
        return (
            f'[[device]]\nname = "{self.name}"\ncount = {self.count}\ncpu = {self.cpu}\n'
            f'memory = "{self.memory}"\nrate = "{self.rate}"\n'
        )


Check = Callable[[dict[str, Any], dict[str, Any] | None], str]
"""Takes the plan, and that of one device where there is one; what did not come true, or ""."""


def _any(plan: dict[str, Any], one: dict[str, Any] | None) -> str:
    return ""


def _needs_several(plan: dict[str, Any], one: dict[str, Any] | None) -> str:
    if one is not None:
        return "the model fits one board"
    return "" if len(plan["stages"]) > 1 else "the plan has one stage"


@dataclass(frozen=True)
class Case:
    name: str
    model: str
    boards: tuple[Board, ...]
    options: tuple[str, ...] = ()
    left_out: str = ""
    """A board that the plan must not use and must name as left out."""
    check: Check = _any


def _pinned(board: str) -> tuple[str, ...]:
    return ("--first-on", board)


CASES = (
    Case("equal boards", "mobilenetv2", (Board("board", 0.35, 4),), _pinned("board-1")),
    Case("a weak board", "resnet18", (Board("board", 0.5, 2), Board("weak", 0.05)), _pinned("board-1"), "weak"),
    Case("20 Mbit links", "mobilenetv2", (Board("board", 0.35, 3, rate="20Mbit"),), _pinned("board-1")),
    Case(
        "too big for one",
        "heavy",
        (Board("board", 0.35, 4, memory="400MB"),),
        _pinned("board-1"),
        check=_needs_several,
    ),
    Case("a sensor on a slow node", "resnet18", (Board("slow", 0.15), Board("board", 0.5, 2)), _pinned("slow")),
    Case(
        "speeds 4:2:1:1",
        "vit_tiny",
        (Board("four", 0.7), Board("two", 0.35), Board("one", 0.175, 2)),
        _pinned("four"),
    ),
    Case("shaped like YOLO", "yolo_320", (Board("board", 0.35, 4),), _pinned("board-1")),
    Case("a transformer", "minilm", (Board("board", 0.35, 4, rate="100Mbit"),), _pinned("board-1")),
)


@dataclass
class Outcome:
    case: str
    stages: int
    predicted_per_s: float
    measured: list[float] = field(default_factory=list)
    single: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def to_prediction(self) -> float:
        return statistics.median(self.measured) / self.predicted_per_s

    @property
    def error(self) -> float:
        return abs(self.to_prediction - 1)

    def interval(self) -> tuple[float, float, float]:
        """Median ratio to the single device, and the 90 % interval of its geometric mean."""
        logs = [math.log(mesh / one) for mesh, one in zip(self.measured, self.single, strict=True)]
        middle, spread = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
        t = INTERVAL_90[min(INTERVAL_90, key=lambda rounds: abs(rounds - len(logs)))]
        return (
            math.exp(statistics.median(logs)),
            math.exp(middle - t * spread),
            math.exp(middle + t * spread),
        )


def run_case(case: Case, folder: Path, models: Path, rounds: int, seconds: float) -> Outcome:
    model = model_file(models, case.model)
    fleet = "".join(board.table() for board in case.boards) + DESK
    with open_lab(folder / "fleet.toml", fleet) as lab:
        count = sum(board.count for board in case.boards)
        wait_until_measured(lambda: lab.call("nodes")["nodes"], count)
        names = {node["id"]: node["name"] for node in lab.call("nodes")["nodes"]}
        explained = lab.call("plan", str(model), "--explain", "--measure", *case.options)
        plan = lab.call("deploy", str(model), "--name", MESH_NAME, *case.options)["plan"]
        one = _deploy_single(lab, model, case)
        outcome = Outcome(case.name, len(plan["stages"]), plan["predicted"]["throughput_per_s"])
        outcome.wrong += filter(None, [case.check(plan, one)])
        if case.left_out:
            outcome.wrong += _used_or_unsaid(case.left_out, plan, explained, names)
        works = [(MESH_NAME, lambda: lab.throughput(MESH_NAME, seconds))]
        if one is not None:
            works.append((ONE_NAME, lambda: lab.throughput(ONE_NAME, seconds)))
        for sample in interleave(rounds, works):
            outcome.measured.append(sample[MESH_NAME])
            if one is not None:
                outcome.single.append(sample[ONE_NAME])
        if outcome.single and outcome.interval()[2] < SLOWER_BEYOND_DOUBT:
            outcome.wrong.append("slower than one device")
        return outcome


def _deploy_single(lab: Lab, model: Path, case: Case) -> dict[str, Any] | None:
    """The best single device, wherever it is; None where no board holds the model."""
    if case.check is _needs_several:
        code = lab.code("deploy", str(model), "--name", ONE_NAME, "--stages", "1")
        if code == Infeasible.exit_code:
            return None
    plan: dict[str, Any] = lab.call("deploy", str(model), "--name", ONE_NAME, "--stages", "1")["plan"]
    return plan


def _used_or_unsaid(
    board: str, plan: dict[str, Any], explained: dict[str, Any], names: dict[str, str]
) -> Iterator[str]:
    used = {names[device] for stage in plan["stages"] for device in stage["devices"]}
    if board in used:
        yield f"{board} is used"
    if board not in json.dumps({key: explained.get(key) for key in ("alternatives", "explanation")}):
        yield f"the plan does not say that {board} is left out"


def table(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for each in outcomes:
        ratio = "fits none"
        if each.single:
            middle, low, high = each.interval()
            ratio = f"{middle:.2f} ({low:.2f} .. {high:.2f})"
        spread = f"{min(each.measured):.1f} .. {max(each.measured):.1f}"
        rows.append(
            (
                each.case,
                str(each.stages),
                f"{each.predicted_per_s:.1f}",
                f"{statistics.median(each.measured):.1f} ({spread})",
                f"{each.to_prediction:.3f}",
                ratio,
                "; ".join(each.wrong) or "holds",
            )
        )
    header = ("CASE", "STAGES", "PREDICTED/S", "MEASURED/S", "TO PREDICTION", "TO ONE DEVICE (90 %)", "")
    return format_table(header, rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench_plans", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement, warm-up not included")
    parser.add_argument("--only", action="append", default=[], metavar="CASE", help="names begin so; repeat")
    parser.add_argument("--models", type=Path, default=default_folder(), help="where made models are kept")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("error: mesh lab needs root")
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="infermesh-bench-") as folder, contextlib.suppress(KeyboardInterrupt):
        for case in CASES:
            if options.only and not any(case.name.startswith(name) for name in options.only):
                continue
            outcomes.append(run_case(case, Path(folder), options.models, options.rounds, options.seconds))
            print(table(outcomes[-1:]), file=sys.stderr, flush=True)
    if not outcomes:
        sys.exit("error: no case was run")
    print(table(outcomes))
    errors = sorted(each.error for each in outcomes)
    last = errors[min(len(errors) - 1, math.ceil(0.9 * len(errors)) - 1)]
    print(f"prediction error: median {statistics.median(errors):.1%}, 90th percentile {last:.1%}")
    print(f"{sum(each.to_prediction >= 0.9 for each in outcomes)} of {len(outcomes)} reach 0.90 of the prediction")
    return 1 if any(each.wrong for each in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
