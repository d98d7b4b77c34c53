"""Runs passes over a model, in order, until none of them changes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Protocol, runtime_checkable

import onnx_ir as ir

from qtool.errors import InputError
from qtool.formats.library_noise import quiet_libraries
from qtool.graph.declared_lengths import declared_lengths
from qtool.passes.optimization.operators import Operators
from qtool.passes.registry import PASSES
from qtool.progress import Progress

# One pass can enable another; no graph is known to need more rounds.
_MOST_ROUNDS = 6
_FIRST_WITH_DEFAULTS = 4
# Metadata that the libraries leave on changed nodes.
_NOTES = "pkg.onnxscript."


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One run of a pass that changed something.

    Attributes:
        name: the pass.
        before: how many nodes there were.
        after: how many there are.
        operators: by how much the number of nodes of each operator grew; unchanged ones are left out.
        remark: the pass's own remark; None where the numbers of nodes are enough.
    """

    name: str
    before: int
    after: int
    operators: Mapping[str, int]
    remark: str | None = None


@runtime_checkable
class Remarking(Protocol):
    """A pass whose changes do not show in the numbers of nodes.

    Attributes:
        remark: what it did when it ran last, in words; None where it did nothing.
    """

    remark: str | None


def run_passes(
    model: ir.Model, names: Sequence[str], operators: Operators, progress: Progress, *, rounds: int = _MOST_ROUNDS
) -> tuple[Step, ...]:
    """Runs the passes of these names over ``model``, in place, and returns those that changed something.

    Inputs with a default value are inputs as long as the passes run: callers may give them another one. Passes that
    come last run once, when the others are done.

    Raises:
        InputError: a pass fails on this model.
    """
    steps: list[Step] = []
    last = tuple(name for name in names if PASSES[name].comes_last)
    turns = [*[tuple(name for name in names if name not in last)] * rounds, last]
    with (
        quiet_libraries(),
        _defaults_aside(model),
        declared_lengths(model),
        progress.task("optimizing", rounds * len(names)) as advance,
    ):
        counts, nodes = node_counts(model), len(model.graph)
        done, seen = False, dict[str, int]()
        for turn in turns:
            if done and turn is not last:
                continue
            worked = False
            for name in turn:
                advance(1)
                # Nothing has changed since it had its turn.
                if seen.get(name) == len(steps):
                    continue
                modified, remark = _run(model, name, operators)
                seen[name] = len(steps)
                if not modified and len(model.graph) == nodes:
                    continue
                after, nodes = node_counts(model), len(model.graph)
                steps.append(replace(_step(name, counts, after), remark=remark))
                seen[name] = len(steps)
                worked = worked or name != "infer-shapes"
                counts = after
            done = done or not worked
        _remove_notes(model)
    return tuple(steps)


def node_counts(model: ir.Model) -> Counter[str]:
    """Counts nodes by operator, those of subgraphs included; constants that are written as nodes do not count."""
    return Counter(
        node.op_type if node.domain == "" else f"{node.domain}.{node.op_type}"
        for node in model.graph.all_nodes()
        if node.op_type != "Constant"
    )


def make_pass(name: str, operators: Operators) -> ir.passes.PassBase:
    """Returns the pass of that name, a key of ``PASSES``."""
    entry = PASSES[name]
    module, _, attribute = entry.location.partition(":")
    producer = getattr(import_module(module), attribute)
    made: ir.passes.PassBase = producer(operators) if entry.takes_operators else producer()
    return made


def _run(model: ir.Model, name: str, operators: Operators) -> tuple[bool, str | None]:
    graph_pass = make_pass(name, operators)
    try:
        result = graph_pass(model)
    except Exception as error:  # the libraries' passes raise many kinds of errors on unusual graphs
        raise InputError(f"the pass {name} fails on this model", fix=f"leave it out: --skip {name}") from error
    return bool(result.modified), graph_pass.remark if isinstance(graph_pass, Remarking) else None


def _step(name: str, before: Counter[str], after: Counter[str]) -> Step:
    changes = {operator: after[operator] - before[operator] for operator in sorted({*before, *after})}
    return Step(
        name=name,
        before=before.total(),
        after=after.total(),
        operators={operator: change for operator, change in changes.items() if change},
    )


@contextmanager
def _defaults_aside(model: ir.Model) -> Iterator[None]:
    """Removes the default values of inputs until the block ends, so that no pass treats them as constants."""
    # Formats before version 4 list every constant as an input.
    old = (model.ir_version or _FIRST_WITH_DEFAULTS) < _FIRST_WITH_DEFAULTS
    kept = {}
    for value in [] if old else [value for value in model.graph.inputs if value.is_initializer()]:
        kept[value.name] = value.const_value
        del model.graph.initializers[value.name or ""]
        value.const_value = None
    try:
        yield
    finally:
        # A pass may have replaced the graph.
        for value in [value for value in model.graph.inputs if value.name in kept]:
            value.const_value = kept[value.name]
            model.graph.register_initializer(value)


def _remove_notes(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        for props in (node.metadata_props, *(value.metadata_props for value in node.outputs)):
            for key in [key for key in props if key.startswith(_NOTES)]:
                del props[key]
    for value in model.graph.initializers.values():
        for key in [key for key in value.metadata_props if key.startswith(_NOTES)]:
            del value.metadata_props[key]
