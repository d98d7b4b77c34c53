"""``qtool passes``: what ``qtool optimize`` can do to a graph."""

from __future__ import annotations

from qtool.cli.console import Console
from qtool.cli.options.shared import DebugOption, JsonOption, QuietOption


def passes(json: JsonOption = False, quiet: QuietOption = False, debug: DebugOption = False) -> None:
    """Lists the passes of `qtool optimize`, in their order."""
    from qtool.passes.registry import PASSES

    console = Console(json=json, quiet=quiet, debug=debug)
    if json:
        found = [{"name": name, "effect": entry.effect, "runs": entry.runs} for name, entry in PASSES.items()]
        console.json({"schema": "qtool.passes/1", "passes": found})
        return
    rows = [(name, entry.effect, entry.runs) for name, entry in PASSES.items()]
    console.table("Passes of qtool optimize", ("pass", "effect", "runs"), rows)
