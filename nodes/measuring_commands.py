"""Declares `mesh bench` and `mesh trace`; the work is in modules that are imported when one of them runs."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from nodes.options import (
    CoordinatorOption,
    InterfaceOption,
    JsonOption,
    MdnsOption,
    NameArgument,
    PeerOption,
    open_mesh,
)
from nodes.output import command, run_async


class SourcePlace(enum.StrEnum):
    NODE = "node"
    CLIENT = "client"


SecondsOption = Annotated[
    float, typer.Option("--seconds", metavar="S", help="How long to measure, after a short warm-up.")
]
SourceOption = Annotated[
    SourcePlace,
    typer.Option(
        "--source", help="node: frames are made inside the head node; client: this process sends them as a sensor."
    ),
]
WindowOption = Annotated[
    int, typer.Option("--window", min=0, metavar="FRAMES", help="Frames in flight; 0 takes what the plan says.")
]
RateOption = Annotated[
    float, typer.Option("--rate", min=0.0, metavar="HZ", help="Frames per second at most; 0 for as many as are taken.")
]


@command
def bench(
    name: NameArgument,
    source: SourceOption = SourcePlace.NODE,
    seconds: SecondsOption = 5.0,
    window: WindowOption = 0,
    rate: RateOption = 0.0,
    peer: PeerOption = None,
    interface: InterfaceOption = None,
    mdns: MdnsOption = True,
    coordinator: CoordinatorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a deployment with made-up frames: throughput, latency, and what each stage does."""
    from nodes.bench_commands import make_request, show_bench

    request = make_request(seconds, window, rate)
    run_async(show_bench(open_mesh(coordinator, peer, interface, mdns), name, source, request, as_json))


class TraceDriver(enum.StrEnum):
    CLIENT = "client"
    NODE = "node"
    NONE = "none"


@command
def trace(
    name: NameArgument,
    out: Annotated[Path, typer.Option("--out", metavar="T.json", help="Where the timeline goes.")],
    seconds: Annotated[float, typer.Option("--seconds", metavar="S", help="How long to record.")] = 1.0,
    source: Annotated[
        TraceDriver,
        typer.Option("--source", help="Who sends frames meanwhile: client, node, or none to watch what runs anyway."),
    ] = TraceDriver.CLIENT,
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels/--no-kernels", help="Profile each stage afterwards, and show its kernels in the frames."
        ),
    ] = True,
    window: WindowOption = 0,
    rate: RateOption = 0.0,
    peer: PeerOption = None,
    interface: InterfaceOption = None,
    mdns: MdnsOption = True,
    coordinator: CoordinatorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Record what happens to each frame on every node, as a timeline for chrome://tracing or Perfetto."""
    from nodes.bench_commands import make_request
    from nodes.trace_commands import check_trace, show_trace

    check_trace(seconds, out)
    request = make_request(seconds, window, rate)
    connection = open_mesh(coordinator, peer, interface, mdns)
    run_async(show_trace(connection, name, source, request, out, kernels, as_json))
