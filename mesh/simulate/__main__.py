"""`python -m mesh.simulate`: run seeds of the simulator, or one of them with everything that happens in it."""

from __future__ import annotations

import argparse
import sys

from mesh.simulate.scenario import simulate
from mesh.simulate.world import Violation


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mesh.simulate", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, one after the other")
    parser.add_argument("--trace", action="store_true", help="tell what happens, with virtual times")
    arguments = parser.parse_args()
    failed = 0
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        try:
            outcome = simulate(seed, tell if arguments.trace else None)
        except Violation as violation:
            failed += 1
            tell(str(violation))
        else:
            if arguments.trace or arguments.seeds == 1:
                tell(f"seed {seed}: {outcome}")
    tell(f"{arguments.seeds - failed} of {arguments.seeds} seeds kept every promise")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
