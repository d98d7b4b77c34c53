"""``qtool inspect``: what is in a model file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qtool.cli.console import Console
from qtool.cli.options.groups import ANALYSES, DATA
from qtool.cli.options.model import input_shapes, model_path, trust
from qtool.cli.options.shared import (
    AllowGlobalOption,
    BatchSizeOption,
    DebugOption,
    EvalDataOption,
    InputShapeOption,
    JsonOption,
    LimitOption,
    OptionalModelArgument,
    OptionalTargetOption,
    PreprocessOption,
    QuietOption,
    TrustPickleOption,
)
from qtool.cli.output.adapter import show_adapter
from qtool.cli.output.inspect import analysis_json, show_analysis
from qtool.errors import UsageError

if TYPE_CHECKING:
    from qtool.workflows.diagnose.model_facts import GraphFacts, InspectReport, MultiplyAdds, ProgramFacts


def inspect(
    model: OptionalModelArgument = None,
    input_shape: InputShapeOption = None,
    trust_pickle: TrustPickleOption = False,
    allow_global: AllowGlobalOption = None,
    largest: Annotated[
        int,
        typer.Option(
            "--largest", metavar="N", min=0, help="How many of the largest tensors to list.", rich_help_panel=ANALYSES
        ),
    ] = 10,
    memory: Annotated[
        bool, typer.Option("--memory", help="Lifetimes of activations, and peak memory.", rich_help_panel=ANALYSES)
    ] = False,
    flow: Annotated[
        str | None,
        typer.Option(
            "--flow",
            metavar="TENSOR",
            help="Producer, readers and range of a tensor.",
            rich_help_panel=ANALYSES,
        ),
    ] = None,
    macs: Annotated[
        bool, typer.Option("--macs", help="Multiply-adds (MACs) of every node.", rich_help_panel=ANALYSES)
    ] = False,
    partition: Annotated[
        bool, typer.Option("--partition", help="Subgraphs on integers, and their borders.", rich_help_panel=ANALYSES)
    ] = False,
    nodes: Annotated[
        bool, typer.Option("--nodes", help="Every node, with what it reads and makes.", rich_help_panel=ANALYSES)
    ] = False,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="PATTERN",
            help="With --nodes: these names or operators only; repeatable.",
            rich_help_panel=ANALYSES,
        ),
    ] = None,
    target: OptionalTargetOption = None,
    data: EvalDataOption = None,
    calib_stats: Annotated[
        Path | None,
        typer.Option(
            "--calib-stats", metavar="FILE", help="Statistics of `qtool calibrate`, for --flow.", rich_help_panel=DATA
        ),
    ] = None,
    preprocess: PreprocessOption = None,
    batch_size: BatchSizeOption = None,
    limit: LimitOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Shows what is in a model: inputs, operators, parameters.

    Also of adapters. For graphs: multiply-adds, and how much is quantized.
    """
    from qtool.lora.readers.recognition import is_adapter
    from qtool.workflows.diagnose.inspect import inspect_model

    console = Console(json=json, quiet=quiet, debug=debug)
    path = model_path(model)
    analyses = memory or macs or partition or flow is not None
    if not nodes and (include or target is not None):
        raise UsageError("--include and --target have no effect without --nodes", fix="add --nodes, or drop them")
    if nodes and analyses:
        raise UsageError("--nodes lists the graph as it is, and the analyses do not", fix="run them one by one")
    if nodes:
        _list_nodes(console, path, include or [], input_shape, target, json=json)
        return
    if not analyses and (data is not None or calib_stats is not None):
        raise UsageError(
            "--data and --calib-stats have no effect without an analysis",
            fix="add one: --memory, --flow TENSOR, --macs or --partition",
        )
    if is_adapter(path):
        if analyses:
            raise UsageError(f"{path} is an adapter, which has no graph", fix="merge it first: qtool merge-lora")
        show_adapter(console, path, json=json)
        return
    shapes = input_shapes(input_shape)
    if shapes.dtypes:
        raise UsageError(
            "the types of a graph's inputs are fixed, but --input-shape gives one", fix="leave out what follows ':'"
        )
    found = None
    if analyses:
        from qtool.llm.text_for_model import text_options
        from qtool.workflows.diagnose.inspect_graph import AnalysisRequest, analyse
        from qtool.workflows.quantize.data_request import DataRequest

        samples = None
        if data is not None:
            text = text_options((path,), None, None)
            samples = DataRequest(source=data, preprocess=preprocess, batch_size=batch_size, limit=limit, text=text)
        request = AnalysisRequest(
            model=path,
            input_shapes=shapes.dims,
            data=samples,
            statistics=calib_stats,
            memory=memory,
            flow=flow,
            macs=macs,
            partition=partition,
        )
        found = analyse(request, console.progress())
        if not json:
            show_analysis(console, found, largest)
            return
    report = inspect_model(path, input_shapes=shapes.dims, largest=largest, trust=trust(trust_pickle, allow_global))
    if json:
        console.json({**asdict(report), "path": str(report.path), **({} if found is None else analysis_json(found))})
        return
    _show(console, report)


def _list_nodes(
    console: Console,
    path: Path,
    include: list[str],
    input_shape: list[str] | None,
    target: str | None,
    *,
    json: bool,
) -> None:
    from qtool.backends.this_machine import target_named
    from qtool.cli.output.nodes import nodes_as_json, show_nodes
    from qtool.workflows.diagnose.list_nodes import list_nodes

    rows = list_nodes(
        path,
        include=include,
        input_shapes=input_shapes(input_shape).dims,
        target=None if target is None else target_named(target).scheme,
        progress=console.progress(),
    )
    if json:
        console.json({"schema": "qtool.nodes/1", "path": str(path), "nodes": nodes_as_json(rows)})
    else:
        show_nodes(console, rows, with_kernels=target is not None)


def _show(console: Console, report: InspectReport) -> None:
    rows: list[tuple[str, object]] = [
        ("kind", report.kind),
        ("size", f"{report.nbytes:,} bytes" + "".join(f" + {name}" for name in report.data_files)),
    ]
    if report.tensors:
        rows.append(("parameters", f"{report.parameters:,} in {report.tensors} tensors"))
    if report.graph is not None:
        rows += _graph_rows(report.graph)
    if report.program is not None:
        rows += _program_rows(report.program)
    rows += [("metadata", f"{key} = {value[:80]}") for key, value in report.metadata.items()]
    console.table(str(report.path), ("", ""), rows)
    program = report.graph or report.program
    if program is not None and program.operators:
        console.table("Operators", ("operator", "nodes"), list(program.operators.items()))
    if report.tensors:
        console.table(
            "Parameters by type",
            ("type", "tensors", "parameters", "bytes"),
            [
                (name, facts.tensors, f"{facts.parameters:,}", f"{facts.nbytes:,}")
                for name, facts in report.dtypes.items()
            ],
        )
    if report.largest:
        console.table(
            "Largest tensors",
            ("tensor", "type", "shape", "bytes"),
            [
                (tensor.name, tensor.dtype, " × ".join(map(str, tensor.shape)), f"{tensor.nbytes:,}")
                for tensor in report.largest
            ],
        )


def _graph_rows(graph: GraphFacts) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("producer", graph.producer or "not named"),
        ("opset", ", ".join(f"{domain} {version}" for domain, version in graph.opsets.items())),
        *_input_rows(graph),
        *(("output", text) for text in graph.outputs),
        ("multiply-adds", _work(graph.multiply_adds)),
    ]
    quantization = graph.quantization
    if not (quantization.quantize_nodes or quantization.dequantize_nodes or quantization.integer_nodes):
        return [*rows, ("quantized", "no")]
    return [
        *rows,
        (
            "quantized",
            f"{quantization.quantized_layers} of {quantization.layers} layers, "
            f"{_share(quantization.quantized_parameters, quantization.weight_parameters)} of the weights, "
            f"{_share(graph.multiply_adds.quantized, graph.multiply_adds.total)} of the multiply-adds",
        ),
        (
            "quantizing nodes",
            f"{quantization.quantize_nodes} QuantizeLinear, {quantization.dequantize_nodes} DequantizeLinear, "
            f"{quantization.integer_nodes} of integer type",
        ),
    ]


def _program_rows(program: ProgramFacts) -> list[tuple[str, object]]:
    return [
        ("producer", program.producer),
        *_input_rows(program),
        *(("output", text) for text in program.outputs),
        *(("note", text) for text in program.warnings),
    ]


def _input_rows(program: GraphFacts | ProgramFacts) -> list[tuple[str, object]]:
    layouts = {f"{name} ": f", {layout.upper()}" for name, layout in program.layouts.items()}
    return [
        ("input", text + next((layout for name, layout in layouts.items() if text.startswith(name)), ""))
        for text in program.inputs
    ]


def _work(work: MultiplyAdds) -> str:
    assumed = ", ".join(f"{name}={length}" for name, length in work.assumed.items())
    text = f"{work.total:,} in {work.known_nodes} nodes{f' ({assumed})' if assumed else ''}"
    if work.unknown_nodes:
        text += f"; {work.unknown_nodes} nodes of unknown shape (give lengths with --input-shape)"
    return text


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"
