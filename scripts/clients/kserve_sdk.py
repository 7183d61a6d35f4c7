"""KServe's own clients against a gateway, gRPC and REST.

usage: kserve_sdk.py GRPC_ADDRESS HTTP_ADDRESS MODEL.onnx   MODEL is deployed as "digits"; run by scripts/check_gateway.
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np
import onnxruntime
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

MODEL = "digits"


async def main() -> None:
    grpc_address, http_address, path = sys.argv[1:]
    image = np.random.default_rng(7).random((1, 1, 8, 8), dtype=np.float32)
    (scores,) = onnxruntime.InferenceSession(path).run(None, {"image": image})

    def request() -> InferRequest:
        tensor = InferInput("image", list(image.shape), "FP32")
        tensor.set_data_from_numpy(image, binary_data=False)
        return InferRequest(model_name=MODEL, infer_inputs=[tensor], request_id="seven")

    grpc_client = InferenceGRPCClient(grpc_address)
    assert await grpc_client.is_server_live()
    assert await grpc_client.is_server_ready()
    assert await grpc_client.is_model_ready(MODEL)
    response = await grpc_client.infer(request())
    np.testing.assert_allclose(response.outputs[0].as_numpy(), scores, rtol=1e-4, atol=1e-5)
    await grpc_client.close()
    print("KServe gRPC: equal to local ONNX Runtime")

    rest_client = InferenceRESTClient(RESTConfig(protocol="v2", verify=False))
    url = f"http://{http_address}"
    assert await rest_client.is_server_live(url)
    assert await rest_client.is_server_ready(url)
    assert await rest_client.is_model_ready(url, MODEL)
    response = await rest_client.infer(url, request(), model_name=MODEL)
    np.testing.assert_allclose(response.outputs[0].as_numpy(), scores, rtol=1e-4, atol=1e-5)
    await rest_client.close()
    print("KServe REST: equal")


asyncio.run(main())
