"""Reads and writes torch.save checkpoints; no code in the file is run unless it is trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from qtool.formats.base import Weights
from qtool.formats.candidate import Candidate, Recognized
from qtool.formats.containers.pickle_audit import audit_pickles, is_legacy_checkpoint
from qtool.formats.errors import FormatError
from qtool.formats.findings import AuditNotes, Risk
from qtool.formats.library_noise import quiet_libraries
from qtool.formats.mapped_tensors import few_at_a_time, tied_names
from qtool.formats.odd_tensors import oddity
from qtool.formats.resident_pages import DroppingWriter
from qtool.formats.torch.torch_zip import ZipKind, torch_zip
from qtool.formats.torch.torch_zip_audit import audit_zip
from qtool.formats.trust import NO_TRUST, Trust, check_trusted
from qtool.formats.unreserved_mapping import mapping_unreserved

if TYPE_CHECKING:
    import torch


class TorchCheckpoint:
    """Stores weights as ``.pth``.

    Reads state dicts, bare or inside of a checkpoint's dictionary, in the zip format and the one before torch 1.6.
    Writes bare state dicts.
    """

    holds: ClassVar[Literal["weights"]] = "weights"
    suffix: ClassVar[str] = ".pth"

    def recognize(self, file: Candidate) -> Recognized | None:
        """Recognizes zip files with a ``data.pkl`` and no program, and the magic number of the format before them."""
        if is_legacy_checkpoint(file.head):
            return Recognized("torch checkpoint of the format before torch 1.6")
        if torch_zip(file.members).kind is not ZipKind.CHECKPOINT:
            return None
        return Recognized("torch checkpoint", damage=file.zip_damage)

    def audit(self, path: Path, notes: AuditNotes) -> None:
        """Notes what the pickles import and call, and what in the zip file does not add up.

        Raises:
            FormatError: the zip file's directory cannot be read.
        """
        if Candidate.at(path).is_zip:
            audit_zip(path, notes)
        else:
            audit_pickles(path, notes)

    def read(self, path: Path, trust: Trust = NO_TRUST) -> Weights:
        """Reads the state dict; tensors of the zip format stay in the file until they are used.

        Raises:
            FormatError: the file is damaged, holds no state dict, or needs code beyond ``trust`` to be opened.
        """
        from qtool.formats.torch.state_dicts import find_state_dict

        found = find_state_dict(self._load(path, trust), str(path))
        if found.module is None and Candidate.at(path).is_zip:
            tensors = few_at_a_time(
                lambda: find_state_dict(self._load(path, trust), str(path)).tensors, path.stat().st_size
            )
        else:
            tensors = found.tensors
        return Weights(tensors=tensors, metadata={}, source=found.source, module=found.module)

    def write(self, weights: Weights, path: Path) -> None:
        """Writes the tensors, tied ones once; the same weights give the same bytes. Metadata has no place in it.

        Raises:
            FormatError: a tensor has no values.
        """
        import torch

        for name, tensor in weights.tensors.items():
            if tensor.is_meta:
                raise FormatError(f"tensor '{name}' is {oddity(tensor)}", fix="save it again with its values")
        tied = tied_names(weights.tensors)
        state: dict[str, torch.Tensor] = {}
        for name, tensor in weights.tensors.items():
            state[name] = state[tied[name]] if name in tied else _alone(tensor)
        # Through a stream: given a path, torch would store its name in the file.
        plain = [tensor for tensor in state.values() if oddity(tensor) is None]
        with DroppingWriter(path.open("wb", buffering=0), plain) as stream:
            try:
                torch.save(state, stream)
            except RuntimeError as error:
                # torch reports a full disk as an internal error; its cause is the real one.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise

    def _load(self, path: Path, trust: Trust) -> Any:
        import torch

        from qtool.formats.torch.trusted_pickle import allowing, load_allowed, load_trusted

        notes, zipped = AuditNotes(), Candidate.at(path).is_zip
        self.audit(path, notes)
        check_trusted(notes, path, trust)
        if trust.pickles and any(finding.risk is Risk.RUNS_CODE for finding in notes.findings):
            return load_trusted(path, mmap=zipped)
        try:
            with allowing(trust.names), quiet_libraries(), mapping_unreserved(path):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except (MemoryError, FormatError):
            raise
        except Exception as error:  # a damaged pickle makes torch raise nearly anything
            if trust.names and any(finding.imported in trust.names for finding in notes.findings):
                return load_allowed(path, trust.names, mmap=zipped)
            raise FormatError(f"{path} is a damaged torch checkpoint", fix="save or download it again") from error


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor without the memory around it: torch.save stores whole storages, and views are parts of one."""
    plain = tensor.detach()
    if oddity(plain) is not None:
        return plain.clone()
    plain = plain.resolve_conj().resolve_neg()
    # One without elements may stand where another one begins, which torch takes for two types of the same data.
    if plain.numel() and plain.is_contiguous():
        return plain if plain.untyped_storage().nbytes() == plain.numel() * plain.element_size() else plain.clone()
    return plain.clone()
