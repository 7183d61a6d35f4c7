"""Verified smaller and faster variants of a model, made on one machine out of the ONNX file and a small sample.

`optimizer.optimize` runs the passes of `table`, judges each variant with `verdict` against the float model as it
computes without any optimisation, times it with `timing` in turns with the float model, and returns a report;
`output_folder` writes what is offered. Nothing here trains, and nothing needs more than onnxruntime.
"""
