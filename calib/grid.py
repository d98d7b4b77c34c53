"""The integer grid of a quantized tensor: bits, signedness, symmetry."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from qtool.calib.errors import CalibError

if TYPE_CHECKING:
    import numpy as np

# By width and sign; 4 bits lie in 8, which simulates hardware that has them.
_DTYPES = {
    (4, True): "int8",
    (8, False): "uint8",
    (8, True): "int8",
    (16, False): "uint16",
    (16, True): "int16",
    (32, True): "int32",
}


class Float8(StrEnum):
    """An 8-bit float of the Open Compute Project's specification (OCP 8-bit Floating Point, revision 1.0)."""

    E4M3 = "e4m3"
    E5M2 = "e5m2"


# The largest finite values; e4m3 has no infinity in ONNX (float8e4m3fn).
_LARGEST = {Float8.E4M3: 448, Float8.E5M2: 57344}
_FLOAT8_DTYPES = {Float8.E4M3: "float8_e4m3fn", Float8.E5M2: "float8_e5m2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A range of consecutive integers, and the position of its zero point; or the values of an 8-bit float.

    A symmetric signed grid leaves out its lowest integer (-128 for 8 bits), so that both sides are equally long; a
    symmetric unsigned grid has its zero point in the middle.

    Attributes:
        bits: width of the integer: 4 (signed, stored in 8), 8, 16, or 32 (signed and symmetric only, for biases).
        signed: whether the stored integer is signed.
        symmetric: whether the zero point is fixed to the middle of the grid.
        float8: the 8-bit float that the values are of, signed and symmetric only; None for integers.
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    float8: Float8 | None = None

    def __post_init__(self) -> None:
        """Rejects widths that no runtime supports.

        Raises:
            CalibError: there is no such grid.
        """
        if (self.bits, self.signed) not in _DTYPES:
            kind = "signed" if self.signed else "unsigned"
            raise CalibError(f"there is no {kind} grid of {self.bits} bits", fix="use 8 or 16 bits")
        if self.float8 is not None and not (self.bits == 8 and self.signed and self.symmetric):
            raise CalibError(f"{self.float8} is signed, around zero", fix="use signed=True and symmetric=True")
        if self.bits == 32 and not self.symmetric:
            raise CalibError("a 32-bit grid holds biases and must be symmetric", fix="use symmetric=True")

    @property
    def low(self) -> int:
        """The lowest integer in use, or the lowest float."""
        if self.float8 is not None:
            return -_LARGEST[self.float8]
        if not self.signed:
            return 0
        return -(1 << (self.bits - 1)) + (1 if self.symmetric else 0)

    @property
    def high(self) -> int:
        """The highest integer in use, or the highest float."""
        if self.float8 is not None:
            return _LARGEST[self.float8]
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of the grid when it is symmetric."""
        return 0 if self.signed else 1 << (self.bits - 1)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type that stores it."""
        # The help of commands lists targets, whose schemes have grids, and is to come at once.
        import numpy as np

        if self.float8 is not None:
            import ml_dtypes

            found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _FLOAT8_DTYPES[self.float8]))
            return found
        return np.dtype(_DTYPES[self.bits, self.signed])

    @property
    def name(self) -> str:
        """Its short name, such as ``u8``, ``s8`` or ``e4m3``."""
        if self.float8 is not None:
            return self.float8.value
        return f"{'s' if self.signed else 'u'}{self.bits}"
