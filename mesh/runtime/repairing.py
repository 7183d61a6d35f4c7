"""Finding, or making, the generation that goes on when a node is lost or a plan is replaced.

A client whose stream broke, or is to move, calls `Repairer.recover`. It asks the nodes of the deployment, because they
are the truth. A newer generation that is in force on all of its devices is taken; where
there is none, `mesh.control.repair` computes it from who answers, and it is prepared beside the old one, activated from
tail to head, and the old one drained. Nobody needs to agree first: nodes take equal repairs as one, and of different
ones the first, and whoever is refused looks again.

Light enough for a sensor client; owned by whoever made it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mesh.control.deployments import DeploymentState, Key, key_of
from mesh.control.repair import repair
from mesh.core.ids import NodeId
from mesh.core.plan import Deployment, Fence
from mesh.core.report import DeploymentReport
from mesh.errors import DeploymentNotFound, MeshError, NodeLost, NotFound, Refused, Timeout
from mesh.runtime.supervise import together
from mesh.wire.channel import NodeClient

ASK_TIMEOUT_S = 0.7
"""For a node to say what it holds. The lost one never does, and the stream stands still meanwhile."""

SUSPECT_ASK_TIMEOUT_S = 0.3
"""For the node that broke the path: it was given its time to speak already, and everybody waits for this answer. One
that answers later after all is asked again where nobody can take its place."""

PATIENT_ASK_TIMEOUT_S = 2.0
"""For a node other than the suspect where nobody can take over without it: a saturated board answers late."""

PATIENCE_S = 6.0
"""Silent nodes other than the suspect are asked again for so long where nobody can take over without them: to give up
ends the stream, which is worse than any wait."""

POLL_S = 0.1
"""Between two looks at a generation that somebody else is putting in force, or a node that is starting again."""

RESTORE_WAIT_S = 10.0
"""A node that answers and has not loaded its stage yet is waited for so long where nobody can take its place."""

SETTLE_WAIT_S = 3.0
"""Somebody else's newer generation has so long to be in force everywhere before it is repaired in turn."""

MAX_ATTEMPTS = 8
"""Repairs that are tried before giving up: each failed one excludes a node, or follows somebody who was faster."""

Resolve = Callable[[str], Awaitable[Deployment]]
"""Finds the newest generation of a name among all nodes; raises `DeploymentNotFound`."""

Spawn = Callable[[Coroutine[Any, Any, None], str], object]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the nodes of a deployment say of it."""

    answers: Mapping[NodeId, tuple[DeploymentReport, ...]]
    """Of those that answered."""
    gone: Collection[NodeId]
    """Those that cannot be reached or do not want to answer. Others that are silent may only be busy."""
    newest: Deployment

    def state(self, node: NodeId, key: Key) -> str | None:
        return next((r.state for r in self.answers.get(node, ()) if key_of(r.deployment) == key), None)

    def is_removed(self, deployment: Deployment) -> bool:
        """Whether a node is giving it up that is not itself going down."""
        key, draining = key_of(deployment), DeploymentState.DRAINING.value
        reports = [r for told in self.answers.values() for r in told if key_of(r.deployment) == key]
        return any(report.state == draining and not report.is_leaving for report in reports)

    def is_active(self, node: NodeId, key: Key) -> bool:
        return self.state(node, key) == DeploymentState.ACTIVE.value

    def missing(self, deployment: Deployment) -> list[NodeId]:
        """Devices of `deployment` on which it is not active."""
        key = key_of(deployment)
        return [node for node in deployment.plan.devices if not self.is_active(node, key)]


@dataclass(slots=True)
class _Search:
    """One search for a generation that goes on. Mutable; owned by `Repairer.recover`."""

    told: str
    """The address of the node that broke the path; empty where none is named."""
    blamed: Collection[NodeId]
    """Left out however they answer."""
    excluded: set[NodeId]
    """Those, and who could not take a part."""
    suspect: str
    """As `told` while it gets less time than others to answer."""
    is_patient: bool = False
    is_forgiven: bool = False

    def ask_timeout_s(self, address: str) -> float:
        if address == self.suspect:
            return SUSPECT_ASK_TIMEOUT_S
        return PATIENT_ASK_TIMEOUT_S if self.is_patient and address != self.told else ASK_TIMEOUT_S

    def may_look_again(self, seen: _Seen, waited_s: float) -> bool:
        """Whether another look may show somebody who can take over, now that this one does not."""
        if self.suspect:
            self.suspect = ""  # it may only have been slow to answer
            return True
        addresses = seen.newest.addresses
        silent = [node for node in addresses if node not in seen.answers and node not in seen.gone]
        if any(addresses[node] != self.told for node in silent) and waited_s < PATIENCE_S:
            self.is_patient = True
            return True
        if self.excluded != self.blamed and not self.is_forgiven:  # who failed to take a part may only have been busy
            self.excluded, self.is_forgiven = set(self.blamed), True
            return True
        return False


class Repairer:
    """`client` gives the connection to an address; `resolve` looks beyond the nodes that a deployment names."""

    def __init__(self, client: Callable[[str], NodeClient], resolve: Resolve | None, spawn: Spawn) -> None:
        self._client = client
        self._resolve = resolve
        self._spawn = spawn
        self._blamed: dict[NodeId, Key] = {}
        """Nodes that answer us, but not the node that sends to them; and the generation in which that was so."""

    async def recover(self, deployment: Deployment, error: MeshError | None) -> Deployment:
        """The generation to use from now on; `deployment` itself where it is in force and nothing is newer.

        `error` is what broke, None where the generation is only being drained. Raises `NodeLost` where a stage has
        nobody left to run it, `DeploymentNotFound` where the deployment was removed.
        """
        blamed = self._blame(deployment, error)
        told = error.address if isinstance(error, NodeLost) else ""
        searching = _Search(told, blamed, set(blamed), told)
        loop = asyncio.get_running_loop()
        began = loop.time()
        attempts = 0
        tried = deployment.fence
        while True:
            seen = await self._look(deployment, searching.ask_timeout_s)
            excluded = searching.excluded
            missing = seen.missing(seen.newest)
            is_same = seen.newest.fence == deployment.fence
            if not missing and not excluded.intersection(seen.newest.plan.devices):
                return await self._further(deployment) if is_same and error is None else seen.newest
            if is_same and (isinstance(error, DeploymentNotFound) or seen.is_removed(deployment)):
                return await self._replaced(deployment, error)
            starting = [node for node in missing if node in seen.answers and node not in excluded]
            waited_s = loop.time() - began
            if starting == missing and seen.newest.fence > deployment.fence and waited_s < SETTLE_WAIT_S:
                await asyncio.sleep(POLL_S)  # somebody is putting it in force
                continue
            silent = [node for node in seen.newest.addresses if node not in seen.answers]
            repaired = repair(seen.newest, excluded.union(missing, silent))
            if repaired is None:
                if searching.may_look_again(seen, waited_s):
                    continue
                if starting and waited_s < RESTORE_WAIT_S:
                    await asyncio.sleep(POLL_S)
                    continue
                raise _beyond_repair(seen.newest, missing, error)
            attempts += 1
            if attempts > MAX_ATTEMPTS:
                raise _beyond_repair(seen.newest, missing, error)
            # Above what was tried before, too: nodes that took it refuse it from now on, though they gave it up.
            tried = max(tried, repaired.fence)
            repaired = replace(repaired, fence=tried)
            tried = Fence(tried.term, tried.generation + 1)
            if await self._put_in_force(repaired, excluded):
                self._spawn(self._tidy(repaired, seen), f"retire what {key_of(repaired)} replaces")
                return repaired

    def _blame(self, deployment: Deployment, error: MeshError | None) -> set[NodeId]:
        """A node that is told to be lost twice in one generation is left out, even where it answers us."""
        key = key_of(deployment)
        address = error.address if isinstance(error, NodeLost) else ""
        told = {node for node, known in deployment.addresses.items() if known == address}
        excluded = {node for node in told if self._blamed.get(node) == key}
        self._blamed = {node: known for node, known in self._blamed.items() if known == key}
        self._blamed.update(dict.fromkeys(told, key))
        return excluded

    # Looking --------------------------------------------------------------------------------------

    async def _look(self, deployment: Deployment, timeout_s: Callable[[str], float]) -> _Seen:
        """`timeout_s` of an address: for that node to answer."""
        answers: dict[NodeId, tuple[DeploymentReport, ...]] = {}
        gone: set[NodeId] = set()
        newest = deployment
        asked: set[NodeId] = set()

        async def ask(node: NodeId, address: str) -> None:
            try:
                reports, _ = await self._client(address).list_deployments(newest.name, timeout_s(address))
                answers[node] = tuple(reports)
            except Timeout:
                return  # silent; counted as lost, by name, where it matters
            except MeshError:
                gone.add(node)

        while to_ask := [node for node in newest.addresses if node not in asked]:
            asked.update(to_ask)
            await asyncio.gather(*(ask(node, newest.addresses[node]) for node in to_ask))
            reports = [report for held in answers.values() for report in held]
            newest = max((newest, *(report.deployment for report in reports)), key=lambda known: known.fence)
        return _Seen(answers, gone, newest)

    async def _further(self, deployment: Deployment) -> Deployment:
        """Look among all nodes: the generation that replaced this one may share no node with it."""
        if self._resolve is None:
            return deployment
        try:
            found = await self._resolve(deployment.name)
        except NotFound:
            return deployment
        return max(found, deployment, key=lambda known: known.fence)

    async def _replaced(self, deployment: Deployment, error: MeshError | None) -> Deployment:
        """What replaced a generation that is being removed; itself while it only drains and nothing has."""
        found = await self._further(deployment)
        if found.fence <= deployment.fence and error is not None:
            raise DeploymentNotFound(f"deployment {deployment.name!r} was removed")
        return found

    # Putting in force -----------------------------------------------------------------------------

    async def _put_in_force(self, deployment: Deployment, excluded: set[NodeId]) -> bool:
        """False where a node could not take its part, which is then `excluded`, or somebody was faster."""
        key = key_of(deployment)
        failed: dict[NodeId, MeshError] = {}

        async def attempt(node: NodeId, work: Coroutine[Any, Any, object]) -> None:
            try:
                await work
            except MeshError as error:
                failed[node] = error

        clients = {node: self._client(deployment.addresses[node]) for node in deployment.plan.devices}
        await together(attempt(node, client.prepare(deployment)) for node, client in clients.items())
        if not failed:
            for stage in reversed(deployment.plan.stages):  # tail first: an active stage can always send on
                for node in stage.devices:
                    await attempt(node, clients[node].activate(key))
        if not failed:
            return True
        # Who refused has taken somebody else's generation under this fence, which is not ours to drain.
        refused = {node for node, error in failed.items() if isinstance(error, Refused)}
        if not refused:
            excluded.update(failed)
        await together(attempt(node, client.drain(key)) for node, client in clients.items() if node not in refused)
        return False

    async def _tidy(self, deployment: Deployment, seen: _Seen) -> None:
        """Drain what was replaced, and have stand-bys get what they may need next. Nobody waits for any of it."""
        await asyncio.gather(*(self._tidy_node(node, deployment, seen) for node in seen.answers))

    async def _tidy_node(self, node: NodeId, deployment: Deployment, seen: _Seen) -> None:
        client = self._client(deployment.addresses.get(node) or seen.newest.addresses[node])
        holders = [address for other, address in deployment.addresses.items() if other != node]
        needed = [
            stage.segment.sha256
            for stage, spare in zip(deployment.plan.stages, deployment.standbys, strict=True)
            if node in spare[:1] and stage.segment.sha256 is not None
        ]
        try:
            for report in seen.answers[node]:
                if report.deployment.fence < deployment.fence:
                    await client.drain(key_of(report.deployment))
            if needed:
                await client.fetch_content(needed, holders)
        except MeshError:
            return  # it is gone, or full: the next repair does without it


def _beyond_repair(deployment: Deployment, missing: Collection[NodeId], error: MeshError | None) -> NodeLost:
    lost = " and ".join(f"node {node[:8]} at {deployment.addresses[node]}" for node in missing)
    reason = f": {error.message}" if error is not None else ""
    return NodeLost(
        f"deployment {deployment.name!r} cannot go on without {lost or 'a node'}, and nobody can take over{reason}",
        hint="start it again, or deploy the model again on the nodes that are left",
    )
