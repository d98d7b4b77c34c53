"""The changes of weights by adapters: one class per kind, with its formula.

All of them return a summand of the weight, so that several can be weighted and summed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

# Elements of a block of rows.
_BLOCK_ELEMENTS = 1 << 17


class Change(Protocol):
    """A change of one weight.

    Attributes:
        kind: its name, for display.
        rank: of its matrices, where it has any.
        scale: the factor of the product, where there is one.
        additive: whether the summand does not depend on the weight.
        by_rows: whether a row of the result needs no other rows of the weight.
    """

    @property
    def kind(self) -> str:
        """Its name, for display."""
        ...

    @property
    def rank(self) -> int | None:
        """The rank of its matrices, where it has any."""
        ...

    @property
    def scale(self) -> float | None:
        """The factor of the product, where there is one."""
        ...

    @property
    def additive(self) -> bool:
        """Whether the summand does not depend on the weight."""
        ...

    @property
    def by_rows(self) -> bool:
        """Whether a row of the result needs no other rows of the weight."""
        ...

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns the summand, in the type of ``weight``.

        Args:
            weight: the rows of the weight; all of them unless ``by_rows``.
            rows: the indices of these rows.
        """
        ...


@runtime_checkable
class Preparable(Protocol):
    """A change that has to be prepared before it is computed by rows."""

    def ready(self, weight: torch.Tensor) -> Change:
        """Returns the change with the terms that all rows of ``weight`` share."""
        ...


def row_blocks(weight: torch.Tensor) -> list[slice]:
    """Divides the rows of a weight into blocks that fit into the caches of a core."""
    rows = weight.shape[0]
    step = max(1, _BLOCK_ELEMENTS * rows // max(1, weight.numel()))
    return [slice(start, min(rows, start + step)) for start in range(0, rows, step)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """Adds scale · left @ right, in the shape of the weight.

    Source: Hu et al., LoRA, https://arxiv.org/abs/2106.09685, section 4.1.

    Attributes:
        left: (rows, rank).
        right: (rank, elements of a row).
        scale: the factor.
        kind: its name, for display.
    """

    left: torch.Tensor
    right: torch.Tensor
    scale: float
    kind: str = "LoRA"
    additive: bool = True
    by_rows: bool = True

    @property
    def rank(self) -> int:
        """The length that both matrices share."""
        return int(self.right.shape[0])

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns the rows of the product."""
        product = self.left[rows].to(weight.dtype) @ self.right.to(weight.dtype)
        return product.mul_(self.scale).reshape(weight.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dora:
    """Adds a low-rank product and gives every output its trained norm.

    V = W + s·B@A; W' = m · V / ‖V‖, with one norm per output. Source: Liu et al., DoRA,
    https://arxiv.org/abs/2402.09353, equation 5.

    Attributes:
        product: the low-rank product.
        magnitude: m, one number for each index of ``axis``.
        axis: the weight's axis with a norm for each index; that of the outputs, except for some of LyCORIS.
        norms: ‖V‖, broadcastable to the weight; None until they are computed.
    """

    product: Change
    magnitude: torch.Tensor
    axis: int
    norms: torch.Tensor | None = None
    kind: str = "DoRA"
    additive: bool = False

    @property
    def rank(self) -> int | None:
        """The rank of the product."""
        return self.product.rank

    @property
    def scale(self) -> float | None:
        """The scale of the product."""
        return self.product.scale

    @property
    def by_rows(self) -> bool:
        """Whether the norms are those of the rows, or known."""
        return (self.axis == 0 or self.norms is not None) and self.product.by_rows

    def ready(self, weight: torch.Tensor) -> Change:
        """Returns the change with its norms where they go over all rows."""
        import torch

        product = self.product.ready(weight) if isinstance(self.product, Preparable) else self.product
        if self.axis == 0 or not product.by_rows:
            return replace(self, product=product)
        others = [axis for axis in range(weight.ndim) if axis != self.axis]
        squares = torch.zeros((), dtype=torch.float64)
        for rows in row_blocks(weight):
            part = weight[rows].to(torch.float64)
            squares = squares + (part + product.delta(part, rows)).square_().sum(others, keepdim=True)
        return replace(self, product=product, norms=squares.sqrt())

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns the difference to the rescaled sum."""
        import torch

        total = weight + self.product.delta(weight, rows)
        others = [axis for axis in range(weight.ndim) if axis != self.axis]
        norm = torch.linalg.vector_norm(total, dim=others, keepdim=True) if self.norms is None else self.norms
        magnitude = self.magnitude.reshape(-1).to(weight.dtype)
        magnitude = (magnitude[rows] if self.axis == 0 else magnitude).reshape(norm.shape)
        return total.mul_(magnitude / norm).sub_(weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """Adds scale · values, as trained biases of LoRA layers are.

    Attributes:
        values: in the shape of the parameter.
        scale: the factor.
    """

    values: torch.Tensor
    scale: float
    kind: str = "LoRA bias"
    rank: int | None = None
    additive: bool = True
    by_rows: bool = True

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns the scaled values."""
        return self.values[rows].to(weight.dtype) * self.scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """Replaces the parameter, or some of its rows.

    Attributes:
        values: in the shape of the parameter, or of ``indices`` rows of it.
        indices: the rows, where not all are replaced.
    """

    values: torch.Tensor
    indices: tuple[int, ...] | None = None
    kind: str = "replaced"
    rank: int | None = None
    scale: float | None = None
    additive: bool = False
    by_rows: bool = True

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns the difference to the other values."""
        import torch

        if self.indices is None:
            return self.values[rows].to(weight.dtype) - weight
        difference = torch.zeros_like(weight)
        for place, row in enumerate(self.indices):
            if rows.start <= row < rows.stop:
                difference[row - rows.start] = self.values[place].to(weight.dtype) - weight[row - rows.start]
        return difference


@dataclass(frozen=True, slots=True, kw_only=True)
class New:
    """Adds a parameter that the base does not have, such as that of a head for another task.

    Attributes:
        values: all of it.
    """

    values: torch.Tensor
    kind: str = "new"
    rank: int | None = None
    scale: float | None = None
    additive: bool = False
    by_rows: bool = True

    def delta(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Returns the difference to a weight of zeros."""
        return self.values[rows].to(weight.dtype) - weight
