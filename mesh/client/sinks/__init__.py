"""Sensor sinks: `open_sink(URL, outputs)` takes the answers of a stream.

    jsonl:PATH?values=auto|all|none|top&append=1   one JSON object per answer; `-` is standard output
    npz:PATH                                       all answers as arrays (infermesh[numpy])
    null:                                          counts only

The contract is `contract.py`, one file per kind, the table of schemes is `opening.py`.
"""

from mesh.client.sinks.contract import Sink, SinkRecord
from mesh.client.sinks.opening import describe_sinks, open_sink

__all__ = ["Sink", "SinkRecord", "describe_sinks", "open_sink"]
