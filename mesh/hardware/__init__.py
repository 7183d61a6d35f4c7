"""What this device has and what it can do: limits of the process, execution providers, measured speed."""

import os

# Some builds of ONNX Runtime report over the network what they load and leave files in the folder for temporary
# ones. What runs on the mesh stays there. The runtime reads this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
