"""Recognizes language models: graphs that look tokens up in a table, and give out a score for each token of it."""

from __future__ import annotations

import onnx_ir as ir

from qtool.graph.constants import reads_rows

# Tables of fewer rows are of positions, types or characters.
_FEWEST_TOKENS = 512


def predicts_tokens(graph: ir.Graph) -> bool:
    """Returns whether an output has logits for every token of an embedding table at every position.

    That is an output (samples, positions, tokens), beside a Gather of rows of a table (tokens, channels).
    """
    tables = [node.inputs[0] for node in graph if node.op_type.startswith("Gather") and reads_rows(node)]
    shapes = [table.shape for table in tables if table is not None and table.shape is not None]
    rows = {shape[0] for shape in shapes if len(shape) == 2}
    scored = {value.shape[-1] for value in graph.outputs if value.shape is not None and len(value.shape) == 3}
    return any(isinstance(count, int) and count >= _FEWEST_TOKENS for count in rows & scored)
