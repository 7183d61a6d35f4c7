"""`mesh optimize`: verified variants of a model, made and timed on this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.errors import MissingExtra, UsageError
from nodes.options import JsonOption, ModelArgument
from nodes.output import command, print_json, say

if TYPE_CHECKING:
    from mesh.optimize.energy import Energy, EnergyMeter, Power
    from mesh.optimize.report import Report


CalibrationOption = Annotated[
    Path,
    typer.Option(
        "--calibration", metavar="X.npz", help="Samples, named as the model's inputs: half calibrate, half judge."
    ),
]
LabelsOption = Annotated[
    Path | None,
    typer.Option("--labels", metavar="Y.npz", help="Class numbers of the samples; else float is the judge."),
]
MaxDropOption = Annotated[
    float, typer.Option("--max-drop", metavar="POINTS", help="Accuracy that a variant may lose, in points.")
]
DEFAULT_MAX_DROP = 1.0


@command
def optimize(
    model: ModelArgument,
    calibration: CalibrationOption,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where variants and report.json go.")],
    labels: LabelsOption = None,
    max_drop: MaxDropOption = DEFAULT_MAX_DROP,
    watts_busy: Annotated[
        float | None,
        typer.Option(
            "--watts-busy", metavar="W", help="Of this machine at full load: estimates energy without a meter."
        ),
    ] = None,
    watts_idle: Annotated[
        float | None, typer.Option("--watts-idle", metavar="W", help="Of this machine at rest; goes with --watts-busy.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make smaller and faster variants of MODEL, judge each against the float model, and time them here."""
    report = write_variants(model, calibration, labels, max_drop, out, (watts_busy, watts_idle))
    if as_json:
        print_json(report.document())
    else:
        print(format_report(report))
        print(f"{len(report.offered)} variants and report.json in {out}")


def write_variants(
    model: Path,
    calibration: Path,
    labels: Path | None,
    max_drop: float,
    out: Path,
    watts: tuple[float | None, float | None] = (None, None),
) -> Report:
    """Fill `out` with the variants of `model`, or raise and leave it as it was. `watts`: busy and idle."""
    try:
        from mesh.model.read import read_model
        from mesh.optimize.golden_set import GOLDEN_FILE, encode_golden_set
        from mesh.optimize.optimizer import optimize as run
        from mesh.optimize.output_folder import REPORT, check_place, translated, write_folder
        from mesh.optimize.plot import PLOT, draw_plot
    except ImportError as error:
        raise MissingExtra(
            f"optimising models needs the package {error.name!r}",
            hint="install the extra infermesh[coordinator]: pip install '.[coordinator]' in a clone",
        ) from None
    from nodes.sensor import read_arrays

    meter = find_meter(*watts)
    check_place(out)
    source = read_model(model)
    samples = read_arrays(calibration)
    answers = None if labels is None else read_arrays(labels)
    try:
        report = run(source, samples, answers, max_drop_points=max_drop, progress=say, meter=meter)
    except OSError as error:  # of the files that the quantiser needs on its way
        raise translated(error, error.filename or "the folder for temporary files") from None
    files = {offer.file: offer.data for offer in report.offered}
    if report.golden_set is not None:
        files[GOLDEN_FILE] = encode_golden_set(report.golden_set)
    try:
        files[PLOT] = draw_plot(report)
    except MissingExtra as error:
        say(f"no {PLOT}: {error.message}; {error.hint}")
    document = json.dumps(report.document(), indent=2, allow_nan=False) + "\n"
    write_folder(out, {**files, REPORT: document.encode()})
    return report


def find_meter(busy: float | None, idle: float | None) -> EnergyMeter | Power | None:
    """This machine's counters; where it has none, the power that was given; None without either."""
    from mesh.hardware.energy_meter import open_energy_meter
    from mesh.optimize.energy import Power

    if (busy is None) != (idle is None):
        raise UsageError("--watts-busy and --watts-idle go together")
    try:
        given = Power(busy, idle, os.cpu_count() or 1) if busy is not None and idle is not None else None
    except ValueError as error:
        raise UsageError(str(error), hint="busy is above idle, and idle is not negative") from None
    return open_energy_meter() or given


def format_report(report: Report) -> str:
    """The table that people read: one row per offered variant, then what was refused and what is chosen."""
    from nodes.render import format_table, human_bytes

    front = report.pareto()
    metric = report.metric.upper()
    header = ("VARIANT", "SIZE", "MEMORY", "LOAD", "P50", "P95", "SPEED", metric, "SQNR", "ENERGY", "PARETO")
    rows = []
    for offer in report.offered:
        timing, footprint, scores = offer.timing, offer.footprint, offer.scores
        rows.append(
            (
                offer.variant + (" *" if offer.variant == report.chosen else ""),
                human_bytes(len(offer.data)),
                human_bytes(footprint.peak_memory_bytes) if footprint else "-",
                f"{footprint.load_ms:.1f} ms" if footprint else "-",
                f"{timing.p50_ms:.3f} ms" if timing else "-",
                f"{timing.p95_ms:.3f} ms" if timing else "-",
                f"{timing.speed_up:.2f}x" if timing else "-",
                "-" if scores.accuracy is None else f"{scores.accuracy:.2%}",
                "-" if offer is report.reference else f"{scores.sqnr_db:.1f} dB",
                _energy_text(offer.energy),
                "yes" if offer.variant in front else "",
            )
        )
    lines = [format_table(header, rows)]
    sources = {offer.energy.source for offer in report.offered if offer.energy}
    lines += [f"energy: above idle, per inference, {source}" for source in sorted(sources)]
    lines += [f"refused {each.variant}: {each.reason}" for each in report.refused]
    lines.append(f"* chosen for this machine: {report.chosen} ({report.why_chosen})")
    lines += [f"note: {note}" for note in report.notes]
    calibrated, judged = report.samples
    lines.append(f"{calibrated} samples calibrated, {judged} others judged; {report.engine}, one thread")
    return "\n".join(lines)


def _energy_text(energy: Energy | None) -> str:
    if energy is None:
        return "-"
    return f"{'' if energy.is_measured else '~'}{energy.joules_per_inference * 1e3:.3g} mJ"
