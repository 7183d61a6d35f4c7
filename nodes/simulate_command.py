"""`mesh simulate`: the plan for a fleet file, run in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.errors import NotFound, UsageError
from nodes.options import (
    CodecOption,
    ExcludeOption,
    FirstOnOption,
    JsonOption,
    MaxChangeOption,
    ModelArgument,
    ObjectiveOption,
    PlanOption,
    ReplicasOption,
    StagesOption,
    TrustedOnlyOption,
)
from nodes.output import command, print_json, run_async
from nodes.wishes import Wishes

if TYPE_CHECKING:
    from mesh.runtime.offline_plan import OfflinePlan
    from mesh.simulate.rehearsal import Rehearsed

FleetOption = Annotated[Path, typer.Option("--fleet", metavar="FILE", help="The devices, as for `mesh plan`.")]
ScenarioOption = Annotated[
    Path | None,
    typer.Option(
        "--scenario", metavar="FILE", help="What happens meanwhile; see docs/simulating.md. Default: nothing."
    ),
]
SecondsOption = Annotated[
    float | None, typer.Option("--seconds", metavar="S", min=0.1, help="Virtual time; default: the scenario's, or 30.")
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", metavar="N", min=0, help="Of all chance; default: the scenario's, or 1.")
]

CoreMsOption = Annotated[
    float | None,
    typer.Option(
        "--core-ms",
        metavar="MS",
        min=0.001,
        help="What the model takes on one core, instead of timing it here: the same run on every machine.",
    ),
]


@command
def simulate(
    model: ModelArgument,
    fleet: FleetOption,
    scenario: ScenarioOption = None,
    seconds: SecondsOption = None,
    seed: SeedOption = None,
    objective: ObjectiveOption = "throughput",
    stages: StagesOption = None,
    plan: PlanOption = None,
    first_on: FirstOnOption = None,
    exclude: ExcludeOption = None,
    trusted_only: TrustedOnlyOption = False,
    replicas: ReplicasOption = 1,
    codec: CodecOption = "none",
    max_change: MaxChangeOption = None,
    core_ms: CoreMsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plan MODEL for a fleet file and run the plan in virtual time, with loss, noise and devices that come and go."""
    wishes = Wishes(
        objective,
        stages,
        plan,
        first_on,
        tuple(exclude or ()),
        trusted_only,
        replicas,
        codec=codec,
        max_change=max_change,
    )
    run_async(show_simulation(model, fleet, scenario, seconds, seed, core_ms, wishes, as_json))


async def show_simulation(
    model: Path,
    fleet: Path,
    scenario: Path | None,
    seconds: float | None,
    seed: int | None,
    core_ms: float | None,
    wishes: Wishes,
    as_json: bool,
) -> None:
    from nodes.fleet_commands import plan_for_fleet

    planned = await plan_for_fleet(model, fleet, wishes, None if core_ms is None else core_ms / 1e3)
    from mesh.simulate.rehearsal import rehearse
    from mesh.simulate.rehearsal_file import parse_rehearsal

    text = "" if scenario is None else await asyncio.to_thread(read_scenario, scenario)
    if seconds is not None and scenario is None:
        text = f"seconds = {seconds}"
    wanted = parse_rehearsal(text, list(planned.names.values()))
    wanted = replace(wanted, seed=wanted.seed if seed is None else seed, seconds=seconds or wanted.seconds)
    late = [incident for incident in wanted.incidents if incident.at > wanted.seconds]
    if late:
        raise UsageError(f"--seconds {wanted.seconds:g} ends before the event at {late[0].at:g} s")
    done = await asyncio.to_thread(rehearse, planned.problem, planned.plan, wanted)
    if as_json:
        print_json(simulation_document(planned, done, wanted.seed))
    else:
        print(describe_simulation(planned, done, wanted.seed))


def read_scenario(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"there is no scenario file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the scenario file {path} cannot be read: {error}") from None


def simulation_document(planned: OfflinePlan, done: Rehearsed, seed: int) -> dict[str, Any]:
    from mesh.planning.document import plan_to_json

    return {
        "seed": seed,
        "seconds": done.seconds,
        "offered": done.offered,
        "answered": done.answered,
        "dropped": done.dropped,
        "replayed": done.replayed,
        "throughput_per_s": done.throughput_per_s,
        "latency_ms": {"p50": done.latency_p50_s * 1e3, "p99": done.latency_p99_s * 1e3},
        "predicted": {
            "throughput_per_s": planned.plan.predicted.throughput_per_s,
            "latency_ms": planned.plan.predicted.latency_s * 1e3,
        },
        "generations": [
            {
                "generation": generation.number,
                "begins_s": generation.begins_at,
                "ends_s": generation.ends_at,
                "devices": [planned.names[device] for device in generation.devices],
                "predicted_per_s": generation.predicted_per_s,
                "throughput_per_s": generation.throughput_per_s,
            }
            for generation in done.generations
        ],
        "events": [{"time_s": event.at, "text": event.text} for event in done.events],
        "plan": plan_to_json(planned.plan),
        "names": {device: planned.names[device] for device in planned.plan.devices},
    }


def describe_simulation(planned: OfflinePlan, done: Rehearsed, seed: int) -> str:
    from nodes.render import format_table, plan_table

    lines = [plan_table(planned.plan, planned.names), ""]
    lines.extend(f"{event.at:8.2f} s  {event.text}" for event in done.events)
    if done.events:
        lines.append("")
    header = ("GENERATION", "FROM", "TO", "FRAMES/S", "PREDICTED", "DEVICES")
    rows = [
        (
            str(generation.number),
            f"{generation.begins_at:.2f} s",
            f"{generation.ends_at:.2f} s",
            f"{generation.throughput_per_s:.1f}",
            f"{generation.predicted_per_s:.1f}",
            ", ".join(planned.names[device] for device in generation.devices),
        )
        for generation in done.generations
    ]
    lines.append(format_table(header, rows))
    counts = f"{done.answered} of {done.offered} frames answered, {done.dropped} dropped, {done.replayed} sent again"
    lines.append(
        f"{done.seconds:g} s with seed {seed}: {counts}; {done.throughput_per_s:.1f} frames/s, "
        f"latency p50 {done.latency_p50_s * 1e3:.1f} ms, p99 {done.latency_p99_s * 1e3:.1f} ms"
    )
    return "\n".join(lines)
