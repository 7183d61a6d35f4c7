"""Sensor sources: `open_source(URL, inputs)` gives frames that fit a model.

    FILE.npz?key=ARRAY&input=NAME&start=N&count=N&cast=DTYPE   recorded arrays (infermesh[numpy])
    FILE.npy?start=N&count=N&cast=DTYPE                        one recorded array (infermesh[numpy])
    images:FOLDER?resize=1&scale=255&mean=A,B,C&std=A,B,C      pictures (infermesh[images])
    wav:FILE.wav?window=S&hop=S&tail=pad|drop|error            windows of a recording
    stdin:?dtype=uint8&scale=N&layout=hwc                      raw frames on a pipe
    stdin:?format=pcm_s16le&window=S&hop=S                     audio on a pipe
    synthetic:imu|vibration|random?seed=N&count=N              made-up signals

Everything but the first three needs the standard library alone; a missing extra is named when it is needed, never at
import. The contract is `contract.py`, one file per kind, the table of schemes is `opening.py`.
"""

from mesh.client.sources.contract import Source, SourceFrame
from mesh.client.sources.opening import describe_sources, open_source
from mesh.client.sources.schedule import RateSchedule

__all__ = ["RateSchedule", "Source", "SourceFrame", "describe_sources", "open_source"]
