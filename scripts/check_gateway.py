"""The checks of `scripts/check_gateway`: a model cut over three lab devices, a gateway, and clients that know no mesh.

Every client runs on a device of its own and reaches the gateway over the lab's network.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

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
GRPC_PORT, HTTP_PORT = 8001, 8000

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
        assert json.loads(told) == {"grpc": f"0.0.0.0:{GRPC_PORT}", "http": f"0.0.0.0:{HTTP_PORT}"}, told
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
        print(call("lab", "status", "--name", LAB), end="")
    print("ok: every client works unmodified")


main()
