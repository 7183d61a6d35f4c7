"""What goes wrong in a scenario, and when: drawn from the scenario's seed, and mended before it ends.

One node at most stays away for good, because somebody must be left to take over.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from mesh.errors import NodeLost
from mesh.simulate.network import End
from mesh.simulate.node import Node
from mesh.simulate.world import Host

if TYPE_CHECKING:
    from mesh.simulate.scenario import Scenario

FIRST_FAULT_S = 0.2
FAULT_SPAN_S = 2.0
"""Faults begin within so long; streams are busy then, and detection of one falls among the others."""

MAX_FAULT_S = 6.0
"""Two and a half times what it takes to notice."""


def arrange_faults(scenario: Scenario) -> float:
    """Put the seed's faults into the scenario's future; returns when the last of them is mended."""
    world = scenario.world
    random = world.random
    nodes = list(scenario.nodes.values())
    hosts = [*(node.host for node in nodes), *(client.host for client in scenario.clients)]
    mended_at = 0.0
    has_left = False
    for _ in range(random.randint(0, 4)):
        at = FIRST_FAULT_S + random.random() * FAULT_SPAN_S
        until = at + random.random() * MAX_FAULT_S
        kind = random.choice(
            ("crash", "crash", "leave", "freeze", "cut", "hole", "reset", "doubt", "slow", "replan", "stale")
        )
        node = random.choice(nodes)
        begin: Callable[[], object]
        end: Callable[[], object] = _nothing
        match kind:
            case "crash" | "leave":
                is_dark = random.random() < 0.5
                begin = _crash(node, is_dark)
                if kind == "leave" and not has_left and len(nodes) > len(scenario.first.plan.stages) + 1:
                    has_left = True
                else:
                    end = _start_again(node)
            case "freeze":
                begin, end = _freeze(node), _thaw(node)
            case "cut" | "hole":
                others = hosts if kind == "hole" else [random.choice(hosts)]
                pairs = [(node.host, other) for other in others if other is not node.host]
                if random.random() < 0.5:
                    pairs += [(other, own) for own, other in pairs]
                elif random.random() < 0.5:
                    pairs = [(other, own) for own, other in pairs]
                begin, end = _cut(scenario, pairs), _heal(scenario, pairs)
            case "reset":
                begin = _reset(scenario, random.choice((node.host, scenario.clients[0].host)))
            case "doubt":
                begin = random.choice(scenario.clients).doubt
            case "slow":
                begin, end = _slow(scenario, random.random() * 0.3), _quicken(scenario)
            case "replan":
                begin = _start(scenario, "replan")
            case _:
                begin = _start(scenario, "stale")
        text = f"{kind} {node.host.name}"
        world.after(at, _told(scenario, f"{text} begins", begin))
        world.after(until, _told(scenario, f"{text} ends", end))
        mended_at = max(mended_at, until)
    return mended_at


def _nothing() -> None:
    """Some things cannot be undone, and need not be."""


def _told(scenario: Scenario, text: str, act: Callable[[], object]) -> Callable[[], None]:
    def tell_and_act() -> None:
        scenario.world.note(text)
        act()

    return tell_and_act


def _crash(node: Node, is_dark: bool) -> Callable[[], object]:
    def crash() -> None:
        if node.host.is_up:
            node.crash(is_dark)

    return crash


def _start_again(node: Node) -> Callable[[], object]:
    def start_again() -> None:
        if not node.host.is_up:
            node.start_again()

    return start_again


def _freeze(node: Node) -> Callable[[], object]:
    def freeze() -> None:
        node.host.is_frozen = node.host.is_up

    return freeze


def _thaw(node: Node) -> Callable[[], object]:
    return node.host.thaw


Pairs = list[tuple[Host, Host]]


def _cut(scenario: Scenario, pairs: Pairs) -> Callable[[], object]:
    def cut() -> None:
        for source, target in pairs:
            scenario.network.cut(source, target)

    return cut


def _heal(scenario: Scenario, pairs: Pairs) -> Callable[[], object]:
    def heal() -> None:
        for source, target in pairs:
            scenario.network.heal(source, target)

    return heal


def _reset(scenario: Scenario, host: Host) -> Callable[[], object]:
    def reset() -> None:
        ends: list[End] = scenario.network.ends_of(host)
        if not ends:
            return
        end = scenario.world.random.choice(ends)
        for side in (end, end.peer):  # somebody in between does it: both are told
            side.host.run(side.host.incarnation, partial(side.lose, NodeLost("the connection was reset")))

    return reset


def _slow(scenario: Scenario, loss: float) -> Callable[[], object]:
    def slow() -> None:
        scenario.network.loss, scenario.network.delay_s = loss, 0.05

    return slow


def _quicken(scenario: Scenario) -> Callable[[], object]:
    def quicken() -> None:
        scenario.network.loss, scenario.network.delay_s = 0.0, 0.001

    return quicken


def _start(scenario: Scenario, what: str) -> Callable[[], object]:
    course = scenario.replan if what == "replan" else scenario.offer_stale
    return lambda: scenario.clients[0].host.start(course())
