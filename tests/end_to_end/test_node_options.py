"""`mesh node --gateway` and `mesh coordinator --gateway`: a gateway in the daemon's own process."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.end_to_end.commands import DIGITS, Daemon, LocalFleet, run

SERVICES = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
ALONE = ("--no-mdns", "--threads", "1")
CALL_LIMIT_S = 20.0


@contextlib.contextmanager
def daemon(folder: Path, kind: str, *extra: str) -> Iterator[Daemon]:
    started = Daemon(f"{kind}-with-gateway", folder / kind, kind, extra).start()
    try:
        yield started
    finally:
        assert started.stop() == 0
    assert "Traceback" not in started.log.read_text()


def fetch(address: str, path: str, document: dict[str, Any] | None = None) -> tuple[int, Any]:
    data = None if document is None else json.dumps(document).encode()
    try:
        with urllib.request.urlopen(f"http://{address}{path}", data, timeout=CALL_LIMIT_S) as answer:
            body = answer.read()
            return answer.status, json.loads(body) if body.startswith(b"{") else body
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def ask_digits(address: str) -> list[float]:
    image = np.random.default_rng(1).random((1, 1, 8, 8)).astype(np.float32)
    entry = {"name": "image", "datatype": "FP32", "shape": image.shape, "data": image.ravel().tolist()}
    status, answer = fetch(address, "/v2/models/beside/infer", {"inputs": [entry]})
    assert status == 200, answer
    data: list[float] = answer["outputs"][0]["data"]
    return data


@pytest.mark.parametrize("stages", [1, 2])
def test_a_node_serves_what_it_computes_and_what_others_do(stages: int, fleet: LocalFleet, tmp_path: Path) -> None:
    import onnxruntime

    image = np.random.default_rng(1).random((1, 1, 8, 8)).astype(np.float32)
    wanted = onnxruntime.InferenceSession(DIGITS).run(None, {"image": image})[0].ravel()
    with daemon(tmp_path, "node", *ALONE, "--gateway", *SERVICES, "--peer", fleet.daemons[0].address) as node:
        together = LocalFleet((node, fleet.daemons[0]))
        together.wait_until_measured()
        together.deploy_on("beside", together.daemons[:stages], tmp_path)
        assert set(node.gateway) == {"grpc", "http", "metrics"}
        assert ask_digits(node.gateway["http"]) == pytest.approx(wanted, abs=1e-5)
        status, page = fetch(node.gateway["metrics"], "/metrics")
        assert status == 200 and b"mesh_inference_requests_total{" in page
        together.run("undeploy", "beside").ok()


def test_a_node_with_open_requests_stops_in_time(tmp_path: Path) -> None:
    with daemon(tmp_path, "node", *ALONE, "--gateway", *SERVICES) as node:
        alone = LocalFleet((node,))
        alone.wait_until_measured()
        alone.deploy("beside", 1)
        ask_digits(node.gateway["http"])  # from now on a stream is open
        assert node.stop(signal.SIGTERM) == 0


def test_a_coordinator_serves_what_its_nodes_compute(fleet: LocalFleet, tmp_path: Path) -> None:
    with daemon(tmp_path, "coordinator", *fleet.seeds, "--gateway", *SERVICES, "--allow-load") as coordinator:
        fleet.run("deploy", str(DIGITS), "--name", "beside", "--stages", "1").ok()
        assert fetch(coordinator.gateway["http"], "/v2/models/beside/ready")[0] == 200
        assert len(ask_digits(coordinator.gateway["http"])) == 10
        status, _ = fetch(coordinator.gateway["http"], "/v2/repository/models/beside/unload", {})
        assert status == 200
        assert "beside" not in fleet.names()


def test_a_node_with_stated_power_tells_what_a_frame_takes(tmp_path: Path) -> None:
    with daemon(tmp_path, "node", *ALONE, "--watts-busy", "15", "--watts-idle", "3") as node:
        alone = LocalFleet((node,))
        alone.wait_until_measured()
        alone.deploy("beside", 1)
        (each,) = alone.run("nodes", "--json").ok().document()["nodes"]
        assert each["watts"] == {"busy": 15.0, "idle": 3.0}
        energy = alone.run("bench", "beside", "--seconds", "1", "--json").ok().document()["energy"]
        assert energy["joules_per_frame"] > 0
        (stage,) = alone.run("status", "beside", "--json").ok().document()["deployments"][0]["stages"]
        assert stage["load_ms"] > 0 and stage["peak_bytes"] > 0
        assert "mJ per frame" in alone.run("bench", "beside", "--seconds", "0.5").ok().stdout
        plan = alone.run("plan", str(DIGITS), "--objective", "energy", "--json").ok().document()
        assert "J per frame" in plan["certificate"]


def test_refusals(tmp_path: Path) -> None:
    node = ("node", "--no-mdns", "--data-dir", str(tmp_path / "node"), "--listen", "127.0.0.1:0")
    run(*node, "--watts-busy", "5").fails("usage", 2, "go together")
    run(*node, "--watts-busy", "5", "--watts-idle", "6").fails("usage", 2, "no sense")
    run(*node, "--http", "127.0.0.1:0").fails("usage", 2, "--gateway")
    run(*node, "--gateway", "--grpc", "off", "--http", "off").fails("usage", 2, "nothing to serve")
    run(*node, "--gateway", "--http", "0.0.0.0:0").fails("usage", 2, "--insecure")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        run(*node, "--gateway", "--grpc", address, "--http", "off", "--metrics", "off").fails("listen", 1, address)
