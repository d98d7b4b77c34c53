"""Lays out whether a model fits its target, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict

from qtool.backends.onnxruntime_cpu.saturation_proof import LayerProof
from qtool.cli.console import Console
from qtool.workflows.quantize.target_check import TargetReport


def show_target(console: Console, report: TargetReport) -> None:
    """Prints what the target does not take, and for every layer the worst sums beside those it holds."""
    if report.violations:
        console.table(
            f"Against the rules of {report.machine}",
            ("rule", "node", "operator", "problem", "fix"),
            [(one.rule, one.node, one.operator, one.problem, one.fix) for one in report.violations],
        )
    elif report.misfits:
        rows = [(misfit.tensor, misfit.problem) for misfit in report.misfits]
        console.table(f"Not for {report.machine}", ("tensor", "problem"), rows)
    if report.placement_only:
        found = "breaks some of" if report.violations else "keeps to"
        console.say(f"not run on {report.machine}: a check of the graph, which {found} its published rules")
    proof = report.proof
    unsafe = sum(not layer.safe for layer in proof.layers)
    verdict = f"{unsafe} of {len(proof.layers)} integer layers can overflow" if unsafe else "no layer can overflow"
    if proof.low is None:
        console.say(f"{report.machine}: {verdict}, sums have 32 bits")
        return
    console.table(
        f"Sums of two products on {report.machine}",
        ("layer", "operator", "lowest", "highest", "unsafe channels", "safe"),
        [
            (
                layer.node,
                layer.operator,
                _number(layer.lowest),
                _number(layer.highest),
                _channels(layer),
                "yes" if layer.safe else "no",
            )
            for layer in proof.layers
        ],
        f"held: {proof.low:,} to {proof.high:,}; {verdict}",
    )


def target_as_json(report: TargetReport) -> dict[str, object]:
    """Returns the report as values for JSON."""
    proof = report.proof
    return {
        "target": report.target,
        "misfits": [asdict(misfit) for misfit in report.misfits],
        "violations": [asdict(violation) for violation in report.violations],
        "placement_only": report.placement_only,
        "saturation": {
            "low": proof.low,
            "high": proof.high,
            "safe": proof.safe,
            "layers": [asdict(layer) for layer in proof.layers],
        },
    }


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _channels(layer: LayerProof) -> str:
    return layer.reason or f"{layer.unsafe_channels} of {layer.channels}"
