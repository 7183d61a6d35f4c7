"""The port of all planners: a problem in, a plan or the reasons why there is none out; and their names.

`exact` is what the system uses: proven where the size allows, else the beam's answer with its bound. The
others are there to be compared with (`scripts/bench_planner`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mesh.core.plan import Plan
from mesh.errors import UsageError
from mesh.planning import comparators
from mesh.planning.exact import plan as plan_best
from mesh.planning.exact import plan_by_beam
from mesh.planning.problem import Infeasible, Problem

Strategy = Callable[[Problem], Plan | Infeasible]
"""Pure: the same problem always gets the same answer. A plan obeys every limit that the strategy knows of."""

STRATEGIES: Mapping[str, Callable[[], Strategy]] = {
    "exact": lambda: plan_best,
    "beam": lambda: plan_by_beam,
    "single": lambda: comparators.plan_single,
    "copies": lambda: comparators.plan_copies,
    "uniform": lambda: comparators.plan_uniform,
    "memory": lambda: comparators.plan_by_memory,
    "speed": lambda: comparators.plan_by_speed,
    "homogeneous": lambda: comparators.plan_homogeneous,
}


def make_strategy(name: str) -> Strategy:
    """The strategy of that name. Raises `UsageError` for an unknown one."""
    try:
        return STRATEGIES[name]()
    except KeyError:
        raise UsageError(f"strategy {name[:40]!r} is not known", hint=f"known: {', '.join(STRATEGIES)}") from None
