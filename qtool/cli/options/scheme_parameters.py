"""Which parameters of ``qtool quantize`` the schemes besides the static one take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

from qtool.cli.options.scheme import SchemeName
from qtool.errors import UsageError

if TYPE_CHECKING:
    from qtool.workflows.convert.model_source import ModelSource

_EVERY = frozenset(
    {
        *("model", "calib_data", "output", "output_dir", "target", "scheme", "per_channel", "weights_symmetric"),
        *("include", "exclude", "preprocess", "batch_size", "limit", "factory", "model_kwargs", "input_shape"),
        *("trust_pickle", "allow_global", "tokenizer", "tokens"),
        *("threads", "locked", "dry_run", "force", "json", "quiet", "verbose", "log_file", "debug", "help"),
    }
)
_WEIGHT_ONLY = frozenset(
    {
        *("bits", "block_size", "weight_method", "accuracy_level_name", "weight_format"),
        *("max_size", "max_perplexity_rise"),
    }
)
_UNDERSTOOD: Mapping[SchemeName, frozenset[str]] = {
    SchemeName.DYNAMIC: _EVERY | {"weight_type"},
    SchemeName.WEIGHTS: _EVERY | _WEIGHT_ONLY | {"min_sqnr"},
}


def refuse_other_options(context: typer.Context, scheme: SchemeName) -> None:
    """Refuses options that have no effect with a scheme.

    Those from a settings file count only where the file chooses the scheme as well.

    Raises:
        UsageError: one is given.
    """
    binding = {"COMMANDLINE"}
    if scheme is not SchemeName.STATIC and _source(context, "scheme") == "DEFAULT_MAP":
        binding.add("DEFAULT_MAP")
    for parameter in context.command.params:
        name = parameter.name or ""
        understood = name not in _WEIGHT_ONLY if scheme is SchemeName.STATIC else name in _UNDERSTOOD[scheme]
        if not understood and _source(context, name) in binding:
            negated = context.params.get(name) is False and parameter.secondary_opts
            option = (parameter.secondary_opts if negated else parameter.opts)[0]
            other = SchemeName.WEIGHTS if name in _WEIGHT_ONLY else SchemeName.STATIC
            raise UsageError(
                f"{option} has no effect with --scheme {scheme}", fix=f"drop {option}, or use --scheme {other}"
            )


def usual_scheme(
    context: typer.Context, source: ModelSource, *, runs_dynamic_layers: bool, has_data: bool
) -> SchemeName:
    """Returns the scheme where none is asked for: dynamic for language models, static for all others.

    A static range has to suit every token, and few tokens have the largest values by far. Options that only the static
    scheme has ask for it.
    """
    from qtool.analysis.token_logits import predicts_tokens
    from qtool.errors import QtoolError
    from qtool.formats.errors import FormatError
    from qtool.formats.onnx.onnx_file import OnnxFile

    others = [parameter.name or "" for parameter in context.command.params if parameter.name != "scheme"]
    given = {name for name in others if _source(context, name) in {"COMMANDLINE", "DEFAULT_MAP"}}
    # Who does the work has no say in what it is.
    if not (runs_dynamic_layers and has_data) or given - _UNDERSTOOD[SchemeName.DYNAMIC] - {"cluster"}:
        return SchemeName.STATIC
    try:
        is_language_model = source.is_graph and predicts_tokens(OnnxFile().read(source.path).graph)
    except (FormatError, QtoolError):
        # The workflow says it at the place where it belongs.
        return SchemeName.STATIC
    return SchemeName.DYNAMIC if is_language_model else SchemeName.STATIC


def _source(context: typer.Context, name: str) -> str | None:
    source = context.get_parameter_source(name)
    return None if source is None else source.name
