"""`mesh doctor`: what is broken on this device and its mesh, and what to do about it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from nodes.options import DataDirOption, InterfaceOption, JsonOption, PeerOption, default_data_dir
from nodes.output import command, print_json, run_async

if TYPE_CHECKING:
    from mesh.doctor.findings import Finding

WIDTH = 110
INDENT = " " * 12


@command
def doctor(
    peer: PeerOption = None,
    interface: InterfaceOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Examine this device and its mesh: name what is broken, and the fix. Exit code 1 where something is."""
    from mesh.doctor.checks import examine
    from mesh.doctor.findings import is_healthy
    from mesh.runtime.examining import Examined, collect_facts

    examined = Examined(data_dir or default_data_dir("node"), tuple(interface or ()), tuple(peer or ()))
    findings = examine(run_async(collect_facts(examined)))
    healthy = is_healthy(findings)
    if as_json:
        print_json({"healthy": healthy, "findings": [finding_document(finding) for finding in findings]})
    else:
        print(show_findings(findings))
    if not healthy:
        raise typer.Exit(1)


def finding_document(finding: Finding) -> dict[str, Any]:
    return {
        "check": finding.check,
        "severity": str(finding.severity),
        "subject": finding.subject,
        "message": finding.message,
        "fix": finding.fix,
    }


def show_findings(findings: Sequence[Finding]) -> str:
    """One paragraph each, in the order of the checks; the fix stands below what it repairs."""
    lines: list[str] = []
    for finding in findings:
        said = f"{finding.severity:<8}{finding.check:<12}{finding.subject}: {finding.message}"
        lines += textwrap.wrap(said, WIDTH, subsequent_indent=INDENT, break_long_words=False)
        if finding.fix:
            fix = textwrap.wrap(
                f"fix: {finding.fix}", WIDTH, initial_indent=INDENT, subsequent_indent=INDENT, break_long_words=False
            )
            lines += fix
    return "\n".join(lines)
