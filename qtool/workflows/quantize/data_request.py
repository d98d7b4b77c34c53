"""The samples that a workflow runs a model on, and the batch size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qtool.calib.dataset import open_dataset
from qtool.calib.datasets.base import Dataset, Remark
from qtool.calib.datasets.images import Preprocess
from qtool.calib.datasets.joined import JoinedData
from qtool.calib.datasets.listing import TEXT_SUFFIXES
from qtool.calib.datasets.text_file import TextOptions
from qtool.calib.datasets.zero_states import split_inputs
from qtool.calib.errors import CalibError
from qtool.calib.specs import Feed, TensorSpec

# A few samples per batch use the processor better, and take little memory compared with the model.
USUAL_BATCH_SIZE = 4
# A free first dimension of such a name counts steps of one sample, not samples.
_NO_BATCH_NAMES = ("seq", "time", "len", "frame", "step")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRequest:
    """The samples to use.

    Attributes:
        source: see ``open_dataset``.
        more: further sources of samples that follow it.
        preprocess: how images become arrays, see ``Preprocess.parse``.
        batch_size: samples per run; None for a few where the model and the data allow it, and 1 elsewhere.
        limit: use only the first so many samples.
        text: how text becomes tokens; None where no tokenizer is known.
        usual_batch_size: what "a few" is.
    """

    source: str
    more: tuple[str, ...] = ()
    preprocess: str | None = None
    batch_size: int | None = None
    limit: int | None = None
    text: TextOptions | None = None
    usual_batch_size: int = USUAL_BATCH_SIZE

    def open(self) -> Dataset:
        """Opens the data.

        Raises:
            CalibError: there is none, it is damaged, or the preprocessing makes no sense.
        """
        preprocess = None if self.preprocess is None else Preprocess.parse(self.preprocess)
        parts = [open_dataset(source, preprocess=preprocess, text=self.text) for source in self.sources]
        return parts[0] if len(parts) == 1 else JoinedData(parts)

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer, where a source is text."""
        is_text = any(Path(source).suffix.lower() in TEXT_SUFFIXES for source in self.sources)
        return self.text.tokenizer if self.text is not None and is_text else None

    @property
    def sources(self) -> tuple[str, ...]:
        """All sources, in order."""
        return (self.source, *self.more)

    def available(self, dataset: Dataset) -> int | None:
        """Returns the number of samples, where it is known."""
        if dataset.count is None:
            return None
        return dataset.count if self.limit is None else min(dataset.count, self.limit)

    def batches(self, dataset: Dataset, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> int | None:
        """Returns the approximate number of batches, where it is known."""
        total = self.available(dataset)
        return None if total is None else total // self.rows(inputs, outputs)

    def rows(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> int:
        """Returns the number of samples per batch that the model allows."""
        firsts = [spec.shape[0] for spec in inputs if spec.shape]
        fixed = max((dim for dim in firsts if isinstance(dim, int)), default=1)
        return max(fixed, self._size(inputs, outputs))

    def feeds(
        self,
        dataset: Dataset,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        remark: Remark | None = None,
    ) -> Iterator[Feed]:
        """Streams the samples in batches for a model with these inputs and outputs; missing states are zeros.

        Raises:
            CalibError: the data does not fit the inputs.
        """
        size = self._size(inputs, outputs)
        fed = split_inputs(dataset, inputs, outputs)
        if fed.remark is not None and remark is not None:
            remark(fed.remark)
        if self.batch_size is None and size > 1:
            try:
                return fed.filled(dataset.feeds(fed.given, batch_size=size, limit=self.limit, remark=remark))
            except CalibError:
                size = 1  # samples that cannot share a batch; other errors are raised below
        return fed.filled(dataset.feeds(fed.given, batch_size=size, limit=self.limit, remark=remark))

    def _size(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> int:
        if self.batch_size is not None:
            return self.batch_size
        firsts = {spec.shape[0] if spec.shape else 0 for spec in (*inputs, *outputs)}
        if len(firsts) != 1:
            return 1
        (first,) = firsts
        if not isinstance(first, str) or any(part in first.lower() for part in _NO_BATCH_NAMES):
            return 1
        return self.usual_batch_size


def data_request(
    sources: Sequence[str],
    *,
    preprocess: str | None,
    batch_size: int | None,
    limit: int | None,
    text: TextOptions | None = None,
) -> DataRequest:
    """Returns the request for the samples of one or more sources, in that order."""
    first, *more = sources
    return DataRequest(
        source=first, more=tuple(more), preprocess=preprocess, batch_size=batch_size, limit=limit, text=text
    )
