"""``qtool dequantize``: back to a float model."""

from __future__ import annotations

from qtool.cli.console import Console
from qtool.cli.options.shared import (
    DebugOption,
    ForceOption,
    JsonOption,
    ModelArgument,
    OutputDirOption,
    OutputOption,
    QuietOption,
)


def dequantize(
    model: ModelArgument,
    output: OutputOption = None,
    output_dir: OutputDirOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Turns a quantized model back into a float one.

    Its weights are the dequantized ones, and no Q/DQ nodes or integer operators are left.
    """
    from qtool.llm.text_for_model import graph_of
    from qtool.workflows.quantize.decoder_output import decoder_output
    from qtool.workflows.quantize.dequantize import DequantizeRequest
    from qtool.workflows.quantize.dequantize import dequantize as run

    console = Console(json=json, quiet=quiet, debug=debug)
    with decoder_output(model, output, output_dir, suffix="-float", force=force) as file:
        request = DequantizeRequest(model=graph_of(model), output=file, output_dir=output_dir, force=force)
        report = run(request, console.progress())
    if json:
        console.json(
            {
                "schema": "qtool.dequantize/1",
                "output": str(report.output),
                "removed_nodes": report.removed,
                "quantized_bytes": report.quantized_bytes,
                "float_bytes": report.float_bytes,
                "largest_difference": {output.name: output.max_abs_error for output in report.fidelity},
            }
        )
        return
    for fidelity in report.fidelity:
        difference = "unknown" if fidelity.max_abs_error is None else f"{fidelity.max_abs_error:.3g}"
        console.say(
            f"largest difference of '{fidelity.name}': {difference}, on random inputs that exceed calibrated ranges"
        )
    console.say(
        f"wrote {report.output}: {report.float_bytes:,} bytes, without {report.removed} quantization nodes; "
        f"the quantized model has {report.quantized_bytes:,}"
    )
