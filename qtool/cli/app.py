"""The command line: its commands, in the order in which the main job needs them, and the one error boundary."""

from __future__ import annotations

import gc
import io
import os
import sys
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from qtool.cli.failures import report_failure
from qtool.cli.help import CONTEXT_SETTINGS, HELP_ALL, HELP_OPTIONS, GroupedCommand, GroupedCommands
from qtool.cli.log import with_log
from qtool.cli.options.groups import ADAPTERS, CONVERT, GRAPH, QUANTIZE, UNDERSTAND
from qtool.cli.options.shared import debug_is_on
from qtool.version import __version__

# Each is a function of this name in the file of this name, with the group in which `qtool --help` shows it.
COMMANDS: Mapping[str, str] = {
    "convert": CONVERT,
    "calibrate": QUANTIZE,
    "quantize": QUANTIZE,
    "finetune": QUANTIZE,
    "sensitivity": QUANTIZE,
    "dequantize": QUANTIZE,
    "merge_lora": ADAPTERS,
    "report": UNDERSTAND,
    "verify": UNDERSTAND,
    "explain": UNDERSTAND,
    "inspect": UNDERSTAND,
    "diff": UNDERSTAND,
    "audit": UNDERSTAND,
    "doctor": UNDERSTAND,
    "optimize": GRAPH,
    "split": GRAPH,
    "passes": GRAPH,
}


class CommandGroup(GroupedCommands):
    """Runs commands and turns every error into two lines on stderr and an exit code.

    The boundary is here, not around ``app()``, so that test runners and embedders, which call the group, meet it too.

    ======  =================================================================================
    0       the command did what it was asked to do
    1       it did, but a figure misses a gate that was set for it
    2       it could not: the input, the options or the place to write to are to be corrected
    3       a defect in qtool
    130     interrupted with Ctrl-C
    141     the reader of stdout went away
    ======  =================================================================================
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Parses, runs and exits; with ``standalone_mode=False``, returns the exit code instead."""
        if not kwargs.get("standalone_mode", True):
            return super().main(*args, **kwargs)
        try:
            result = super().main(*args, **{**kwargs, "standalone_mode": False})
            code = result if isinstance(result, int) else 0
        except Exception as error:  # noqa: BLE001 - the boundary: everything left ends here
            code = report_failure(error, debug=False)
        sys.exit(code)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Finds the command and gives it the settings of the working folder; asking for help needs none."""
        if not ctx.resilient_parsing and not {*HELP_OPTIONS, HELP_ALL} & set(args):
            from qtool.cli.options.settings import defaults

            functions = {
                command.callback.__name__.replace("_", "-"): command.callback
                for command in app.registered_commands
                if command.callback
            }
            ctx.default_map = defaults(Path(), functions)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs the chosen command; every error but the parser's own signals becomes an exit code."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except typer.Exit:
            raise
        except (Exception, KeyboardInterrupt) as error:
            raise typer.Exit(report_failure(error, debug=debug_is_on(ctx))) from error
        return result


app = typer.Typer(
    name="qtool",
    cls=CommandGroup,
    context_settings=dict(CONTEXT_SETTINGS),
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Makes trained models small and fast without breaking them.

    Converts models to ONNX and quantizes them to INT8: post-training quantization (PTQ) in QDQ form, with GPTQ,
    SmoothQuant, cross-layer equalization and bias correction where they help, or dynamic quantization. Then it proves
    what the result gains and loses.
    """
    if version:
        typer.echo(f"qtool {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _name, _group in COMMANDS.items():
    _function = getattr(import_module(f"qtool.cli.{_name}"), _name)
    app.command(cls=GroupedCommand, rich_help_panel=_group)(with_log(_function))


def main() -> None:
    """Runs the command line on this process's arguments and exits."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal with a small character set shows a "?" instead of breaking the command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # Read once, when torch is loaded. Its threads spin while they wait for each other, which where other programs run
    # makes seconds of a tenth of one; asleep they cost next to nothing.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # What a library warns of is about its own lines of code; what a person should know, commands say themselves.
    if "--debug" not in sys.argv and not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        app()
    finally:
        # The process ends: a last search for cycles in all that torch has loaded would take a second for nothing.
        gc.freeze()
