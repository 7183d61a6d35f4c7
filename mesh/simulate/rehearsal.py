"""A deployment rehearsed in virtual time: the plan's costs, the shipped repair, watch and replanning, and incidents.

    source ─► window ─► Pipeline (a generation) ─► answers in order
                 incidents ─► repair ─► improve ─► the next generation;   watch ─► verify ─► the next generation

The decisions are those of the product: `control.repair` says who takes over, `planning.replanning` what is better now,
`planning.verifying` whether a device is as fast as its costs. The clock, the chance and what things take are simulated;
one seed is one history. `rehearse` is called by the `mesh simulate` command and by tests.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from mesh.control.measuring import percentile
from mesh.control.repair import choose_standbys, repair
from mesh.control.timing import HEARTBEAT_INTERVAL_S, SILENCE_LIMIT_S
from mesh.core.ids import DeploymentName, NodeId
from mesh.core.plan import Deployment, Fence, Plan, Segment
from mesh.errors import UsageError
from mesh.planning.memory import stage_memory_bytes
from mesh.planning.predict import window_for
from mesh.planning.problem import Problem
from mesh.planning.replanning import improve, moved_bytes, period_in_force, price
from mesh.planning.verifying import MARGIN, Keep, Replan, RollBack, Watched, verify, watch
from mesh.simulate.node import LOAD_SECONDS
from mesh.simulate.pipeline import Machine, Noise, Pipeline
from mesh.simulate.rehearsal_file import Incident, Kind, RehearsalPlan
from mesh.simulate.world import World

LOOK_INTERVAL_S = 2.0
"""Between two looks at a running plan."""

IMPROVE_AFTER_S = 1.0
"""After a repair or a return: what comes back at once, or breaks with it, should be known by then."""

CRASH_NOTICED_S = 0.01
"""The kernel of a machine that still runs resets the connections of a process that died."""

MAX_FRAMES = 2_000_000
"""Of one run: about a minute of computing, and 16 MB of latencies."""


@dataclass(frozen=True, slots=True)
class Event:
    at: float
    text: str


@dataclass(frozen=True, slots=True)
class GenerationReport:
    number: int
    begins_at: float
    ends_at: float
    devices: tuple[NodeId, ...]
    predicted_per_s: float
    """By the costs that were believed when it began, and no more than the source offers."""
    throughput_per_s: float
    """Of answers over its second half: the rest of the generation before it and its filling are over then."""


@dataclass(frozen=True, slots=True)
class Rehearsed:
    seconds: float
    offered: int
    answered: int
    dropped: int
    """Of a live stream: superseded by newer frames, or lost with a device."""
    replayed: int
    """Sent again after a loss."""
    throughput_per_s: float
    latency_p50_s: float
    latency_p99_s: float
    generations: tuple[GenerationReport, ...]
    events: tuple[Event, ...]


def rehearse(problem: Problem, plan: Plan, scenario: RehearsalPlan) -> Rehearsed:
    """Run `plan`, an answer to `problem`, through `scenario`. Raises `UsageError` for a run that would be too long."""
    frames = min(scenario.rate or plan.bound_throughput_per_s, plan.bound_throughput_per_s) * scenario.seconds
    if frames > MAX_FRAMES:
        raise UsageError(
            f"seconds = {scenario.seconds:g} are about {frames:.0f} frames, the limit is {MAX_FRAMES}",
            hint="simulate fewer seconds, or give a rate",
        )
    return _Run(problem, plan, scenario).run()


class _Run:
    def __init__(self, problem: Problem, plan: Plan, scenario: RehearsalPlan) -> None:
        self.world = World(scenario.seed)
        self.problem, self.scenario = problem, scenario
        """`problem` holds what is believed of devices; the truth is `self.costs`."""
        self.costs = problem.costs
        self.noise = Noise(scenario.compute_noise, scenario.link_noise_seconds, scenario.loss)
        self.machines = {device: Machine(self.world) for device in problem.devices}
        self.gone: set[NodeId] = set()
        """Of which it has been noticed."""
        self.holdings: dict[NodeId, set[str]] = {device: set() for device in problem.devices}
        self.events: list[Event] = []
        self.answers_at: list[float] = []
        self.latencies: list[float] = []
        self.offered = self.dropped = self.replayed = 0
        self.unanswered: dict[int, float] = {}
        """Frame to when it was sent first, in order."""
        self.done: set[int] = set()
        """Answered ahead of an older frame."""
        self.waiting: deque[tuple[int, float]] = deque()
        self.generations: list[tuple[Deployment, float, float]] = []
        """Each with when it began and the throughput that was predicted."""
        self.watched = Watched()
        self.changed_at = -float("inf")
        self.changing = 0
        """Generations that are being loaded."""
        self.last_fence = Fence(1, 0)
        self._put_in_force(self._deployment(plan))

    def run(self) -> Rehearsed:
        scenario = self.scenario
        for incident in scenario.incidents:
            self.world.after(incident.at, lambda incident=incident: self._befall(incident))  # type: ignore[misc]
        if scenario.rate is not None:
            self._tick(1 / scenario.rate)
        self.world.after(LOOK_INTERVAL_S, self._look)
        self._fill()
        self.world.run(scenario.seconds, lambda: False)
        latencies = sorted(self.latencies)
        return Rehearsed(
            scenario.seconds,
            self.offered,
            len(self.answers_at),
            self.dropped,
            self.replayed,
            len(self.answers_at) / scenario.seconds,
            percentile(latencies, 0.5) if latencies else 0.0,
            percentile(latencies, 0.99) if latencies else 0.0,
            tuple(self._report(index) for index in range(len(self.generations))),
            tuple(self.events),
        )

    # The stream -----------------------------------------------------------------------------------

    def _tick(self, interval: float) -> None:
        self._offer()
        self._fill()
        self.world.after(interval, lambda: self._tick(interval))

    def _offer(self) -> None:
        if self.scenario.is_live:
            self.dropped += len(self.waiting)
            self.waiting.clear()
        self.waiting.append((self.offered, self.world.now))
        self.offered += 1

    def _fill(self) -> None:
        """Send what the window has room for."""
        while len(self.unanswered) < self.window:
            if not self.waiting:
                if self.scenario.rate is not None:
                    return
                self._offer()
            frame, offered_at = self.waiting.popleft()
            self.unanswered[frame] = offered_at
            self.pipeline.enter(frame)

    def _answered(self, frame: int) -> None:
        """The oldest frame first: an answer ahead of it waits, as in an ordered stream."""
        if frame not in self.unanswered or frame in self.done:
            return  # sent again after a loss, and answered by both ways
        self.done.add(frame)
        while self.unanswered and (oldest := next(iter(self.unanswered))) in self.done:
            self.done.remove(oldest)
            self.latencies.append(self.world.now - self.unanswered.pop(oldest))
            self.answers_at.append(self.world.now)
        self._fill()

    # What befalls it ------------------------------------------------------------------------------

    def _befall(self, incident: Incident) -> None:
        device = next(node for node in self.problem.devices if self.problem.name_of(node) == incident.device)
        machine = self.machines[device]
        match incident.kind:
            case Kind.LEAVE | Kind.CRASH if machine.is_up:
                self._tell(f"{incident.device} {'leaves' if incident.kind is Kind.LEAVE else 'crashes'}")
                machine.go_down()
                late = SILENCE_LIMIT_S + HEARTBEAT_INTERVAL_S * self.world.random.random()
                noticed = late if incident.kind is Kind.LEAVE else CRASH_NOTICED_S
                self.world.after(noticed, lambda: self._notice_loss(device))
            case Kind.RETURN if not machine.is_up:
                self._tell(f"{incident.device} is back")
                machine.come_back()
                self.world.after(IMPROVE_AFTER_S, lambda: self._welcome(device))
            case Kind.SLOW:
                machine.slowness = incident.factor
                self._tell(f"{incident.device} computes {incident.factor:g} times as long as its costs say")
            case _:
                self._tell(
                    f"{incident.device} cannot {incident.kind.value}: it is {'up' if machine.is_up else 'down'} already"
                )

    def _notice_loss(self, device: NodeId) -> None:
        name = self.problem.name_of(device)
        if self.machines[device].is_up:  # it came back before anybody noticed
            if device in self.deployment.plan.devices:
                self._tell(f"{name} was away, streams are opened again")
                self._send_again()
            return
        self.gone.add(device)
        if device not in self.deployment.plan.devices:
            return
        repaired = repair(self.deployment, self.gone, self.problem.names)
        if repaired is None:
            self._tell(f"{name} is lost and nobody has its part")
            self._improve("planned again")
            return
        seconds = self._load_seconds(repaired.plan)
        self._tell(f"{name} is lost: {repaired.cause}")
        self._change(replace(repaired, fence=self._next_fence()), seconds, is_lost=True)
        self.world.after(seconds + IMPROVE_AFTER_S, lambda: self._improve("after the loss"))

    def _welcome(self, device: NodeId) -> None:
        if self.machines[device].is_up:
            self.gone.discard(device)
            if device in self.deployment.plan.devices:  # nobody could take over
                self._send_again()
            self._improve(f"with {self.problem.name_of(device)}")

    def _improve(self, occasion: str) -> None:
        """A better plan for what is there now, if it wins enough; any plan at all where the old one cannot run."""
        if self.changing:
            return
        if self.deployment.plan.forced:
            self._tell("the plan is forced, it is not planned again")
            return
        there = self._there()
        found = improve(there, self.deployment.plan.stages, self._held()) if there.usable_devices else None
        if found is None:
            self._tell("no plan is possible with the devices that are there")
            return
        now = price(there, self.deployment.plan.stages)
        if price(there, found.plan.stages) > now * (1 - MARGIN):
            self._tell(f"{occasion}: no plan is {MARGIN:.0%} better, the plan stays")
            return
        self._replace(found.plan, occasion, is_lost=now == float("inf"))

    def _replace(self, plan: Plan, why: str, is_lost: bool) -> None:
        moved = moved_bytes(self.problem.graph, plan.stages, self._held())
        where = ", ".join(map(self.problem.name_of, plan.devices))
        self._tell(f"{why}: {plan.predicted.throughput_per_s:.4g}/s on {where}, {moved / 1e6:.3g} MB move")
        self._change(self._deployment(plan), self._load_seconds(plan), is_lost)

    # Watching -------------------------------------------------------------------------------------

    def _look(self) -> None:
        self.world.after(LOOK_INTERVAL_S, self._look)
        if self.changing:
            return
        plan = self.deployment.plan
        if len(plan.devices) < sum(len(stage.devices) for stage in plan.stages):
            return  # a device with two stages is busy with both: nothing to hold its costs against
        there = self._there()
        self.watched = watch(self.watched, there, plan, self.pipeline.report(LOOK_INTERVAL_S))
        verdict = verify(self.watched, there, plan, self._held(), self.world.now - self.changed_at)
        if isinstance(verdict, Keep):
            return
        self.problem = replace(self.problem, costs=verdict.costs)
        self.watched = Watched()
        if isinstance(verdict, Replan | RollBack):
            self._replace(verdict.improved.plan, verdict.reason, is_lost=False)
        else:
            self._tell(verdict.reason)

    def _there(self) -> Problem:
        return replace(self.problem, excluded=self.problem.excluded | self.gone)

    def _held(self) -> dict[NodeId, frozenset[str]]:
        return {device: frozenset(names) for device, names in self.holdings.items()}

    # Generations ----------------------------------------------------------------------------------

    def _next_fence(self) -> Fence:
        self.last_fence = Fence(1, self.last_fence.generation + 1)
        return self.last_fence

    def _deployment(self, plan: Plan) -> Deployment:
        graph, known = self.problem.graph, self.problem.costs
        usable = [device for device in self.problem.usable_devices if device not in self.gone]

        def need(segment: Segment, device: NodeId) -> int:
            return stage_memory_bytes(graph, segment.start, segment.end, device, known)

        able = [
            [device for device in usable if known.device(device).memory_bytes >= need(stage.segment, device)]
            for stage in plan.stages
        ]
        standbys = choose_standbys(plan, able)
        addresses = {device: self.problem.name_of(device) for device in self.problem.devices}
        boundaries = ((),) * (len(plan.stages) + 1)
        return Deployment(DeploymentName("model"), self._next_fence(), plan, (), (), boundaries, addresses, standbys)

    def _change(self, deployment: Deployment, seconds: float, is_lost: bool) -> None:
        """Load, then go on with `deployment`; with a loss what is under way is sent again, else it drains."""
        self.changing += 1

        def in_force() -> None:
            self.changing -= 1
            if deployment.fence < self.deployment.fence:
                return  # what broke meanwhile was more urgent
            self._put_in_force(deployment)
            if is_lost:
                self._send_again()
            for device in deployment.plan.devices:
                if not self.machines[device].is_up and device in self.gone:  # it broke while it was loading
                    self._notice_loss(device)

        self.world.after(seconds, in_force)

    def _put_in_force(self, deployment: Deployment) -> None:
        self.deployment = deployment
        plan, problem = deployment.plan, self.problem
        self.pipeline = Pipeline(
            self.world,
            self.machines,
            problem.graph,
            plan.stages,
            self.costs,
            problem.space,
            self.noise,
            self._answered,
        )
        self.window = max(plan.window, window_for(problem.graph, plan.stages, problem.costs, problem.space))
        self.watched = Watched()
        if self.generations:
            self.changed_at = self.world.now
            self._tell(f"generation {deployment.fence.generation} is in force")
        predicted = 1 / period_in_force(problem, plan.stages)
        self.generations.append((deployment, self.world.now, min(predicted, self.scenario.rate or predicted)))
        spares = [(stage, spare[:1]) for stage, spare in zip(plan.stages, deployment.standbys, strict=True)]
        for stage, cached in [*((stage, stage.devices) for stage in plan.stages), *spares]:
            for group in problem.graph.groups[stage.segment.start : stage.segment.end]:
                for device in cached:
                    self.holdings[device].update(group.weights)

    def _send_again(self) -> None:
        """A lossless stream replays what was not answered; a live one lets go of it."""
        due = [frame for frame in self.unanswered if frame not in self.done]
        if self.scenario.is_live:
            self.dropped += len(due)
            for frame in due:
                del self.unanswered[frame]
            while self.unanswered and (oldest := next(iter(self.unanswered))) in self.done:
                self.done.remove(oldest)
                self.latencies.append(self.world.now - self.unanswered.pop(oldest))
                self.answers_at.append(self.world.now)
            self._fill()
            return
        self.replayed += len(due)
        for frame in due:
            self.pipeline.enter(frame)

    def _load_seconds(self, plan: Plan) -> float:
        """Until all devices have what they lack, each from one that has it, and have loaded."""
        graph = self.problem.graph
        longest = 0.0
        for stage in plan.stages:
            for device in stage.devices:
                lacking = moved_bytes(graph, [replace(stage, devices=(device,))], self._held())
                others = [other for other in self.problem.devices if other != device and other not in self.gone]
                rates = [self.costs.link(other, device).bytes_per_second for other in others]
                longest = max(longest, lacking / max(rates) if rates and lacking else 0.0)
        return longest + LOAD_SECONDS

    # Telling --------------------------------------------------------------------------------------

    def _tell(self, text: str) -> None:
        self.events.append(Event(self.world.now, text))

    def _report(self, index: int) -> GenerationReport:
        deployment, begins_at, predicted = self.generations[index]
        is_last = index + 1 == len(self.generations)
        ends_at = self.scenario.seconds if is_last else self.generations[index + 1][1]
        middle = (begins_at + ends_at) / 2
        late = [at for at in self.answers_at if middle <= at < ends_at]
        rate = (len(late) - 1) / (late[-1] - late[0]) if len(late) > 1 and late[-1] > late[0] else 0.0
        number, devices = deployment.fence.generation, deployment.plan.devices
        return GenerationReport(number, begins_at, ends_at, devices, predicted, rate)
