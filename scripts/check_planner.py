"""Holds the planner against an independent oracle on thousands of random small problems, for every objective.

usage: scripts/check_planner [INSTANCES [FIRST_SEED]]    default: 5000 0

Up to 9 cuts and 6 devices; replicas, CPU per byte, memory limits, interface rates, variants and codecs are each on in
half of the problems. The planner must find the same optimum and the same verdict where there is no plan, every plan
must pass the validator, and no bound may exclude the best. Prints complaints and a summary.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.planning.planner_checks import Tally, check_seed  # noqa: E402 - after the path to this clone

REPORT_EVERY = 500
MOST_COMPLAINTS = 20


def main() -> int:
    instances, first = ([int(word) for word in sys.argv[1:]] + [5000, 0][len(sys.argv) - 1 :])[:2]
    started = time.monotonic()
    tally = Tally()
    complaints = 0
    for done, seed in enumerate(range(first, first + instances), start=1):
        for complaint in check_seed(seed, tally):
            complaints += 1
            print(complaint, flush=True)
        if complaints >= MOST_COMPLAINTS:
            break
        if done % REPORT_EVERY == 0:
            print(f"{done} problems, {complaints} complaints, {time.monotonic() - started:.0f} s", flush=True)
    share = tally.beam_best / max(1, tally.beam_plans)
    print(f"{instances} problems, {tally.verdicts} verdicts of which {tally.infeasible} infeasible; ", end="")
    print(f"beam: {share:.2%} of {tally.beam_plans} plans are best, {tally.beam_missed} not found; ", end="")
    print(f"{complaints} complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
