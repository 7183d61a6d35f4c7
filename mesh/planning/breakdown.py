"""What each stage and link of a plan takes per frame, and which of them sets the pace.

The same prices as in `mesh.planning.predict`, not summed up: the largest of these periods is the predicted one.
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh.core.costs import Costs
from mesh.core.graph import Graph
from mesh.core.plan import RAW, Bottleneck, LinkBreakdown, Stage, StageBreakdown
from mesh.planning.memory import of_variant, stage_memory_bytes
from mesh.planning.predict import busy_seconds, link_seconds
from mesh.planning.space import PLAIN, Space


def break_down(graph: Graph, stages: Sequence[Stage], costs: Costs, space: Space = PLAIN) -> tuple[StageBreakdown, ...]:
    """One entry per stage, in running order."""
    return tuple(_stage(graph, stages, index, costs, space) for index in range(len(stages)))


def find_bottleneck(stages: Sequence[StageBreakdown]) -> Bottleneck:
    """The largest period; of equal ones the first, and a stage before its link."""
    periods = [(stage.period_seconds, index, False) for index, stage in enumerate(stages)]
    periods += [(stage.link.period_seconds, index, True) for index, stage in enumerate(stages) if stage.link]
    seconds, index, is_link = max(periods, key=lambda found: (found[0], not found[2], -found[1]))
    return Bottleneck(index, is_link, seconds)


def _stage(graph: Graph, stages: Sequence[Stage], index: int, costs: Costs, space: Space) -> StageBreakdown:
    stage = stages[index]
    start, end = stage.segment.start, stage.segment.end
    entry, leave = graph.cut_at[start], graph.cut_at[end]
    received = stages[index - 1].codec if index else RAW
    is_last = index + 1 == len(stages)
    sent = RAW if is_last else stage.codec
    needs = {
        device: stage_memory_bytes(graph, start, end, device, costs, space, stage.variant) for device in stage.devices
    }
    tightest = min(needs, key=lambda device: costs.device(device).memory_bytes - needs[device])
    return StageBreakdown(
        handling_seconds=max(
            space.handling_seconds(costs, device, received, entry, sent=False)
            + space.handling_seconds(costs, device, sent, leave, sent=True)
            for device in stage.devices
        ),
        period_seconds=busy_seconds(graph, stages, index, costs, space),
        bytes_in=space.wire_bytes(received, entry),
        bytes_out=space.wire_bytes(sent, leave),
        memory_bytes=needs[tightest],
        memory_available_bytes=costs.device(tightest).memory_bytes,
        link=None if is_last else _link(stage, stages[index + 1], space.wire_bytes(sent, leave), costs, space),
        memory_measured=all(
            of_variant(costs.device(device).memory, stage.variant).knows(start, end) for device in stage.devices
        ),
    )


def _link(before: Stage, after: Stage, nbytes: int, costs: Costs, space: Space) -> LinkBreakdown | None:
    """Of all pairs the slowest; None where both stages are on one device only."""
    pairs = [(source, target) for source in before.devices for target in after.devices if source != target]
    if not pairs:
        return None
    rates = {pair: space.link_bytes_per_second(costs, *pair) for pair in pairs}
    latencies = {pair: costs.link(*pair).latency_seconds for pair in pairs}
    periods = {pair: link_seconds(latencies[pair], latencies[pair] + nbytes / rates[pair]) for pair in pairs}
    slowest = max(pairs, key=lambda pair: (periods[pair], latencies[pair] + nbytes / rates[pair]))
    shared = max(
        periods[slowest] / (len(before.devices) * len(after.devices)),
        *(nbytes / space.nic(source).up / len(before.devices) for source in before.devices),
        *(nbytes / space.nic(target).down / len(after.devices) for target in after.devices),
    )
    return LinkBreakdown(
        bytes_per_second=rates[slowest],
        latency_seconds=latencies[slowest],
        transfer_seconds=latencies[slowest] + nbytes / rates[slowest],
        period_seconds=shared,
        measured=costs.link(*slowest).measured,
    )
