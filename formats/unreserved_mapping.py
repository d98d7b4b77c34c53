"""Maps files that are larger than memory and swap.

torch maps files so that their tensors could be written to without changing the file. Linux counts that as private
memory, and refuses more than the machine has, although what is only read takes none. Mapped without a reservation, they
are not counted: https://docs.kernel.org/mm/overcommit-accounting.html. What ``ulimit -d`` allows still holds.
"""

from __future__ import annotations

import mmap
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtool.formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

_IN_TORCH = "unable to mmap"
# Linux's on x86 and ARM; Python has a name for it since 3.13.
_NO_RESERVATION = getattr(mmap, "MAP_NORESERVE", 0x4000)


@contextmanager
def mapping_unreserved(path: Path) -> Iterator[None]:
    """Lets torch, and what maps files with it, map those that the system refuses to reserve memory for.

    Raises:
        FormatError: the system does not map the file at ``path`` in any way.
    """
    import torch

    reserved = torch.UntypedStorage.from_file

    def from_file(filename: str, shared: bool = False, nbytes: int = 0) -> Any:
        try:
            return reserved(filename, shared, nbytes)
        except RuntimeError as error:
            if _IN_TORCH not in str(error) or shared:
                raise
            return _unreserved(filename, nbytes, error)

    torch.UntypedStorage.from_file = staticmethod(from_file)  # type: ignore[method-assign]
    try:
        yield
    except RuntimeError as error:
        if _IN_TORCH not in str(error):
            raise
        raise FormatError(
            f"the system does not map {path}, which has {path.stat().st_size / 1e9:.1f} GB: that is more than "
            "'ulimit -d', or the system, allows",
            fix="raise the limit, or allow it with `sysctl vm.overcommit_memory=1`",
        ) from error
    finally:
        torch.UntypedStorage.from_file = reserved  # type: ignore[method-assign]


def _unreserved(filename: str, nbytes: int, refusal: RuntimeError) -> torch.UntypedStorage:
    import torch

    try:
        with Path(filename).open("rb") as file:
            flags, access = mmap.MAP_PRIVATE | _NO_RESERVATION, mmap.PROT_READ | mmap.PROT_WRITE
            mapped = mmap.mmap(file.fileno(), nbytes, flags=flags, prot=access)
    except (OSError, AttributeError):
        raise refusal from None
    return torch.frombuffer(mapped, dtype=torch.uint8).untyped_storage()
