"""``qtool quantize``: post-training quantization, static in QDQ form, dynamic, or of weights alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qtool.cli.console import Console
from qtool.cli.locking import lock_of, recorded_arguments, run_locked
from qtool.cli.options.cluster import ClusterOption, chosen_workers
from qtool.cli.options.float8 import refuse_with_float8
from qtool.cli.options.goal import (
    MaxDropOption,
    MinAgreementOption,
    MinSqnrOption,
    TimeBudgetOption,
    check_goal,
    goal_of,
    show_mixed,
)
from qtool.cli.options.groups import DATA, OUTPUT
from qtool.cli.options.model import model_path, model_source, trust
from qtool.cli.options.ranges import AUTO, MethodOption, chosen_range_method, with_range_parameters
from qtool.cli.options.scheme import (
    ActivationsSymmetricOption,
    ActivationTypeOption,
    DynamicOption,
    ExcludeOption,
    IncludeOption,
    PerChannelOption,
    SchemeName,
    SchemeOption,
    SchemeOptions,
    WeightsSymmetricOption,
    WeightTypeOption,
)
from qtool.cli.options.scheme_parameters import refuse_other_options, usual_scheme
from qtool.cli.options.search import (
    BiasCorrectionOption,
    CleOption,
    EffortOption,
    GptqOption,
    LearnedRoundingOption,
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
from qtool.cli.options.text import TokenizerOption, TokensOption, check_text
from qtool.cli.options.timing import MachineProfileOption, SmallestOption, timing_of
from qtool.cli.options.weight_only import AUTO as BEST
from qtool.cli.options.weight_only import (
    AccuracyLevelOption,
    BitsOption,
    BlockSizeOption,
    FormatOption,
    MaxPerplexityRiseOption,
    MaxSizeOption,
    WeightMethodOption,
    accuracy_level,
    bits_goal,
    block_method,
    weight_only_scheme,
)
from qtool.errors import UsageError
from qtool.weights.blocks.choices import WeightFormat
from qtool.workflows.tune.efforts import Effort


@with_range_parameters
def quantize(
    context: typer.Context,
    model: OptionalModelArgument = None,
    calib_data: CalibDataListOption = None,
    calib_stats: Annotated[
        Path | None,
        typer.Option(
            "--calib-stats",
            metavar="FILE",
            help="Statistics file of `qtool calibrate`.",
            rich_help_panel=DATA,
        ),
    ] = None,
    output: OutputOption = None,
    output_dir: OutputDirOption = None,
    target: TargetOption = None,
    machine_profile: MachineProfileOption = None,
    smallest: SmallestOption = False,
    scheme: SchemeOption = None,
    per_channel: PerChannelOption = None,
    weights_symmetric: WeightsSymmetricOption = None,
    activations_symmetric: ActivationsSymmetricOption = None,
    activation_type: ActivationTypeOption = None,
    weight_type: WeightTypeOption = None,
    bits: BitsOption = None,
    max_size: MaxSizeOption = None,
    max_perplexity_rise: MaxPerplexityRiseOption = None,
    block_size: BlockSizeOption = None,
    weight_method: WeightMethodOption = BEST,
    accuracy_level_name: AccuracyLevelOption = BEST,
    weight_format: FormatOption = WeightFormat.NBITS,
    effort: EffortOption = Effort.BALANCED,
    method: MethodOption = AUTO,
    cle: CleOption = None,
    smoothquant: SmoothQuantOption = None,
    gptq: GptqOption = None,
    bias_correction: BiasCorrectionOption = None,
    weight_clipping: WeightClippingOption = None,
    reconstruction: ReconstructionOption = None,
    learned_rounding: LearnedRoundingOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    dynamic: DynamicOption = None,
    min_sqnr: MinSqnrOption = None,
    min_agreement: MinAgreementOption = None,
    max_drop: MaxDropOption = None,
    max_float: MaxFloatOption = None,
    time_budget: TimeBudgetOption = None,
    preprocess: PreprocessOption = None,
    batch_size: BatchSizeOption = None,
    limit: LimitOption = None,
    tokenizer: TokenizerOption = None,
    tokens: TokensOption = None,
    factory: FactoryOption = None,
    model_kwargs: FactoryKwargsOption = None,
    input_shape: InputShapeOption = None,
    trust_pickle: TrustPickleOption = False,
    allow_global: AllowGlobalOption = None,
    threads: ThreadsOption = 0,
    cluster: ClusterOption = None,
    locked: Annotated[
        Path | None,
        typer.Option(
            "--locked",
            metavar="MANIFEST",
            help="Repeat this run, byte for byte.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan; write nothing.", rich_help_panel=OUTPUT)
    ] = False,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Quantizes a model to INT8 (PTQ), or its weights to 2-8 bits.

    Post-training quantization: ranges come from calibration data. Corrections (GPTQ, SmoothQuant, cross-layer
    equalization, ...) are kept by default ("auto") where fake quantization shows that they help.
    """
    if locked is not None:
        run_locked(quantize, context, locked)
        return
    from qtool.backends.registry import FALLBACK_BACKEND, backend_named
    from qtool.backends.this_machine import target_named
    from qtool.cli.output.quantize import plan_as_json, report_as_json, show_plan, show_report
    from qtool.llm.text_for_model import graph_of, text_options
    from qtool.schemes import as_dynamic
    from qtool.selection import NodeSelection
    from qtool.workflows.quantize.data_request import data_request
    from qtool.workflows.quantize.decoder_output import decoder_output
    from qtool.workflows.quantize.quantize import plan_quantization
    from qtool.workflows.quantize.quantize import quantize as run
    from qtool.workflows.quantize.request import QuantizeRequest
    from qtool.workflows.tune.efforts import FLOAT8, searches

    console = Console(json=json, quiet=quiet, debug=debug)
    check_text(calib_data or (), tokenizer, tokens)
    path = graph_of(model_path(model))
    output = context.with_resource(
        decoder_output(model_path(model), output, output_dir, suffix="-quantized", force=force, writes=not dry_run)
    )
    source = model_source(path, factory, model_kwargs, input_shape, trust(trust_pickle, allow_global))
    data = None
    if calib_data:
        text = text_options((path,), tokenizer, tokens)
        data = data_request(calib_data, preprocess=preprocess, batch_size=batch_size, limit=limit, text=text)
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
    if scheme is None:
        runs_dynamic_layers = backend_named(machine.scheme.backend).runs_dynamic_layers
        scheme = usual_scheme(context, source, runs_dynamic_layers=runs_dynamic_layers, has_data=data is not None)
        if scheme is not SchemeName.STATIC:
            context.params["scheme"] = scheme
            console.progress().note("a language model: ranges are found as it runs (--scheme static: in data)")
    integers = schemes.changed(machine.scheme, dynamic=scheme is SchemeName.DYNAMIC)
    # A run that is repeated elsewhere is for the same machine.
    context.params["target"] = machine.scheme.target
    backend = backend_named(integers.backend)
    console.progress().note(machine.description)
    if integers.backend != FALLBACK_BACKEND:
        console.progress().note(f"judged by {backend.judged_in}")
    refuse_other_options(context, scheme)
    if integers.float8:
        refuse_with_float8(context)
    if scheme is SchemeName.WEIGHTS:
        from qtool.cli.schemes.weights import run_weights
        from qtool.workflows.quantize.weight_only_request import WeightOnlyRequest

        alone = weight_only_scheme(
            machine.scheme,
            bits=bits,
            block_size=block_size,
            per_channel=per_channel,
            symmetric=weights_symmetric,
            form=weight_format,
        )
        wanted = WeightOnlyRequest(
            source=source,
            data=data,
            scheme=alone,
            method=block_method(weight_method, has_data=data is not None),
            level=accuracy_level(accuracy_level_name, weight_format),
            goal=bits_goal(bits, min_sqnr, max_size, max_perplexity_rise, source.path, has_data=data is not None),
            selection=selection,
            output=output,
            output_dir=output_dir,
            threads=threads,
            force=force,
            arguments=recorded_arguments(context),
            locked=lock_of(context),
        )
        run_weights(console, wanted, json=json, dry_run=dry_run)
        return
    if scheme is SchemeName.DYNAMIC:
        from qtool.cli.schemes.dynamic import run_dynamic
        from qtool.workflows.quantize.dynamic_request import DynamicRequest

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
    request = QuantizeRequest(
        source=source,
        data=data,
        statistics=calib_stats,
        scheme=integers,
        method=chosen_range_method(method, context.params),
        method_name="minmax" if integers.float8 else method,
        selection=selection,
        searches=FLOAT8
        if integers.float8
        else searches(
            effort,
            ranges=method == AUTO,
            cross_layer_equalization=cle,
            smoothquant=smoothquant,
            bias_correction=bias_correction,
            weight_clipping=weight_clipping,
            gptq=gptq,
            layer_reconstruction=reconstruction,
            learned_rounding=learned_rounding,
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
        raise UsageError(f"--max-float and {request.goal.description} exclude each other", fix="give one of them")
    if cluster is not None and calib_stats is not None and request.goal is None:
        raise UsageError("--cluster has no effect with --calib-stats and no accuracy goal", fix="drop one of them")
    if dry_run:
        plan = plan_quantization(request, console.progress())
        if json:
            console.json(plan_as_json(plan, request.scheme))
        else:
            show_plan(console, plan, request.scheme)
        return
    with chosen_workers(cluster, console.progress(), threads=threads) as workers:
        report = run(request, console.progress(), workers)
    if json:
        console.json(report_as_json(report, request))
    else:
        show_report(console, report, request)
        if report.mixed is not None:
            show_mixed(console, report.mixed)
    check_goal(report.mixed)
