"""Pipelines: what a sensor publishes to what people want to know, as a file describes it.

`pipeline_file` reads the description. `decoding` turns a message into a picture or samples, `windows` cuts samples into
windows, `preparing` makes the model's tensors of them, `judging` makes labels, boxes or scores of its outputs. `runner`
does it all for one message, with the model behind a gateway's meaning. What carries messages is somebody else's.
"""
