"""What runs beside a sensor: sources of frames, sinks of answers, and the Python API of the mesh."""
