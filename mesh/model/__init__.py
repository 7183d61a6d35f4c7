"""Everything that knows ONNX: reading, summarising, cutting and comparing models. onnx and numpy only.

    read        a file or bytes  -> SourceModel (checked, self-contained, named by its SHA-256)
    summarise   SourceModel      -> Graph (operator groups, legal cuts, sizes; mesh.core.graph)
    extract     a pair of cuts   -> Segment, and its ONNX model as bytes
    compare     two sets of outputs -> Comparison; whole model against chained segments

Nothing here runs a model: whoever needs outputs hands in a function that does.
"""
