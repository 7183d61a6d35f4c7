"""The checks of `scripts/check_gateway`: a model cut over three lab devices, a gateway, and clients that know no mesh.

Every client runs on a device of its own and reaches the gateway over the lab's network.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from check_lab import MESH, MODEL, ROOT, call, lab, start_on, states

LAB = "gateways"
FLEET = """
[[device]]
name = "board"
count = 3
cpu = 0.3
memory = "400MB"
rate = "100Mbit"

[[device]]
name = "desk"
role = "client"

[[device]]
name = "user"
role = "client"
"""
"""The desk deploys and runs the gateway; the user has the clients."""

BOARDS = 3
MEASURED_WITHIN_S = 60.0
READY_WITHIN_S = 30.0
CLIENT_LIMIT_S = 240.0
STOP_WITHIN_S = 20.0
GRPC_PORT, HTTP_PORT, METRICS_PORT = 8001, 8000, 8002

BUF = [str(ROOT / ".venv-clients" / "bin" / "buf"), "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
SERVICE = "inference.GRPCInferenceService"
NOT_FOUND_EXIT = 40
"""Of buf curl: eight times the status' number."""


def run_on(device: str, *program: str, wanted: int = 0) -> str:
    """The output of `program` on a device; fails unless it ends with exit code `wanted`."""
    done = subprocess.run(
        [*MESH, "lab", "exec", "--name", LAB, device, "--", *program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=CLIENT_LIMIT_S,
    )
    assert done.returncode == wanted, f"{program[0]}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def wait_until_measured() -> None:
    deadline = time.monotonic() + MEASURED_WITHIN_S
    while time.monotonic() < deadline:
        nodes = json.loads(run_on("desk", "mesh", "nodes", "--json"))["nodes"]
        if sum(node["state"] == "ready" for node in nodes) == BOARDS:
            return
    raise AssertionError(f"not all of {BOARDS} nodes were ready within {MEASURED_WITHIN_S:g} s")


@contextlib.contextmanager
def gateway() -> Iterator[None]:
    """`mesh gateway` on the desk, until the block ends; it must end in an orderly way."""
    process = start_on(LAB, "desk", "mesh", "gateway", "--insecure", "--allow-load", "--json")
    try:
        assert process.stdout is not None
        told = process.stdout.readline()
        ports = {"grpc": GRPC_PORT, "http": HTTP_PORT, "metrics": METRICS_PORT}
        assert json.loads(told) == {kind: f"0.0.0.0:{port}" for kind, port in ports.items()}, told
        yield
    finally:
        process.terminate()
        _, talk = process.communicate(timeout=STOP_WITHIN_S)
    assert "Traceback" not in talk, talk
    assert process.returncode in (0, 143), f"the gateway ended with {process.returncode}: {talk}"


def check_buf(address: str) -> None:
    """By reflection: no protocol file is given."""
    url = f"http://{address}/{SERVICE}"
    told = json.loads(run_on("user", *BUF, "-d", '{"name": "digits"}', f"{url}/ModelMetadata"))
    assert told["inputs"][0]["name"] == "image", told
    image = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "contents": {"fp32Contents": [0.5] * 64}}
    infer = json.dumps({"modelName": "digits", "inputs": [image]})
    told = json.loads(run_on("user", *BUF, "-d", infer, f"{url}/ModelInfer"))
    assert len(told["outputs"][0]["contents"]["fp32Contents"]) == 10, told
    run_on("user", *BUF, "-d", '{"name": "none"}', f"{url}/ModelMetadata", wanted=NOT_FOUND_EXIT)
    print("buf curl: described, answered, refused by reflection alone")


def check_curl(address: str) -> None:
    url = f"http://{address}/v2/models/digits/infer"
    image = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.5] * 64}
    told = json.loads(run_on("user", "curl", "-sS", "--fail-with-body", "-d", json.dumps({"inputs": [image]}), url))
    assert len(told["outputs"][0]["data"]) == 10, told
    status = run_on("user", "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-d", "{", url)
    assert status == "400", status
    print("curl: answered and refused")


PROMETHEUS = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: mesh
    http_sd_configs: [{{url: "http://{address}/prometheus/targets", refresh_interval: 1s}}]
"""
SCRAPED_WITHIN_S = 60.0


def check_metrics(address: str) -> None:
    """promtool reads them, and Prometheus itself finds and scrapes the gateway and every node."""
    targets = json.loads(run_on("user", "curl", "-sS", f"http://{address}/prometheus/targets"))
    paths = [group["labels"].get("__metrics_path__", "/metrics") for group in targets]
    assert len(paths) == BOARDS + 1, targets
    for path in paths:
        page = run_on("user", "curl", "-sS", "--fail", f"http://{address}{path}")
        checked = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True)
        assert checked.returncode == 0, f"{path}: {checked.stdout}{checked.stderr}"
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "prometheus.yml"
        config.write_text(PROMETHEUS.format(address=address))
        options = [
            f"--config.file={config}",
            f"--storage.tsdb.path={folder}/data",
            "--web.listen-address=127.0.0.1:9090",
        ]
        server = start_on(LAB, "user", "prometheus", *options, "--log.level=error")
        try:
            deadline = time.monotonic() + SCRAPED_WITHIN_S
            query = "http://127.0.0.1:9090/api/v1/query?query=mesh_stage_frames_total>0"
            up = "http://127.0.0.1:9090/api/v1/query?query=up==1"
            while time.monotonic() < deadline:
                found = [_query(url) for url in (up, query)]
                if found == [BOARDS + 1, BOARDS]:
                    break
            else:
                raise AssertionError(f"up: {found[0]} of {BOARDS + 1}; nodes with frames: {found[1]} of {BOARDS}")
        finally:
            server.terminate()
            server.communicate(timeout=STOP_WITHIN_S)
    print(f"Prometheus: found and scraped the gateway and {BOARDS} nodes by itself; promtool has no complaint")


def _query(url: str) -> int:
    """How many series; 0 while Prometheus is not up."""
    words = ["curl", "-sS", "--fail", "--globoff", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", url]
    return len(json.loads(run_on("user", *words))["data"]["result"])


def main() -> None:
    if os.geteuid() != 0:
        print("SKIPPED: a lab needs root; nothing was checked", file=sys.stderr)
        return
    with lab(FLEET, LAB):
        wait_until_measured()
        plan = json.loads(run_on("desk", "mesh", "deploy", str(MODEL), "--name", "digits", "--stages", "3", "--json"))[
            "plan"
        ]
        devices = {device for stage in plan["stages"] for device in stage["devices"]}
        assert len(devices) == BOARDS, plan
        host = states(LAB)["desk"]["address"]
        grpc_address, http_address = f"{host}:{GRPC_PORT}", f"{host}:{HTTP_PORT}"
        with gateway():
            for environment, program in ((".venv-clients", "triton.py"), (".venv-kserve", "kserve_sdk.py")):
                python = str(ROOT / environment / "bin" / "python")
                script = str(ROOT / "scripts" / "clients" / program)
                print(run_on("user", python, script, grpc_address, http_address, str(MODEL)), end="", flush=True)
            check_buf(grpc_address)
            check_curl(http_address)
            check_metrics(f"{host}:{METRICS_PORT}")
        print(call("lab", "status", "--name", LAB), end="")
    print("ok: every client works unmodified")


main()
