"""Reads TorchScript programs and exports them with torch's TorchScript exporter."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from qtool.formats.base import Weights
from qtool.formats.candidate import Candidate, Recognized
from qtool.formats.errors import FormatError
from qtool.formats.findings import AuditNotes
from qtool.formats.library_noise import quiet_libraries
from qtool.formats.torch.torch_zip import ZipKind, torch_zip
from qtool.formats.torch.torch_zip_audit import audit_zip
from qtool.formats.trust import NO_TRUST, Trust, check_trusted

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from qtool.formats.torch.torch_calls import StoredProgram

# The newest opset that this exporter supports.
_NEWEST_OPSET = 20


class TorchScriptFile:
    """Reads programs of torch.jit.save."""

    holds: ClassVar[Literal["program"]] = "program"

    def recognize(self, file: Candidate) -> Recognized | None:
        """Recognizes zip files with the code of a program."""
        if torch_zip(file.members).kind is not ZipKind.TORCHSCRIPT:
            return None
        return Recognized("TorchScript", damage=file.zip_damage)

    def audit(self, path: Path, notes: AuditNotes) -> None:
        """Notes what the pickles import, operators that access files, and what in the zip file does not add up.

        Raises:
            FormatError: the zip file's directory cannot be read.
        """
        audit_zip(path, notes)

    def read(self, path: Path, trust: Trust = NO_TRUST) -> Weights:
        """Reads the program and its weights; TorchScript runs it, never Python.

        Raises:
            FormatError: the file is damaged, or would do more than ``trust`` allows.
        """
        import torch

        from qtool.formats.torch.torch_calls import Parameter, StoredProgram

        notes = AuditNotes()
        self.audit(path, notes)
        check_trusted(notes, path, trust)
        try:
            with quiet_libraries():
                script = torch.jit.load(str(path), map_location="cpu").eval()
        except MemoryError:
            raise
        except Exception as error:  # a damaged file makes torch raise nearly anything
            raise FormatError(
                f"{path} is a damaged TorchScript program, or one of a newer torch",
                fix="save or download it again, or update torch",
            ) from error
        offered = [
            Parameter(name=argument.name, required=not argument.has_default_value())
            for argument in script.forward.schema.arguments[1:]
        ]
        return Weights(
            tensors={name: tensor.detach() for name, tensor in script.state_dict().items()},
            metadata={},
            source=f"program with {sum(1 for _ in script.parameters())} weights",
            module=StoredProgram(script, offered, _call, scripted=True),
        )


def export_script(
    program: StoredProgram,
    tensors: Mapping[str, torch.Tensor],
    input_names: list[str],
    free_axes: Mapping[str, Mapping[int, str]],
    opset: int | None,
) -> ir.Model:
    """Returns the program as a graph; errors are those of torch.

    Args:
        program: the program.
        tensors: an example for each parameter that is given.
        input_names: what the graph calls them.
        free_axes: names for the free axes of each input.
        opset: the graph's opset; None for the exporter's choice.
    """
    import onnx
    import onnx_ir as ir
    import torch

    given = tuple(tensors.values())
    # The exporter gives every part the mode of the whole back: without this the program would train from then on.
    traced = torch.jit.trace(program.giving(list(tensors)).eval(), given, check_trace=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.onnx"
        torch.onnx.export(
            traced,
            given,
            path,
            input_names=input_names,
            dynamic_axes={name: dict(axes) for name, axes in free_axes.items()},
            opset_version=opset if opset is not None and opset <= _NEWEST_OPSET else None,
            dynamo=False,
        )
        return ir.from_proto(onnx.load(path))


def _call(script: torch.nn.Module, tensors: Mapping[str, Any]) -> Any:
    return script(**tensors)
