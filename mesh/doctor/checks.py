"""The table of checks. Pure: `examine` is a function of the facts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from mesh.doctor.device_checks import check_disk, check_providers, check_throttling
from mesh.doctor.facts import Facts
from mesh.doctor.findings import Finding
from mesh.doctor.mesh_checks import check_clocks, check_identities, check_nodes, check_versions
from mesh.doctor.network_checks import check_bridges, check_multicast
from mesh.doctor.port_checks import check_ports

Check = Callable[[Facts], Iterable[Finding]]

CHECKS: Mapping[str, Check] = {
    "multicast": check_multicast,
    "bridges": check_bridges,
    "ports": check_ports,
    "nodes": check_nodes,
    "identities": check_identities,
    "clocks": check_clocks,
    "versions": check_versions,
    "providers": check_providers,
    "throttling": check_throttling,
    "disk": check_disk,
}
"""Name, which its findings carry, -> check; in the order in which a person reads them."""


def examine(facts: Facts) -> list[Finding]:
    return [finding for check in CHECKS.values() for finding in check(facts)]
