"""Lays out the proof that a model fits its target, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict

from qtool.cli.console import Console
from qtool.workflows.saturation_proof import LayerProof, SaturationProof


def show_proof(console: Console, proof: SaturationProof) -> None:
    """Prints for every layer the worst that its weights can do, beside what the machine holds."""
    unsafe = sum(not layer.safe for layer in proof.layers)
    verdict = f"{unsafe} of {len(proof.layers)} integer layers can overflow" if unsafe else "no layer can overflow"
    if proof.low is None:
        console.say(f"{proof.machine}: {verdict}, sums have 32 bits")
        return
    console.table(
        f"Sums of two products on {proof.machine}",
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


def proof_as_json(proof: SaturationProof) -> dict[str, object]:
    """Returns the proof as values for JSON."""
    return {
        "target": proof.target,
        "machine": proof.machine,
        "low": proof.low,
        "high": proof.high,
        "safe": proof.safe,
        "layers": [asdict(layer) for layer in proof.layers],
    }


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _channels(layer: LayerProof) -> str:
    return layer.reason or f"{layer.unsafe_channels} of {layer.channels}"
