"""Discovery by multicast DNS (RFC 6762, 6763) with python-zeroconf: who announces itself on the LAN.

`async with` opens the sockets and starts the tasks, all in one task group of the adapter: the announcer
(registers what `advertise` was given, which takes 1 to 2 s of probing), the examiner (takes candidates at
a bounded pace), a few resolvers (ask for records that did not come along) and the interface watch (a board
often has its address only after the daemon runs). zeroconf's callbacks only queue and never wait.

The library keeps a powered-off peer for up to its time to live, 75 minutes for the name; found is not
alive.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from mesh.core.fleet import Peer
from mesh.discovery.candidates import MAX_CANDIDATES, Candidates
from mesh.discovery.contract import Advertisement, DiscoveryEvent
from mesh.discovery.interfaces import Interface, choose_interfaces, list_interfaces
from mesh.discovery.records import SERVICE_TYPE, host_name, instance_name, read_record, txt_properties
from mesh.discovery.roster import PeerKey, Roster, is_other, key_of, merge_peers
from mesh.errors import ListenError, UsageError

RESOLVE_TIMEOUT_MS = 1500
"""Three rounds of questions; who answers on a LAN does so within a few tens of milliseconds."""

RESOLVERS = 8
"""Lookups under way at once; bounds the questions we multicast because of what others claim."""

INTERFACE_POLL_SECONDS = 5.0
"""How soon a new address is used; listing the interfaces takes well under a millisecond of processor time."""

UNSPECIFIED = ("", "0.0.0.0", "::")  # noqa: S104 - to be replaced, not to be bound


@dataclass(slots=True)
class MdnsCounters:
    """What was not reported, and why."""

    bad_records: int = 0
    """Records that `read_record` rejected."""
    unanswered: int = 0
    """Names whose records nobody sent."""
    refused: int = 0
    """Names that found a queue full, and peers beyond `MAX_CANDIDATES`."""
    last_reason: str = ""
    """Why the latest record was rejected."""


class MdnsDiscovery:
    """`Discovery` on the local network. Enter and leave it in the same task."""

    def __init__(
        self,
        interfaces: Sequence[str] = (),
        list_present: Callable[[], list[Interface]] = list_interfaces,
        poll_seconds: float = INTERFACE_POLL_SECONDS,
    ) -> None:
        """`interfaces`: names or IPv4 addresses; empty chooses by itself, see `choose_interfaces`."""
        self.counters = MdnsCounters()
        self.instance: str = ""
        """The name under which we are announced: with a number where another has it already; "" before."""
        self._wanted = tuple(interfaces)
        self._list_present = list_present
        self._poll_seconds = poll_seconds
        self._used: list[Interface] = []
        self._stack = contextlib.AsyncExitStack()
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._advertisement: Advertisement | None = None
        self._announced: AsyncServiceInfo | None = None
        self._asked_instance = ""
        self._announce_again = asyncio.Event()
        self._candidates = Candidates()
        self._candidates_added = asyncio.Event()
        self._to_resolve: asyncio.Queue[str] = asyncio.Queue(MAX_CANDIDATES)
        self._records: dict[str, Peer] = {}
        self._roster = Roster()

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """Those in use."""
        return tuple(self._used)

    async def __aenter__(self) -> MdnsDiscovery:
        """Raises `UsageError` for an interface that is not there, `ListenError` where port 5353 is denied."""
        self._used = choose_interfaces(self._list_present(), self._wanted)
        if not self._used:
            raise ListenError("no network interface has an IPv4 address", hint="name peers with --peer host:port")
        async with contextlib.AsyncExitStack() as stack:
            zeroconf = self._zeroconf = _open([one.address for one in self._used])
            stack.push_async_callback(zeroconf.async_close)
            group = await stack.enter_async_context(asyncio.TaskGroup())
            jobs = [self._announce, self._examine, self._watch_interfaces, *[self._resolve] * RESOLVERS]
            for job in jobs:
                stack.callback(group.create_task(job(zeroconf), name=f"mdns{job.__name__}").cancel)
            self._browser = self._browse(zeroconf)
            stack.push_async_callback(self._stop_browsing)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop, and say goodbye: takes about 0.3 s when something is announced."""
        # Without the exception: it is the caller's, and the task group here would wrap it.
        await self._stack.aclose()

    async def advertise(self, advertisement: Advertisement) -> None:
        """Announce from now on. Raises `UsageError` for what no reader would accept."""
        txt_properties(advertisement)
        self._advertisement = advertisement
        self._announce_again.set()
        self._roster.recheck()

    def watch(self) -> AsyncIterator[DiscoveryEvent]:
        return self._roster.watch(lambda peer: is_other(peer, self._advertisement))

    # Announcing

    async def _announce(self, zeroconf: AsyncZeroconf) -> None:
        """Keep what is registered equal to what was asked for, one change after the other."""
        while True:
            await self._announce_again.wait()
            self._announce_again.clear()
            advertisement = self._advertisement
            if advertisement is None:
                continue
            info = self._service_info(advertisement)
            previous = self._announced
            if previous is not None and (previous.server, self._asked_instance) == (info.server, info.name):
                info.name = previous.name  # which may have been changed in a conflict
                broadcast = await zeroconf.async_update_service(info)
            else:
                if previous is not None:
                    self._announced = None
                    await (await zeroconf.async_unregister_service(previous))
                self._asked_instance = info.name
                broadcast = await zeroconf.async_register_service(info, allow_name_change=True)
            self._announced = info
            self.instance = info.name
            await broadcast

    def _service_info(self, advertisement: Advertisement) -> AsyncServiceInfo:
        given = [address for address in advertisement.addresses if address not in UNSPECIFIED]
        return AsyncServiceInfo(
            SERVICE_TYPE,
            instance_name(advertisement),
            port=advertisement.port,
            properties=txt_properties(advertisement),
            server=host_name(advertisement.node_id),
            parsed_addresses=given or [one.address for one in self._used],
        )

    # Browsing

    def _browse(self, zeroconf: AsyncZeroconf) -> AsyncServiceBrowser:
        return AsyncServiceBrowser(zeroconf.zeroconf, SERVICE_TYPE, handlers=[self._on_change])

    async def _stop_browsing(self) -> None:
        if self._browser is not None:
            await self._browser.async_cancel()
            self._browser = None

    def _on_change(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """zeroconf's callback, on the event loop. The parameter names are the library's."""
        instance = name.lower()
        if state_change is ServiceStateChange.Removed:
            self._candidates.discard(name)
            self._forget(instance)
        elif instance in self._records:
            info = AsyncServiceInfo(SERVICE_TYPE, name)
            if info.load_from_cache(zeroconf):
                self._accept(info)
        else:
            has_records = bool(zeroconf.cache.async_entries_with_name(instance))
            if self._candidates.add(name, complete=has_records):
                self._candidates_added.set()
            else:
                self.counters.refused += 1

    async def _examine(self, zeroconf: AsyncZeroconf) -> None:
        """Take candidates at their pace: believe those whose records are here, hand on the others."""
        loop = asyncio.get_running_loop()
        while True:
            self._candidates_added.clear()
            taken = self._candidates.take(loop.time())
            if taken is None:
                await self._candidates_added.wait()
            elif isinstance(taken, float):
                await asyncio.sleep(taken)
            else:
                info = AsyncServiceInfo(SERVICE_TYPE, taken)
                if info.load_from_cache(zeroconf.zeroconf):
                    self._accept(info)
                elif self._to_resolve.full():
                    self.counters.refused += 1
                else:
                    self._to_resolve.put_nowait(taken)

    async def _resolve(self, zeroconf: AsyncZeroconf) -> None:
        """Ask for the records of one name after the other."""
        while True:
            info = AsyncServiceInfo(SERVICE_TYPE, await self._to_resolve.get())
            if await info.async_request(zeroconf.zeroconf, RESOLVE_TIMEOUT_MS):
                self._accept(info)
            else:
                self.counters.unanswered += 1

    def _accept(self, info: AsyncServiceInfo) -> None:
        instance = info.name.lower()
        peer = read_record(
            info.properties,
            len(info.text or b""),
            info.port or 0,
            info.parsed_scoped_addresses(IPVersion.All),
            [one.network for one in self._used],
            on_loopback=any(one.is_loopback for one in self._used),
        )
        if isinstance(peer, str):
            self.counters.bad_records += 1
            self.counters.last_reason = peer
        elif instance not in self._records and len(self._records) >= MAX_CANDIDATES:
            self.counters.refused += 1
        else:
            previous = self._records.get(instance)
            self._records[instance] = peer
            if previous is not None and key_of(previous) != key_of(peer):
                self._publish(key_of(previous))
            self._publish(key_of(peer))

    def _forget(self, instance: str) -> None:
        peer = self._records.pop(instance, None)
        if peer is not None:
            self._publish(key_of(peer))

    def _publish(self, key: PeerKey) -> None:
        """Tell the roster of one peer, who may be announced under several names; the latest counts first."""
        findings = [peer for peer in reversed(self._records.values()) if key_of(peer) == key]
        if findings:
            self._roster.put(merge_peers(findings))
        else:
            self._roster.remove(key)

    # Interfaces

    async def _watch_interfaces(self, zeroconf: AsyncZeroconf) -> None:
        """Follow changes of addresses: use the new ones, announce them, ask anew. Without any, keep the old."""
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                chosen = choose_interfaces(self._list_present(), self._wanted)
            except UsageError:
                continue  # a named interface is away for now; it was there at the start
            if not chosen or chosen == self._used:
                continue
            await zeroconf.async_update_interfaces([one.address for one in chosen])
            self._used = chosen
            self._announce_again.set()
            await self._stop_browsing()
            self._browser = self._browse(zeroconf)


def _open(addresses: list[str]) -> AsyncZeroconf:
    try:
        return AsyncZeroconf(interfaces=addresses, ip_version=IPVersion.V4Only)
    except OSError as error:
        raise ListenError(
            f"mDNS cannot use port 5353 on {', '.join(addresses)}: {error.strerror or error}",
            hint="allow other responders in avahi-daemon.conf (disallow-other-stacks=no), or name peers with --peer",
        ) from error
