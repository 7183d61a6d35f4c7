"""Entry point of the probe's child process: import ONNX Runtime, try its providers, measure, report.

Runs apart from the daemon because any of this may crash, hang or eat memory on some board: an
onnxruntime built for a newer processor dies of an illegal instruction at import. Findings are printed as
one JSON object per line as soon as they are known, each attempt announced before it starts, so that the
parent (`mesh.hardware.probe`) knows what a sudden end means.

Lines: `{"event": "importing"}`, `{"event": "imported", "version", "providers"}`,
`{"event": "trying", "provider"}`, `{"event": "tried", "provider", "usable", "detail"}`,
`{"event": "measuring"}`, `{"event": "measured", "gflops", "memory_gb_per_s", "threads"}`,
`{"event": "coded", "codec", "encode_byte_seconds", "decode_byte_seconds"}`,
`{"event": "error", "detail"}`, `{"event": "done"}`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""

NICENESS = 10
"""A tenth of the daemon's weight: importing and measuring takes seconds of a small board's only core, and those who
ask the daemon meanwhile are to be answered at once. On a board that does nothing else the figures are the same."""


def main(arguments: Sequence[str]) -> int:
    """Run the probe; 0 when it came to its end, whatever it found."""
    parser = argparse.ArgumentParser(prog="mesh.hardware.child")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--no-measure", action="store_true")
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    os.nice(NICENESS)
    report("importing")
    try:
        import numpy  # noqa: F401 - its absence is to be told apart
        import onnxruntime
    except ImportError as error:
        report("error", detail=f"{error.name or 'onnxruntime'} cannot be imported: {error}")
        report("done")
        return 0
    from mesh.hardware.benchmark import measure, measure_codecs
    from mesh.hardware.providers import CPU_PROVIDER, order_providers, try_provider

    onnxruntime.set_default_logger_severity(4)  # a refused provider is a finding, not a message on stderr
    names = order_providers(onnxruntime.get_available_providers())
    report("imported", version=onnxruntime.__version__, providers=names)
    wanted = options.only.split(",") if options.only else names
    for name in [name for name in names if name in wanted]:
        report("trying", provider=name)
        detail = try_provider(name, options.threads)
        report("tried", provider=name, usable=not detail, detail=detail)
        if name == CPU_PROVIDER and not detail and not options.no_measure:
            report("measuring")
            speed = measure(options.threads)
            report("measured", gflops=speed.gflops, memory_gb_per_s=speed.memory_gb_per_s, threads=options.threads)
            for codec, (encoding, decoding) in measure_codecs().items():
                report("coded", codec=codec, encode_byte_seconds=encoding, decode_byte_seconds=decoding)
    report("done")
    return 0


def report(event: str, **facts: object) -> None:
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies (Linux); leave at once if that has happened."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit("the parent process is gone")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
