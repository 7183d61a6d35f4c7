"""What a person says about a plan on the command line, and the `PlanOptions` that it means for given devices."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh.core.coding import CODECS, FLOAT16, INT8, LOSSLESS, loss_of
from mesh.core.ids import NodeId
from mesh.core.plan import DEFAULT_ANSWER_CHANGE, Limits, Objective, Plan, PlanOptions
from mesh.errors import MissingExtra, NotFound, UsageError

MIN_ID_PREFIX = 6
"""Characters of a node's id that may stand for it; `mesh nodes` shows eight."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """As they were typed: nodes by name or by the beginning of their id."""

    objective: str = "throughput"
    stages: int | None = None
    plan: Path | None = None
    first_on: str | None = None
    exclude: tuple[str, ...] = ()
    trusted_only: bool = False
    replicas: int = 1
    explain: bool = False
    measure: bool = False
    codec: str = "none"
    max_change: float | None = None
    """In per cent."""

    @property
    def names_nodes(self) -> bool:
        return self.first_on is not None or bool(self.exclude)


def make_options(
    wishes: Wishes, model: bytes, names: Mapping[NodeId, str], trusted: Collection[NodeId] | None = None
) -> PlanOptions:
    """`names` are the devices that there are, `trusted` those of them that may see private streams.

    Raises `UsageError` for contradictions and where nobody knows whom to trust, `NotFound` for unknown nodes.
    """
    if wishes.plan is not None and wishes.stages is not None:
        raise UsageError("--plan and --stages both force a plan; give one")
    if wishes.trusted_only and trusted is None:
        raise UsageError(
            "--trusted-only: which devices are trusted is written in a fleet file, nodes do not say it of themselves",
            hint="plan with --fleet FILE, or leave nodes out with --exclude NODE",
        )
    forced = read_plan(wishes.plan, model) if wishes.plan is not None else None
    limits = Limits(
        only=tuple(trusted or ()) if wishes.trusted_only else (),
        excluded=tuple(dict.fromkeys(find_node(text, names) for text in wishes.exclude)),
        head=None if wishes.first_on is None else find_node(wishes.first_on, names),
        replicas=wishes.replicas,
        codecs=parse_codec(wishes.codec),
        answer_change=DEFAULT_ANSWER_CHANGE if wishes.max_change is None else wishes.max_change / 100,
    )
    if wishes.trusted_only and not limits.only:
        raise UsageError("--trusted-only: no device of the fleet file is trusted", hint="write trusted = true for some")
    options = PlanOptions(
        parse_objective(wishes.objective), wishes.stages, forced, limits, wishes.explain, wishes.measure
    )
    from mesh.planning.problem import check_options

    check_options(options, names)
    return options


def find_node(text: str, names: Mapping[NodeId, str]) -> NodeId:
    """The one device of that name, or whose id begins so."""
    found = [node for node, name in names.items() if name == text]
    if not found and len(text) >= MIN_ID_PREFIX:
        found = [node for node in names if node.startswith(text)]
    if not found:
        known = ", ".join(sorted(names.values())) or "none"
        raise NotFound(f"there is no node {text[:80]!r}", hint=f"there are: {known}")
    if len(found) > 1:
        ids = ", ".join(node[:8] for node in found)
        raise UsageError(f"{len(found)} nodes are called {text[:80]!r}", hint=f"give the id of one of them: {ids}")
    return found[0]


def parse_codec(text: str) -> tuple[str, ...]:
    """The codecs that a plan may then use: of a rounding one also what comes before it without loss."""
    if text == "none":
        return ()
    if text == "auto":
        return CODECS[1:]
    if text not in (LOSSLESS, FLOAT16, INT8):
        raise UsageError(f"unknown codec {text[:40]!r}", hint=f"one of none, {LOSSLESS}, {FLOAT16}, {INT8}, auto")
    return tuple(codec for codec in CODECS[1:] if loss_of(codec) in ("", loss_of(text)))


def parse_objective(text: str) -> Objective:
    try:
        return Objective(text)
    except ValueError:
        known = ", ".join(objective.value for objective in Objective)
        raise UsageError(f"unknown objective {text[:40]!r}", hint=f"one of {known}") from None


def read_plan(path: Path, model: bytes) -> Plan:
    """A plan file for this model; raises `UsageError` naming what is wrong in it."""
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise NotFound(f"there is no plan file {path}") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"the plan file {path} cannot be read: {error}") from None
    try:
        from mesh.model.read import read_model_bytes
        from mesh.model.summarise import summarise
        from mesh.planning.document import plan_from_json
    except ImportError as error:
        raise MissingExtra(
            f"a plan file needs the package {error.name!r}",
            hint="install the extra infermesh[coordinator]: pip install '.[coordinator]' in a clone",
        ) from None
    return plan_from_json(document, summarise(read_model_bytes(model)))
