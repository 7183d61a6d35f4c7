"""The ports that daemons and gateways take by default, and who has them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mesh.doctor.facts import Facts, Listener
from mesh.doctor.findings import Finding, Severity

PORTS: Mapping[int, tuple[str, str, str]] = {
    50071: ("node", "a node", "mesh node --listen HOST:PORT"),
    50070: ("coordinator", "a coordinator", "mesh coordinator --listen HOST:PORT"),
    8000: ("gateway", "a gateway's HTTP", "mesh gateway --http HOST:PORT"),
    8001: ("gateway", "a gateway's gRPC", "mesh gateway --grpc HOST:PORT"),
    8002: ("gateway", "a gateway's metrics", "mesh gateway --metrics HOST:PORT"),
}
"""Port -> the command that takes it, what for in words, and how to choose another."""

MAX_COMMAND_CHARACTERS = 80


def check_ports(facts: Facts) -> Iterator[Finding]:
    answering = {node.address.rpartition(":")[2] for node in facts.nodes if _is_here(node.address, facts)}
    taken = {listener.port: listener for listener in facts.listeners}
    free = [str(port) for port in PORTS if port not in taken]
    if free:
        yield Finding("ports", Severity.OK, "ports", f"{', '.join(free)} can be taken")
    for port, (command, use, otherwise) in PORTS.items():
        listener = taken.get(port)
        if listener is None:
            continue
        if is_ours(listener, command) or str(port) in answering:
            yield Finding("ports", Severity.OK, f"port {port}", f"{use} listens here ({describe(listener)})")
            continue
        message = f"is taken by {describe(listener)}, so {use} cannot listen there"
        yield Finding(
            "ports", Severity.BROKEN, f"port {port}", message, f"stop that process, or choose another: {otherwise}"
        )


def is_ours(listener: Listener, command: str) -> bool:
    """Whether this is `mesh COMMAND`, or a daemon that the demo started."""
    words = [word.rpartition("/")[2] for word in listener.command]
    program = next((place for place, word in enumerate(words) if word in ("mesh", "nodes", "__main__.py")), None)
    return program is not None and command in words[program + 1 :]


def describe(listener: Listener) -> str:
    if listener.process is None:
        return f"a process of another user on {listener.address}"
    command = " ".join(listener.command)[:MAX_COMMAND_CHARACTERS] or "a process"
    return f"process {listener.process}: {command}"


def _is_here(address: str, facts: Facts) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host in {one.address for one in facts.interfaces}
