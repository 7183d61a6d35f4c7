"""The program of `scripts/bench_dataplane`: chooses rows, prints every figure with its target, and a closing line.

A measurement, not a test: it exits 0 whatever the figures are. Figures are printed as they come on standard error,
and as a table of medians with their spread at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from bench_figures import DEFAULT_TARGETS, Figure, Figures, Target  # noqa: E402
from bench_lab_row import row_5  # noqa: E402
from bench_models import default_folder  # noqa: E402
from bench_rows import Bench, row_1, row_2, row_3, row_4  # noqa: E402

from nodes.render import format_table  # noqa: E402

ROWS: dict[int, Callable[[Bench], None]] = {1: row_1, 2: row_2, 3: row_3, 4: row_4, 5: row_5}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench_dataplane", description=__doc__)
    parser.add_argument("--rows", default="1,2,3,4,5", help="which, such as 1,2 (5 needs root)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds of each row")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement, warm-up not included")
    parser.add_argument("--only", action="append", default=[], metavar="MODEL", help="of rows 1, 2 and 5; repeat")
    parser.add_argument("--engine-mode", help="passed to every daemon: process or thread")
    parser.add_argument("--node-option", action="append", default=[], metavar="OPTION", help="passed to every daemon")
    parser.add_argument("--models", type=Path, default=default_folder(), help="where made models are kept")
    parser.add_argument("--target", action="append", default=[], type=Target.parse, metavar="NAME>=VALUE")
    parser.add_argument(
        "--json", nargs="?", const=Path("-"), type=Path, metavar="FILE", help="all figures; - or none: stdout"
    )
    return parser.parse_args()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    options = parse()
    rows = [int(word) for word in options.rows.split(",")]
    if unknown := [row for row in rows if row not in ROWS]:
        sys.exit(f"error: there is no row {unknown[0]}; there are {', '.join(map(str, ROWS))}")
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("error: two cores are needed")
    node_options = [*options.node_option]
    if options.engine_mode:
        node_options += ["--engine-mode", options.engine_mode]
    figures = Figures([*options.target, *map(Target.parse, DEFAULT_TARGETS)], say)
    skipped: dict[str, str] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="infermesh-bench-") as folder:
        for row in rows:
            if row == 5 and os.geteuid() != 0:
                skipped["5"] = "needs root"
                continue
            say(f"-- row {row}")
            bench = Bench(
                Path(folder),
                options.models,
                options.rounds,
                options.seconds,
                node_options,
                figures,
                tuple(options.only),
            )
            ROWS[row](bench)
    found = figures.all()
    report(found, skipped, time.monotonic() - began, options)
    return 0


def report(found: list[Figure], skipped: dict[str, str], took_s: float, options: argparse.Namespace) -> None:
    judged = [figure for figure in found if figure.holds is not None]
    summary = {
        "figures": len(found),
        "with_target": len(judged),
        "hold": sum(bool(figure.holds) for figure in judged),
        "missed": [figure.name for figure in judged if not figure.holds],
        "skipped_rows": skipped,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "took_s": round(took_s, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    document = {"summary": summary, "figures": [figure.document() for figure in found]}
    if options.json is None or str(options.json) != "-":
        print(
            format_table(("FIGURE", "MEDIAN", "SPREAD", "ROUNDS", "TARGET", ""), [figure.cells() for figure in found])
        )
        print(
            f"{summary['hold']} of {summary['with_target']} targets hold in {options.rounds} rounds of "
            f"{options.seconds:g} s" + "".join(f"; row {row} skipped: {why}" for row, why in skipped.items())
        )
    if options.json is not None:
        text = json.dumps(document, indent=2)
        print(text) if str(options.json) == "-" else options.json.write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
