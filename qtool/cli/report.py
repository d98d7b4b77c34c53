"""The command that compares quantized models with their float model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from qtool.cli.console import Console
from qtool.cli.options.groups import DATA, MEASUREMENTS
from qtool.cli.options.model import model_source, trust
from qtool.cli.options.report import (
    BaselineOption,
    BatchSizesOption,
    ChangesOption,
    ColdStartOption,
    FailIfOption,
    HistogramOption,
    HtmlOption,
    JunitOption,
    LayersOption,
    MarkdownOption,
    MetricOption,
    ProfileOption,
    ReportDataOption,
    ReportFileOption,
    RuntimeOption,
    StepSummaryOption,
    ThreadCountsOption,
    counts,
    runtimes,
)
from qtool.cli.options.shared import (
    AllowGlobalOption,
    DebugOption,
    FactoryKwargsOption,
    FactoryOption,
    ForceOption,
    InputShapeOption,
    JsonOption,
    LimitOption,
    OutputDirOption,
    PreprocessOption,
    QuietOption,
    ThreadsOption,
    TrustPickleOption,
)
from qtool.cli.options.text import NewTokensOption, PromptOption, ReportTokensOption, TokenizerOption
from qtool.cli.output.report import Destinations, deliver, destinations
from qtool.errors import UsageError

# Longer rows than calibration takes, since what is said late in a text is said of more.
_ROW_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """The models and the data to report on."""

    float_model: Path
    quantized_models: tuple[Path, ...]
    data: tuple[str, ...]
    preprocess: str | None
    is_calibration_data: bool = False


def report(
    float_model: Annotated[
        Path | None,
        typer.Argument(metavar="FLOAT", help="The float model. Default: that of the newest run."),
    ] = None,
    quantized_models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="QUANTIZED...",
            help="Quantized models, one or several. Default: that of the newest run.",
        ),
    ] = None,
    data: ReportDataOption = None,
    preprocess: PreprocessOption = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels", metavar="NAME", help="Array of class indices. Default: _label, if any.", rich_help_panel=DATA
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            min=1,
            help="Samples per run. Default: 16, or what the models fix.",
            rich_help_panel=DATA,
        ),
    ] = None,
    limit: LimitOption = None,
    tokenizer: TokenizerOption = None,
    tokens: ReportTokensOption = None,
    factory: FactoryOption = None,
    model_kwargs: FactoryKwargsOption = None,
    input_shape: InputShapeOption = None,
    trust_pickle: TrustPickleOption = False,
    allow_global: AllowGlobalOption = None,
    runtime: RuntimeOption = None,
    threads: ThreadsOption = 0,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, help="Rounds of timing.", rich_help_panel=MEASUREMENTS)
    ] = 25,
    no_latency: Annotated[
        bool, typer.Option("--no-latency", help="Do not time the models.", rich_help_panel=MEASUREMENTS)
    ] = False,
    metric: MetricOption = None,
    prompt: PromptOption = None,
    new_tokens: NewTokensOption = 48,
    batch_sizes: BatchSizesOption = None,
    thread_counts: ThreadCountsOption = None,
    cold_start: ColdStartOption = False,
    profile: ProfileOption = False,
    fail_if: FailIfOption = None,
    baseline: BaselineOption = None,
    changes: ChangesOption = False,
    layers: LayersOption = False,
    histogram: HistogramOption = None,
    output: ReportFileOption = None,
    markdown: MarkdownOption = None,
    html: HtmlOption = None,
    junit: JunitOption = None,
    step_summary: StepSummaryOption = False,
    output_dir: OutputDirOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Compares quantized models with float: accuracy, speed, size.

    Without models, it reports on the newest run of `qtool quantize` in the output folder.
    """
    from qtool.calib.datasets.images import Preprocess
    from qtool.llm.text_for_model import graph_of, text_options
    from qtool.metrics.task import metric_named
    from qtool.reporting.baseline import read_baseline
    from qtool.reporting.gates import enforce, parse_gate, told
    from qtool.workflows.report.report import ReportRequest, compare
    from qtool.workflows.report.report_data import DataSource
    from qtool.workflows.report.report_times import TimingOptions

    where = destinations(
        output=output,
        markdown=markdown,
        html=html,
        junit=junit,
        step_summary=step_summary,
        changes=changes,
        json=json,
        force=force,
    )
    gates = tuple(parse_gate(text) for text in fail_if or ())
    earlier = None if baseline is None else read_baseline(baseline)
    console = Console(json=json or where.markdown_on_stdout, quiet=quiet, debug=debug)
    chosen = _choose(float_model, tuple(quantized_models or ()), tuple(data or ()), preprocess, output_dir or Path())
    if chosen.is_calibration_data:
        console.warn(f"the model was calibrated on {chosen.data[0]}: new data may give worse figures")
    base, *others = map(graph_of, (chosen.float_model, *chosen.quantized_models))
    request = ReportRequest(
        float_model=base,
        quantized_models=tuple(others),
        datasets=tuple(map(DataSource.parse, chosen.data)),
        conversion=model_source(base, factory, model_kwargs, input_shape, trust(trust_pickle, allow_global)),
        preprocess=None if chosen.preprocess is None else Preprocess.parse(chosen.preprocess),
        labels=labels,
        batch_size=batch_size,
        limit=limit,
        times=TimingOptions(
            threads=threads,
            rounds=rounds,
            latency=not no_latency,
            cold_start=cold_start,
            profile=profile,
            batch_sizes=counts(batch_sizes, "--batch-sizes"),
            thread_counts=counts(thread_counts, "--thread-counts"),
        ),
        metric=None if metric is None else metric_named(metric),
        gates=gates,
        baseline=earlier,
        inside=_inside(layers, where),
        histograms=tuple(histogram or ()),
        runtimes=runtimes(runtime),
        text=text_options((base, *others), tokenizer, tokens, usual=_ROW_TOKENS),
        prompts=tuple(prompt or ()),
        new_tokens=new_tokens,
    )
    result = compare(request, console.progress())
    deliver(result, where, console)
    for verdict in result.verdicts:
        if verdict.outcome == "unproven":
            console.warn(f"not proven to fail: {told(result, verdict)}")
    enforce(result)


def _inside(layers: bool, where: Destinations) -> Literal["no", "if possible", "yes"]:
    """Says whether to look inside of the models; a page shows it where that can be done."""
    if layers:
        return "yes"
    return "if possible" if where.has_page else "no"


def _choose(
    float_model: Path | None,
    quantized_models: tuple[Path, ...],
    data: tuple[str, ...],
    preprocess: str | None,
    folder: Path,
) -> _Chosen:
    """Takes what was given, and the rest from the newest manifest in ``folder``."""
    if float_model is not None and quantized_models:
        if not data:
            raise UsageError("no evaluation data is given", fix="give it with --data, or as eval_data in qtool.toml")
        return _Chosen(float_model=float_model, quantized_models=quantized_models, data=data, preprocess=preprocess)
    if float_model is not None or quantized_models:
        raise UsageError(
            "only one model is given", fix="name both, float model first: qtool report FLOAT.onnx QUANTIZED.onnx"
        )
    from qtool.manifest import newest_manifest

    manifest = newest_manifest(folder)
    if manifest is None:
        raise UsageError(
            f"no model is given, and no run of `qtool quantize` has left its manifest in {folder.resolve()}",
            fix="name both models: qtool report FLOAT.onnx QUANTIZED.onnx --data DATA",
        )
    if not data and manifest.data is not None:
        data, preprocess = (manifest.data,), preprocess or manifest.options.get("preprocess")
    chosen = _choose(manifest.float_model.path, (manifest.quantized_model.path,), data, preprocess, folder)
    return replace(chosen, is_calibration_data=chosen.data == (manifest.data,))
