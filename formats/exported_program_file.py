"""Reads the programs that torch.export stores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch.utils import _pytree as pytree

from formats.audit import note_torch_file
from formats.base import Weights
from formats.errors import FormatError
from formats.example_inputs import InputSpec
from formats.findings import AuditNotes
from formats.library_noise import quiet_libraries
from formats.torch_calls import Parameter, StoredProgram
from formats.trust import NO_TRUST, Trust, check_trusted


class ExportedProgramFile:
    """Reads ``.pt2`` files."""

    holds: ClassVar[Literal["weights"]] = "weights"

    def read(self, path: Path, trust: Trust = NO_TRUST) -> Weights:
        """Reads the program, its weights and the shapes that it was exported for.

        Raises:
            FormatError: the file is damaged, or would do more than ``trust`` allows.
        """
        notes = AuditNotes()
        note_torch_file(path, notes)
        check_trusted(notes, path, trust)
        try:
            with quiet_libraries():
                program = torch.export.load(path)
                module = program.module()
        except MemoryError:
            raise
        except Exception as error:  # a damaged file makes torch raise nearly anything
            raise FormatError(
                f"{path} is a damaged exported program, or one of a newer torch",
                fix="export it again, or update torch",
            ) from error
        inputs = _inputs(program, path)
        form = program.call_spec.in_spec

        def call(graph: torch.nn.Module, tensors: Mapping[str, Any]) -> Any:
            arguments, keywords = pytree.tree_unflatten([tensors[spec.name] for spec in inputs], form)
            return graph(*arguments, **keywords)

        return Weights(
            tensors={name: tensor.detach() for name, tensor in program.state_dict.items()},
            metadata={},
            source=f"program with {sum(1 for _ in program.parameters())} weights",
            module=StoredProgram(
                module, [Parameter(name=spec.name, required=True) for spec in inputs], call, scripted=False
            ),
            inputs=inputs,
        )


def _inputs(program: torch.export.ExportedProgram, path: Path) -> tuple[InputSpec, ...]:
    """Returns the inputs with names for what is free: ``batch`` first, the same name for the same length."""
    placeholders = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    names: dict[str, str] = {}
    specs = []
    for name in program.graph_signature.user_inputs:
        value = placeholders.get(str(name))
        if not isinstance(value, torch.Tensor):
            raise FormatError(
                f"{path} takes an input that is no tensor ({name})", fix="export it again with tensors as inputs only"
            )
        dims = tuple(
            length
            if isinstance(length, int)
            else names.setdefault(str(length), "batch" if axis == 0 and not names else f"{name}_dim{axis}")
            for axis, length in enumerate(value.shape)
        )
        dtype = torch.empty(0, dtype=value.dtype).numpy().dtype if value.dtype != torch.bfloat16 else np.dtype("f4")
        specs.append(InputSpec(name=str(name), dims=dims, dtype=dtype))
    return tuple(specs)
