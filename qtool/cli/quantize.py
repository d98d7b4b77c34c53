"""``qtool quantize``: post-training INT8, static in QDQ form or dynamic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qtool.cli.console import Console
from qtool.cli.locking import lock_of, recorded_arguments, run_locked
from qtool.cli.options.goal import (
    MaxDropOption,
    MinAgreementOption,
    MinSqnrOption,
    TimeBudgetOption,
    check_goal,
    goal_of,
    show_mixed,
)
from qtool.cli.options.model import model_path, model_source, trust
from qtool.cli.options.scheme import (
    EffortName,
    IntegerType,
    Method,
    MethodOptions,
    SchemeName,
    SchemeOptions,
)
from qtool.cli.options.search import (
    BiasCorrectionOption,
    CleOption,
    GptqOption,
    MaxFloatOption,
    ReconstructionOption,
    SmoothQuantOption,
    WeightClippingOption,
    most_float_of,
)
from qtool.cli.options.shared import (
    AllowGlobalOption,
    BatchSizeOption,
    CalibDataListOption,
    DebugOption,
    FactoryKwargsOption,
    FactoryOption,
    ForceOption,
    InputShapeOption,
    JsonOption,
    LimitOption,
    OptionalModelArgument,
    OutputDirOption,
    OutputOption,
    PreprocessOption,
    QuietOption,
    TargetOption,
    ThreadsOption,
    TrustPickleOption,
)
from qtool.cli.options.timing import MachineProfileOption, SmallestOption, timing_of
from qtool.errors import UsageError


def quantize(
    context: typer.Context,
    model: OptionalModelArgument = None,
    calib_data: CalibDataListOption = None,
    calib_stats: Annotated[
        Path | None,
        typer.Option(
            "--calib-stats",
            metavar="FILE",
            help="Statistics of `qtool calibrate`: no pass over the data, which then only serves to compare.",
            show_default=False,
        ),
    ] = None,
    output: OutputOption = None,
    output_dir: OutputDirOption = None,
    target: TargetOption = None,
    machine_profile: MachineProfileOption = None,
    smallest: SmallestOption = False,
    scheme: Annotated[
        SchemeName,
        typer.Option(
            "--scheme",
            help="static: ranges of activations are fixed, from data. dynamic: MatMul and Gemm find them as they run.",
        ),
    ] = SchemeName.STATIC,
    per_channel: Annotated[
        bool | None,
        typer.Option(
            "--per-channel/--per-tensor",
            help="One weight scale an output channel, or one a tensor. Default: the target's.",
            show_default=False,
        ),
    ] = None,
    weights_symmetric: Annotated[
        bool | None,
        typer.Option(
            "--weights-symmetric/--weights-asymmetric",
            help="Zero point of weights fixed, or free. Default: the target's.",
            show_default=False,
        ),
    ] = None,
    activations_symmetric: Annotated[
        bool | None,
        typer.Option(
            "--activations-symmetric/--activations-asymmetric",
            help="Zero point of activations fixed, or free. Default: the target's.",
            show_default=False,
        ),
    ] = None,
    activation_type: Annotated[
        IntegerType | None,
        typer.Option("--activation-type", help="Integers of activations. Default: the target's.", show_default=False),
    ] = None,
    weight_type: Annotated[
        IntegerType | None,
        typer.Option("--weight-type", help="Integers of weights. Default: the target's.", show_default=False),
    ] = None,
    effort: Annotated[
        EffortName, typer.Option("--effort", help="How much time goes into the quality of the result.")
    ] = EffortName.BALANCED,
    method: Annotated[
        Method,
        typer.Option("--method", help="How ranges of activations are found; auto chooses for each by the outputs."),
    ] = Method.AUTO,
    percentile: Annotated[
        float | None,
        typer.Option(
            "--percentile", help="percentile: percent of the values to keep. Default: 99.99.", show_default=False
        ),
    ] = None,
    spread: Annotated[
        float | None,
        typer.Option(
            "--spread", help="moving-average: standard deviations to add at each end. Default: 0.", show_default=False
        ),
    ] = None,
    entropy_bins: Annotated[
        int | None,
        typer.Option("--entropy-bins", help="entropy: bins to search in. Default: 1024.", show_default=False),
    ] = None,
    mse_candidates: Annotated[
        int | None,
        typer.Option("--mse-candidates", help="mse: positions tried for each end. Default: 40.", show_default=False),
    ] = None,
    bias_correction: BiasCorrectionOption = None,
    cle: CleOption = None,
    smoothquant: SmoothQuantOption = None,
    gptq: GptqOption = None,
    weight_clipping: WeightClippingOption = None,
    reconstruction: ReconstructionOption = None,
    max_float: MaxFloatOption = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="PATTERN",
            help="Quantize only nodes of this name or operator: Conv, /head/*, re:layer[0-3].*; repeatable.",
            show_default=False,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            metavar="PATTERN",
            help="Keep nodes of this name or operator float; repeatable.",
            show_default=False,
        ),
    ] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(
            "--dynamic",
            metavar="PATTERN",
            help="static: let MatMul and Gemm of this name or operator find their ranges as they run; repeatable.",
            show_default=False,
        ),
    ] = None,
    min_sqnr: MinSqnrOption = None,
    min_agreement: MinAgreementOption = None,
    max_drop: MaxDropOption = None,
    time_budget: TimeBudgetOption = None,
    preprocess: PreprocessOption = None,
    batch_size: BatchSizeOption = None,
    limit: LimitOption = None,
    factory: FactoryOption = None,
    model_kwargs: FactoryKwargsOption = None,
    input_shape: InputShapeOption = None,
    trust_pickle: TrustPickleOption = False,
    allow_global: AllowGlobalOption = None,
    threads: ThreadsOption = 0,
    locked: Annotated[
        Path | None,
        typer.Option(
            "--locked",
            metavar="MANIFEST",
            help="Repeat the run of this manifest byte for byte, or say what differs.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, run nothing and write nothing.")] = False,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Quantizes a model to INT8 and checks the result in onnxruntime before it is put in place."""
    if locked is not None:
        run_locked(quantize, context, locked)
        return
    from qtool.backends.onnxruntime_cpu.this_machine import target_named
    from qtool.cli.output.quantize import plan_as_json, report_as_json, show_plan, show_report
    from qtool.schemes import as_dynamic
    from qtool.selection import NodeSelection
    from qtool.workflows.quantize.data_request import data_request
    from qtool.workflows.quantize.quantize import plan_quantization
    from qtool.workflows.quantize.quantize import quantize as run
    from qtool.workflows.quantize.request import QuantizeRequest
    from qtool.workflows.tune.efforts import Effort, searches

    console = Console(json=json, quiet=quiet, debug=debug)
    source = model_source(model_path(model), factory, model_kwargs, input_shape, trust(trust_pickle, allow_global))
    data = None
    if calib_data:
        data = data_request(calib_data, preprocess=preprocess, batch_size=batch_size, limit=limit)
    patterns = {"include": include, "exclude": exclude, "dynamic": dynamic}
    selection = NodeSelection(**{name: tuple(given or ()) for name, given in patterns.items()})
    schemes = SchemeOptions(
        per_channel=per_channel,
        weights_symmetric=weights_symmetric,
        activations_symmetric=activations_symmetric,
        activation_type=activation_type,
        weight_type=weight_type,
    )
    machine = target_named(target)
    integers = schemes.changed(machine.scheme, dynamic=scheme is SchemeName.DYNAMIC)
    # A run that is repeated elsewhere is for the same machine.
    context.params["target"] = machine.scheme.target
    console.progress().note(machine.description)
    if scheme is SchemeName.DYNAMIC:
        from qtool.cli.quantize_dynamic import refuse_static_options, run_dynamic
        from qtool.workflows.quantize.dynamic_request import DynamicRequest

        refuse_static_options(context)
        asked = DynamicRequest(
            source=source,
            data=data,
            scheme=as_dynamic(integers),
            selection=selection,
            output=output,
            output_dir=output_dir,
            threads=threads,
            force=force,
            arguments=recorded_arguments(context),
            locked=lock_of(context),
        )
        run_dynamic(console, asked, json=json, dry_run=dry_run)
        return
    methods = MethodOptions(
        percentile=percentile, spread=spread, entropy_bins=entropy_bins, mse_candidates=mse_candidates
    )
    request = QuantizeRequest(
        source=source,
        data=data,
        statistics=calib_stats,
        scheme=integers,
        method=methods.range_method(method),
        method_name=method.value,
        selection=selection,
        searches=searches(
            Effort(effort.value),
            ranges=method is Method.AUTO,
            cross_layer_equalization=cle,
            smoothquant=smoothquant,
            bias_correction=bias_correction,
            weight_clipping=weight_clipping,
            gptq=gptq,
            layer_reconstruction=reconstruction,
            most_float=most_float_of(max_float),
        ),
        timing=timing_of(machine, machine_profile, lock_of(context), smallest=smallest),
        goal=goal_of(min_sqnr, min_agreement, max_drop),
        time_budget_s=time_budget,
        output=output,
        output_dir=output_dir,
        threads=threads,
        force=force,
        arguments=recorded_arguments(context),
        locked=lock_of(context),
    )
    if request.goal is not None and max_float is not None:
        raise UsageError(
            f"--max-float and {request.goal.description} both say what stays float", fix="give only one of them"
        )
    if dry_run:
        plan = plan_quantization(request, console.progress())
        if json:
            console.json(plan_as_json(plan, request.scheme))
        else:
            show_plan(console, plan, request.scheme)
        return
    report = run(request, console.progress())
    if json:
        console.json(report_as_json(report, request))
    else:
        show_report(console, report, request)
        if report.mixed is not None:
            show_mixed(console, report.mixed)
    check_goal(report.mixed)
