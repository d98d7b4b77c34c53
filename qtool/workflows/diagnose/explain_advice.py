"""Derives advice from the facts about a node and its tensors: problems, and the options that change them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtool.backends.qdq_placement.operators import OPERATORS

if TYPE_CHECKING:
    from qtool.workflows.diagnose.explained_facts import NodeFacts, TensorFacts

# Below this SQNR noise shows in most outputs; 8 bits over evenly distributed values leave about 50 dB.
_POOR_DB = 20.0
# Incoming noise dominates if it exceeds that of the tensor's own integers by this much.
_INHERITED_DB = 6.0
_MUCH_CLIPPED = 1e-3
# With so little of the range in use, three bits or more are lost.
_NARROW = 0.125
_SLOWER = 1.1


@dataclass(frozen=True, slots=True)
class Advice:
    """A problem, or a possible improvement.

    Attributes:
        problem: the problem.
        fix: the option of ``qtool quantize``, or another change.
    """

    problem: str
    fix: str


def advise(node: NodeFacts | None, tensors: Sequence[TensorFacts]) -> tuple[Advice, ...]:
    """Returns advice on a node and the tensors around it, the most important first."""
    found = [] if node is None else list(_about_node(node))
    name = None if node is None else node.node
    for tensor in tensors:
        found += _about_tensor(tensor, name)
    if node is not None and node.fate.integer and not found:
        found.append(Advice("no problem found", f"to keep it float anyway: --exclude '{node.node}'"))
    return tuple(dict.fromkeys(found))


def _about_node(node: NodeFacts) -> Iterator[Advice]:
    fate = node.fate
    if fate.reason is not None:
        yield Advice(f"it computes in float: {node.planned or fate.reason}", fate.fix or "")
    if fate.conversions > 1 and not fate.integer and not fate.absorbed and node.operator in OPERATORS:
        yield Advice(
            f"it is float between integers: {fate.conversions} conversions next to it",
            "quantize it too, or --exclude its neighbours as well",
        )
    if fate.integer and node.time is not None and node.time.float_seconds is not None:
        ratio = node.time.seconds / max(node.time.float_seconds, 1e-9)
        if ratio > _SLOWER:
            yield Advice(f"integers take {ratio:.1f} times as long as float here", f"--exclude '{node.node}'")


def _about_tensor(tensor: TensorFacts, node: str | None) -> Iterator[Advice]:
    error = tensor.error
    if tensor.scheme is None and tensor.sqnr_db is not None and tensor.sqnr_db < _POOR_DB and tensor.role != "input":
        yield Advice(
            f"'{tensor.tensor}' is poor ({tensor.sqnr_db:.1f} dB), by noise from before it",
            "explain what it is made from; `qtool sensitivity` ranks the layers",
        )
    if error is None:
        return
    name, activation = f"'{tensor.tensor}'", "weight" not in tensor.role and "bias" not in tensor.role
    own = _worse(error.clipping_db, error.rounding_db)
    if error.clipped_share is not None and error.clipped_share > _MUCH_CLIPPED and error.clipping_db is not None:
        yield Advice(
            f"{error.clipped_share:.2%} of {name} is clipped ({error.clipping_db:.1f} dB)",
            "--method minmax, or --calib-data with samples like these",
        )
    if activation and error.core_share < _NARROW:
        yield Advice(
            f"a few outliers set the range of {name}: 99.9 % of it fills {error.core_share:.1%} of the integers",
            "--smoothquant, --method percentile or --method mse"
            + (f", or --dynamic '{node}'" if node is not None else ""),
        )
    elif activation and error.used_share < _NARROW:
        yield Advice(
            f"these samples fill {error.used_share:.1%} of the range of {name}",
            "--calib-data with samples like these, or --method mse",
        )
    if not activation and error.rounding_db is not None and error.rounding_db < _POOR_DB and "bias" not in tensor.role:
        yield Advice(
            f"the integers of {name} are coarse ({error.rounding_db:.1f} dB)",
            "--per-channel, or --effort best, which also cuts outliers of weights",
        )
    if activation and error.sqnr_db is not None and error.sqnr_db < _POOR_DB:
        if own is None or own > error.sqnr_db + _INHERITED_DB:
            yield Advice(
                f"{name} is poor ({error.sqnr_db:.1f} dB), by noise from before it: its own integers leave "
                f"{'all' if own is None else f'{own:.1f} dB'}",
                "explain what it is made from; `qtool sensitivity` ranks the layers",
            )
        elif node is not None:
            yield Advice(f"{name} is poor ({error.sqnr_db:.1f} dB), by its own integers", f"--exclude '{node}'")


def _worse(*decibels: float | None) -> float | None:
    known = [value for value in decibels if value is not None]
    return min(known) if known else None
