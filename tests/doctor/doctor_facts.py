"""A device and a mesh with which nothing is wrong, for tests to break one thing of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mesh.core.fleet import Provider
from mesh.core.ids import NodeId
from mesh.doctor.checks import examine
from mesh.doctor.facts import DiskFacts, Facts, FoundNode, InterfaceFacts, Listener, MulticastTrial
from mesh.doctor.findings import Finding, Severity

HEARD = MulticastTrial(heard_itself=True, others=frozenset({"192.168.1.11"}))
ETHERNET = InterfaceFacts("eth0", "192.168.1.10", 24, trial=HEARD)
LOOPBACK = InterfaceFacts("lo", "127.0.0.1", 8, is_used=False)
DOCKER = InterfaceFacts("docker0", "172.17.0.1", 16, is_used=False, is_skipped=True, is_inner_bridge=True)
CPU = Provider("CPUExecutionProvider", True)

HALL = FoundNode(
    NodeId("a" * 32), "hall", "192.168.1.10:50071", True, "0.5.0", (CPU,), clock_ahead_s=0.0, clock_error_s=0.001
)
ATTIC = FoundNode(
    NodeId("b" * 32), "attic", "192.168.1.11:50071", True, "0.5.0", (CPU,), clock_ahead_s=0.002, clock_error_s=0.001
)

WELL = Facts(
    interfaces=(LOOPBACK, ETHERNET),
    listeners=(Listener(50071, "0.0.0.0", 700, ("/usr/bin/python3", "/usr/bin/mesh", "node")),),
    nodes=(HALL, ATTIC),
    clock_is_set=True,
    runtime_version="1.24.0",
    providers=(CPU,),
    disk=DiskFacts("/var/lib/mesh", 20 << 30, 30 << 30, True, 100_000),
)


def well_but(**changes: Any) -> Facts:
    return replace(WELL, **changes)


def wrong(facts: Facts) -> list[Finding]:
    """What is not simply all right, and each with a fix."""
    found = [finding for finding in examine(facts) if finding.severity is not Severity.OK]
    assert all(finding.fix for finding in found)
    return found


def only(facts: Facts) -> Finding:
    """The one thing that is said about it."""
    found = wrong(facts)
    assert len(found) == 1, found
    return found[0]
