"""`mesh split` and `mesh verify`: a model in parts, without any mesh."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.client.sinks.storage import storage_error
from mesh.errors import MissingExtra, UsageError
from nodes.output import print_json, say

if TYPE_CHECKING:
    from mesh.core.graph import Graph
    from mesh.core.plan import Segment
    from mesh.model.read import SourceModel

MAX_STAGES = 64
"""More parts than this are a typing error, not a wish."""


def load(path: Path) -> tuple[SourceModel, Graph]:
    try:
        from mesh.model.read import read_model
        from mesh.model.summarise import summarise
    except ImportError as error:
        raise MissingExtra(
            f"reading models needs the package {error.name!r}",
            hint="install the extra infermesh[coordinator]: pip install '.[coordinator]' in a clone",
        ) from None
    model = read_model(path)
    return model, summarise(model)


def choose_segments(graph: Graph, data: bytes, stages: int | None, plan: Path | None) -> list[Segment]:
    """As `--stages` or `--plan` say; fewer segments than asked for where no legal cut is left."""
    from mesh.core.segments import segment_between
    from mesh.planning.balance import balanced_positions
    from nodes.wishes import read_plan

    if (stages is None) == (plan is None):
        raise UsageError("give either --stages K or --plan FILE")
    if plan is not None:
        return [stage.segment for stage in read_plan(plan, data).stages]
    if stages is None or not 1 <= stages <= MAX_STAGES:
        raise UsageError(f"--stages {stages} is outside 1..{MAX_STAGES}")
    positions = balanced_positions(graph, stages)
    return [segment_between(graph, start, end) for start, end in pairwise(positions)]


def warn_of_fewer(segments: Sequence[Segment], stages: int | None, graph: Graph) -> None:
    if stages is not None and len(segments) < stages:
        why = f" ({'; '.join(graph.notes)})" if graph.notes else ""
        say(f"warning: {stages} parts were asked for, the model has cuts for {len(segments)}{why}")


def split(path: Path, stages: int | None, plan: Path | None, out: Path, as_json: bool) -> None:
    """Write the segments and `manifest.json`; the manifest comes last, so that it never names what is not there."""
    model, graph = load(path)
    segments = choose_segments(graph, model.data, stages, plan)
    from mesh.model.extract import extract

    entries = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for index, segment in enumerate(segments):
            data = extract(model, graph, segment)
            name = f"segment-{index}.onnx"
            (out / name).write_bytes(data)
            entries.append(
                {
                    "file": name,
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "inputs": list(segment.consumes),
                    "outputs": list(segment.produces),
                    "bytes": len(data),
                    "flops": segment.flops,
                }
            )
        manifest = {"model_sha256": model.sha256, "segments": entries}
        (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    except OSError as error:
        raise storage_error(error, str(out)) from None
    warn_of_fewer(segments, stages, graph)
    if as_json:
        print_json(manifest)
        return
    from nodes.render import format_table, human_bytes

    header = ("FILE", "SIZE", "GFLOP", "INPUTS", "OUTPUTS")
    rows = [
        (
            str(entry["file"]),
            human_bytes(len((out / str(entry["file"])).read_bytes())),
            f"{segment.flops / 1e9:.3f}",
            ", ".join(segment.consumes),
            ", ".join(segment.produces),
        )
        for entry, segment in zip(entries, segments, strict=True)
    ]
    print(format_table(header, rows))
    print(f"{len(segments)} segments and manifest.json in {out}")


def verify(path: Path, stages: int | None, plan: Path | None, source: Path | None, as_json: bool) -> None:
    """Whole against chained; raises `VerificationFailed` where they differ by more than the rule allows."""
    model, graph = load(path)
    segments = choose_segments(graph, model.data, stages, plan)
    warn_of_fewer(segments, stages, graph)
    from mesh.engines import make_engine
    from mesh.runtime.proving import prove
    from nodes.sensor import read_feeds

    feeds = read_feeds(source, model.inputs)[0][0] if source is not None else None
    comparison = prove(make_engine(), model, graph, segments, feeds)
    if as_json:
        print_json(
            {
                "model_sha256": model.sha256,
                "segments": len(segments),
                "equal": comparison.equal,
                "outputs": [
                    {"name": d.name, "max_abs_diff": d.max_abs_diff, "allowed": d.allowed, "reason": d.reason}
                    for d in comparison.differences
                ],
            }
        )
    else:
        for difference in comparison.differences:
            print(
                f"{difference.name}: largest difference {difference.max_abs_diff:.3g}, allowed {difference.allowed:.3g}"
            )
        print(f"{len(segments)} segments against the whole: {'equal' if comparison.equal else 'DIFFERENT'}")
    comparison.require()
