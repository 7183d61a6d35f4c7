"""The nodes that were found: whether they answer, are who they say, keep the time, and fit together. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from mesh.doctor.facts import Facts, FoundNode
from mesh.doctor.findings import Finding, Severity

MAX_SKEW_S = 1.0
"""Above, events and results of two nodes stand in the wrong order for a person who reads them side by side."""

BAD_SKEW_S = 60.0
"""A board without a battery for its clock, and without a server to set it by."""

NODE_DIGITS = 8


def check_nodes(facts: Facts) -> Iterator[Finding]:
    """Who answers, and who does not."""
    ids = {node.node_id: node.name for node in facts.nodes}
    if ids:
        yield Finding("nodes", Severity.OK, "nodes", f"{len(ids)} answer: {', '.join(sorted(ids.values()))}")
    elif not facts.silent:
        fix = "start one with `mesh node`, or name one with --peer HOST:PORT where multicast does not reach"
        yield Finding("nodes", Severity.WARNING, "nodes", "no node was found", fix)
    for peer in facts.silent:
        where = ", ".join(peer.addresses)
        if peer.is_announced:
            message = f"is announced and does not answer at {where}: it is gone or frozen, or a firewall is between"
            fix = "see whether its daemon runs (mDNS remembers those that were switched off for up to 75 minutes), "
            fix += "and allow its TCP port there"
        else:
            message = f"does not answer at {where}"
            fix = "see whether its daemon runs, listens beyond loopback (--insecure), and its TCP port is allowed there"
        yield Finding("nodes", Severity.BROKEN, peer.name, message, fix)


def check_identities(facts: Facts) -> Iterator[Finding]:
    """Two daemons with one key: a data folder or a whole SD card was copied."""
    twins: dict[str, list[FoundNode]] = {}
    for node in facts.nodes:
        if node.twin_of:
            twins.setdefault(node.node_id, []).append(node)
    for node_id, group in twins.items():
        places = sorted({*(f"{node.name} at {node.address}" for node in group), *_named(group[0].twin_of, facts)})
        message = f"node id {node_id[:NODE_DIGITS]} is used by more than one daemon: {', '.join(places)}"
        fix = "stop all but one, delete identity.pem, content and deployments in their data folders (a copied SD card "
        fix += "brings them along), and start them again: each makes a key of its own"
        yield Finding("identities", Severity.BROKEN, group[0].name, message, fix)
    if facts.nodes and not twins:
        yield Finding("identities", Severity.OK, "nodes", "every daemon has an id of its own")


def _named(address: str, facts: Facts) -> list[str]:
    return [f"{node.name} at {node.address}" for node in facts.nodes if node.address == address] or [address]


def is_one_process(readings: Sequence[float]) -> bool:
    """Whether addresses that were asked in turns lead to one process.

    `readings`: the CPU time in seconds that the process behind the address said it had taken since it began, in the
    order of asking. Of one process it never falls; those of two would have to be within one call's work.
    """
    return all(later >= earlier for earlier, later in pairwise(readings))


def check_clocks(facts: Facts) -> Iterator[Finding]:
    fix = "let it keep its clock by a server: timedatectl set-ntp true, or install chrony"
    if facts.clock_is_set is False:
        message = "no server keeps this machine's clock, as far as the kernel knows"
        yield Finding("clocks", Severity.NOTE, "this machine", message, fix)
    compared = [node for node in facts.nodes if node.clock_ahead_s is not None]
    wrong = False
    for node in compared:
        ahead = node.clock_ahead_s or 0.0
        if abs(ahead) - node.clock_error_s <= MAX_SKEW_S:
            continue
        wrong = True
        severity = Severity.BROKEN if abs(ahead) > BAD_SKEW_S else Severity.WARNING
        message = f"its clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
        yield Finding("clocks", severity, node.name, f"{message}: times in events and results mislead", fix)
    if compared and not wrong:
        worst = max(abs(node.clock_ahead_s or 0.0) + node.clock_error_s for node in compared)
        yield Finding("clocks", Severity.OK, "nodes", f"all within {worst * 1e3:.0f} ms of this machine's clock")


def check_versions(facts: Facts) -> Iterator[Finding]:
    versions: dict[str, set[str]] = {}
    for node in facts.nodes:
        if node.version:
            versions.setdefault(node.version, set()).add(node.name)
    if len(versions) == 1:
        yield Finding("versions", Severity.OK, "nodes", f"all run {next(iter(versions))}")
    elif versions:
        told = "; ".join(f"{version}: {', '.join(sorted(names))}" for version, names in sorted(versions.items()))
        fix = "upgrade the older ones"
        yield Finding("versions", Severity.NOTE, "nodes", f"nodes run different versions: {told}", fix)
