"""Several discoveries as one: mDNS and seeds together.

Findings of one peer (same node id and role) by several members become one, with all addresses, those of
the earlier member first. Seeds pass through as they are: who is behind them is not known here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from mesh.core.fleet import Peer
from mesh.discovery.contract import Advertisement, Discovery, DiscoveryEvent, PeerSeen
from mesh.discovery.roster import PeerKey, Roster, key_of, merge_peers


class CombinedDiscovery:
    """`Discovery` over `members`, which it enters and leaves. An error of one is an error of the whole."""

    def __init__(self, members: Sequence[Discovery]) -> None:
        self._members = tuple(members)
        self._found: dict[PeerKey, dict[int, Peer]] = {}
        self._roster = Roster()
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> CombinedDiscovery:
        async with contextlib.AsyncExitStack() as stack:
            for member in self._members:
                await stack.enter_async_context(member)
            group = await stack.enter_async_context(asyncio.TaskGroup())
            for index, member in enumerate(self._members):
                follower = group.create_task(self._follow(index, member), name=f"discovery-{index}")
                stack.callback(follower.cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # Without the exception: it is the caller's, and the task group here would wrap it.
        await self._stack.aclose()

    async def advertise(self, advertisement: Advertisement) -> None:
        for member in self._members:
            await member.advertise(advertisement)

    def watch(self) -> AsyncIterator[DiscoveryEvent]:
        return self._roster.watch()

    async def _follow(self, index: int, member: Discovery) -> None:
        async for event in member.watch():
            key = key_of(event.peer)
            findings = self._found.setdefault(key, {})
            if isinstance(event, PeerSeen):
                findings[index] = event.peer
            else:
                findings.pop(index, None)
            if findings:
                self._roster.put(merge_peers(findings[position] for position in sorted(findings)))
            else:
                del self._found[key]
                self._roster.remove(key)
