"""``qtool explain``: why one node or tensor is float, or slow, or inaccurate."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from qtool.cli.console import Console
from qtool.cli.options.shared import (
    BatchSizeOption,
    DebugOption,
    EvalDataOption,
    JsonOption,
    LimitOption,
    ModelArgument,
    PreprocessOption,
    QuietOption,
    ThreadsOption,
)

if TYPE_CHECKING:
    from qtool.metrics.tensor_error import TensorError
    from qtool.workflows.diagnose.explain import Explanation
    from qtool.workflows.diagnose.explained_facts import NodeFacts, TensorFacts

_BAR_COLUMNS = 40


def explain(
    model: ModelArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A node or a tensor; the end of its name is enough.")],
    data: EvalDataOption = None,
    preprocess: PreprocessOption = None,
    batch_size: BatchSizeOption = None,
    limit: LimitOption = 32,
    threads: ThreadsOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Explains why a node or tensor is float, slow or inaccurate.

    Of a quantized model; with what would change it.
    """
    from qtool.llm.text_for_model import text_options
    from qtool.workflows.diagnose.explain import ExplainRequest
    from qtool.workflows.diagnose.explain import explain as run
    from qtool.workflows.quantize.data_request import DataRequest

    console = Console(json=json, quiet=quiet, debug=debug)
    samples = None
    if data is not None:
        text = text_options((model,), None, None)
        samples = DataRequest(source=data, preprocess=preprocess, batch_size=batch_size, limit=limit, text=text)
    found = run(ExplainRequest(model=model, name=name, data=samples, threads=threads), console.progress())
    if json:
        console.json(_as_json(found))
    else:
        _show(console, found)


def _show(console: Console, found: Explanation) -> None:
    if found.node is not None:
        console.table(found.name, ("", ""), _node_rows(found.node, found.made_with))
    console.table(
        "Tensors",
        ("tensor", "part", "integers", "range", "values", "clipped", "rounding", "SQNR"),
        [_tensor_row(tensor) for tensor in found.tensors],
        _caption(found),
    )
    for tensor in found.tensors:
        if tensor.error is not None and (len(found.tensors) == 1 or tensor.role == "output"):
            _show_histogram(console, tensor.tensor, tensor.error)
    for advice in found.advice:
        console.say(f"{advice.problem}\n  {advice.fix}")


def _caption(found: Explanation) -> str:
    if found.samples:
        return (
            f"{found.samples} samples; the SQNR of a computed tensor is against the same model without quantization, "
            "and includes the noise of all layers before it"
        )
    return "--data shows clipping, rounding error and histogram of what is computed"


def _node_rows(node: NodeFacts, made_with: str | None) -> list[tuple[str, object]]:
    fate = node.fate
    if fate.integer:
        state = f"on integers, as {fate.kernel}"
    elif fate.absorbed:
        state = "fused into another kernel, or removed"
    else:
        state = f"in float, as {fate.kernel}"
    rows: list[tuple[str, object]] = [("node", f"{node.node} ({node.operator})"), ("in onnxruntime", state)]
    rows += [("because", fate.reason)] if fate.reason is not None else []
    rows += [("left float because", node.planned)] if node.planned is not None else []
    rows += [("conversions beside it", fate.conversions)] if fate.conversions else []
    if node.time is not None:
        text = f"{node.time.seconds * 1e6:,.0f} µs, {node.time.share:.1%} of the model"
        if node.time.float_seconds is not None:
            text += f"; {node.time.float_seconds * 1e6:,.0f} µs in float"
        rows.append(("time", text))
    return rows + ([("model made with", made_with)] if made_with else [])


def _tensor_row(tensor: TensorFacts) -> tuple[object, ...]:
    error, sqnr = tensor.error, "" if tensor.sqnr_db is None else f"{tensor.sqnr_db:.1f} dB"
    range_text = "" if tensor.low is None else f"{tensor.low:.4g} to {tensor.high:.4g}"
    if error is None:
        return (tensor.tensor, tensor.role, tensor.scheme or "float", range_text, "", "", "", sqnr)
    return (
        tensor.tensor,
        tensor.role,
        tensor.scheme,
        range_text,
        f"{error.minimum:.4g} to {error.maximum:.4g}",
        "" if error.clipped_share is None else f"{error.clipped_share:.3%}",
        "exact" if error.rounding_db is None else f"{error.rounding_db:.1f} dB",
        sqnr,
    )


def _show_histogram(console: Console, tensor: str, error: TensorError) -> None:
    largest = max((bar.share for bar in error.histogram), default=0.0)
    if largest <= 0:
        return
    rows = [
        (
            f"{bar.low:.4g}",
            f"{bar.high:.4g}",
            # What is there at all shows, however little.
            "#" * (max(round(bar.share / largest * _BAR_COLUMNS), 1) if bar.share else 0),
            f"{bar.share:.2%}",
            "" if bar.inside else "out of range",
        )
        for bar in error.histogram
    ]
    console.table(f"Values of {tensor}", ("from", "to", "", "share", "integers"), rows)


def _as_json(found: Explanation) -> dict[str, object]:
    return {"schema": "qtool.explain/1", **asdict(found)}
