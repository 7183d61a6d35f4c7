"""Pipeline files: what they say is read, and what is wrong is named by pipeline, table and key."""

from __future__ import annotations

import pytest

from mesh.errors import UsageError
from mesh.pipelines.pipeline_file import MAX_FILE_CHARACTERS, parse_pipelines
from mesh.pipelines.windows import GapPolicy, WindowKind

WHOLE = """
[[pipeline]]
name = "words"
model = "keywords"
timeout_s = 2
[pipeline.source]
kind = "audio"
[pipeline.window]
kind = "hopping"
size_s = 1.0
hop_s = 0.25
gap = "pad"
[pipeline.input]
features = "mfcc"
[pipeline.output]
kind = "labels"
labels = ["yes", "no"]
threshold = 0.5

[[pipeline]]
name = "camera"
[pipeline.source]
kind = "image"
[pipeline.input]
resize = true
mean = [0.5, 0.5, 0.5]

[mqtt]
host = "broker"
version = "5"
"""


def test_a_whole_file_is_read() -> None:
    found = parse_pipelines(WHOLE)
    words, camera = found.pipelines
    assert (words.model, words.timeout_s, words.source.rate_hz) == ("keywords", 2.0, 16000.0)
    assert words.window is not None
    assert (words.window.kind, words.window.hop_s, words.window.gap) == (WindowKind.HOPPING, 0.25, GapPolicy.PAD)
    assert words.output.labels == ("yes", "no")
    assert camera.model == "camera", "the model is called as the pipeline unless it is said"
    assert camera.window is None
    assert camera.input.options == {"resize": "1", "mean": "0.5,0.5,0.5"}
    assert found.mqtt is not None
    assert (found.mqtt.host, found.mqtt.version, found.mqtt.prefix) == ("broker", "5", "mesh")


SIGNAL = '[[pipeline]]\nname = "p"\n[pipeline.source]\nkind = "float32"\n'
SOUND = SIGNAL.replace("float32", "audio") + "[pipeline.window]\nsize_s = 1\n[pipeline.input]\nfeatures = 'log-mel'\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no pipelines"),
        ("x = [", "not TOML"),
        ("x" * (MAX_FILE_CHARACTERS + 1), "at most"),
        ("pipeline = 3", "no pipelines"),
        ("[[pipelines]]\n", "unknown key 'pipelines'"),
        ("[[pipeline]]\n", "number 1: 'name' is missing"),
        ('[[pipeline]]\nname = "Not Good"\n', "not a valid name"),
        ('[[pipeline]]\nname = "p"\n', r"'p', \[source\]: 'kind' is missing"),
        (SIGNAL + SIGNAL, "two pipelines are called 'p'"),
        (SIGNAL.replace("float32", "smell"), "'kind' must be one of"),
        (SIGNAL + "channels = 0\n", "'channels' must be a whole number"),
        (SIGNAL + "channels = true\n", "'channels' must be a whole number"),
        (SIGNAL + "rate_hz = -1\n", "'rate_hz' must be above 0"),
        (SIGNAL + "rate_hz = nan\n", "'rate_hz' must be a number"),
        (SIGNAL + "values = 'v'\n", "JSON pointer"),
        (SIGNAL + "[pipeline.window]\nsize_s = 1\n", "seconds need a rate"),
        (SIGNAL + "rate_hz = 10\n[pipeline.window]\nsize_s = 1\nsize = 10\n", "not both"),
        (SIGNAL + "rate_hz = 1000\n[pipeline.window]\nsize_s = 10001\n", "the size is 10001000 samples; from 1"),
        (SIGNAL + "channels = 64\n[pipeline.window]\nsize = 200_000\n", "200000 samples of 64 channels; from 1"),
        (SIGNAL + "rate_hz = 10\n[pipeline.window]\nsize_s = 0.01\n", "the size is 0 samples"),
        (
            SIGNAL + "rate_hz = 10\n[pipeline.window]\nkind = 'hopping'\nsize = 9\nhop_s = 0.01\n",
            "the hop is 0 samples",
        ),
        (
            SIGNAL + "rate_hz = 9\nchannels = 2\n[pipeline.input]\nfeatures = 'mfcc'\n",
            "one channel, and the source has 2",
        ),
        (SOUND + "step_s = 1e-9\n", "at least one sample"),
        (SOUND + "frame_s = 2\n", "a frame has 32000 samples, and a window 16000"),
        (SOUND + "step_s = 0.0001\nbands = 200\n", "make step_s larger"),
        (SOUND + "frame_s = 1\nbands = 512\n", "make frame_s smaller"),
        (SIGNAL + "[pipeline.window]\nkind = 'hopping'\nsize = 2\n", "a hopping window has a hop"),
        (SIGNAL + "[pipeline.window]\nsize = 2\nhop = 1\n", "a hopping window has a hop"),
        (SIGNAL + "[pipeline.window]\nkind = 'session'\n", "'kind' must be one of"),
        (SIGNAL + "[pipeline.input]\nresize = true\n", "unknown key 'resize'"),
        (SIGNAL + "[pipeline.input]\nfeatures = 'mfcc'\n", "needs a rate"),
        (SIGNAL + "[pipeline.output]\nkind = 'label'\n", "'kind' must be one of"),
        (SIGNAL + "[pipeline.output]\nlabels = [1]\n", "list of at most"),
        (SIGNAL + "[pipeline.output]\noverlap = 2\n", "from 0 to 1"),
        (SIGNAL + "[mqtt]\nport = 0\n", r"\[mqtt\]: 'port'"),
        (SIGNAL + "[mqtt]\nhost = 'a..b'\n", "must be a host name"),
        (SIGNAL + "[mqtt]\nprefix = 'a/#'\n", "beginning of a topic"),
        (SIGNAL + "[mqtt]\nprefix = '/a'\n", "beginning of a topic"),
        (SIGNAL + "[mqtt]\nversion = 5\n", "'version' must be one of"),
        ("mqtt = 3\n" + SIGNAL, r"\[mqtt\] must be a table"),
        (SIGNAL.replace("float32", "image") + "[pipeline.window]\nsize = 1\n", "pictures have no"),
        (SIGNAL + "rate_hz = 8000\n[pipeline.input]\nbands = 4\n", "10 coefficients of 4 bands"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_pipelines(text)
