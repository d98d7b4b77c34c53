"""Fills missing states of recurrent models with zeros, as at the start of a sequence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qtool.calib.datasets.base import Dataset, Remark
from qtool.calib.specs import Array, Dim, Feed, TensorSpec

# A state is also an output, with the same name or with one of these added.
_STATE_NAMES = re.compile(r"state|hidden|cell|cache|past|memory|carry|(^|[_./])[hc](_?(0|in|n|prev))?($|[_./])", re.I)
# A free dimension of such a name counts previous steps, of which there are none.
_PAST_NAMES = re.compile("past|cache", re.I)
_MOST_NAMED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Fed:
    """The inputs of a model, split by the source of their values.

    Attributes:
        given: those that the data holds, or should hold.
        zeros: states that it does not hold.
    """

    given: tuple[TensorSpec, ...]
    zeros: tuple[TensorSpec, ...]

    @property
    def remark(self) -> str | None:
        """Names the inputs that are filled with zeros; None where there are none, or caches that begin empty."""
        names = [f"'{spec.name}'" for spec in self.zeros if empty_state(spec, 1).size]
        if not names:
            return None
        shown = ", ".join(names[:_MOST_NAMED]) + (f" and {len(names) - _MOST_NAMED} more" * (len(names) > _MOST_NAMED))
        return f"no array {shown} in the data: filled with zeros, as at the start of a sequence"

    def filled(self, feeds: Iterable[Feed]) -> Iterator[dict[str, Array]]:
        """Adds the zeros to every feed."""
        for feed in feeds:
            lengths = {
                dim: feed[spec.name].shape[axis]
                for spec in self.given
                for axis, dim in enumerate(spec.shape or ())
                if isinstance(dim, str)
            }
            yield {**feed, **{spec.name: _zeros(spec, lengths) for spec in self.zeros}}


def split_inputs(dataset: Dataset, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Fed:
    """Finds the states missing in ``dataset``; none where it holds arrays that match no input.

    Such an array is more likely a misnamed input, which the user has to rename.
    """
    stored = {spec.name for spec in dataset.specs() if not spec.name.startswith("_")}
    names = {spec.name for spec in inputs}
    missing = [spec for spec in inputs if spec.name not in stored and _is_state(spec, outputs)]
    others = [spec for spec in inputs if spec not in missing]
    is_spare = bool(stored - names) if stored != {""} else len(others) != 1
    if not stored or is_spare or not others:
        return Fed(given=tuple(inputs), zeros=())
    return Fed(given=tuple(others), zeros=tuple(missing))


def states_of(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Returns the inputs that a model hands from one step to the next."""
    return tuple(spec for spec in inputs if _is_state(spec, outputs))


def empty_state(spec: TensorSpec, rows: int) -> Array:
    """Returns a state as at the start of a sequence, for so many rows."""
    first = spec.shape[0] if spec.shape else None
    return _zeros(spec, {first: rows} if isinstance(first, str) else {})


class ZeroStates:
    """A dataset that also fills the states of a model, where it does not hold them."""

    def __init__(self, dataset: Dataset, outputs: Sequence[TensorSpec]) -> None:
        """Wraps ``dataset`` for a model with these outputs."""
        self._dataset, self._outputs = dataset, outputs

    @property
    def count(self) -> int | None:
        """The number of samples, where the dataset knows it."""
        return self._dataset.count

    def specs(self) -> tuple[TensorSpec, ...]:
        """Describes the arrays that are stored."""
        return self._dataset.specs()

    def array(self, name: str) -> Array | None:
        """Loads one stored array whole; see ``Dataset.array``."""
        return self._dataset.array(name)

    def feeds(
        self,
        inputs: Sequence[TensorSpec],
        *,
        batch_size: int = 1,
        limit: int | None = None,
        skip: int = 0,
        remark: Remark | None = None,
    ) -> Iterator[dict[str, Array]]:
        """Streams batches with zeros for the states; see ``Dataset.feeds``."""
        fed = split_inputs(self._dataset, inputs, self._outputs)
        if fed.remark is not None and remark is not None:
            remark(fed.remark)
        feeds = self._dataset.feeds(fed.given, batch_size=batch_size, limit=limit, skip=skip, remark=remark)
        return fed.filled(feeds) if fed.zeros else feeds


def _is_state(spec: TensorSpec, outputs: Sequence[TensorSpec]) -> bool:
    return any(
        output.dtype == spec.dtype
        and _alike(spec.shape, output.shape)
        and (_STATE_NAMES.search(spec.name) is not None or (len(spec.name) > 1 and spec.name in output.name))
        for output in outputs
    )


def _alike(first: tuple[Dim, ...] | None, second: tuple[Dim, ...] | None) -> bool:
    if first is None or second is None or len(first) != len(second):
        return False
    pairs = zip(first, second, strict=True)
    return all(one == other or not (isinstance(one, int) and isinstance(other, int)) for one, other in pairs)


def _zeros(spec: TensorSpec, lengths: dict[str, int]) -> Array:
    shape = []
    for dim in spec.shape or ():
        if isinstance(dim, int):
            shape.append(dim)
        elif dim is None:
            shape.append(1)
        else:
            shape.append(lengths.get(dim, 0 if _PAST_NAMES.search(dim) else 1))
    return np.zeros(shape, spec.dtype)
