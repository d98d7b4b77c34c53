"""Measures the noise that fake quantization makes in the outputs of a graph, beside its run in float."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from qtool.calib.affine import AffineParams
from qtool.calib.specs import Array, Feed
from qtool.graph.decoder_caches import filled_by
from qtool.metrics.noise import NoiseMeter
from qtool.runtime.session import Session


class NoiseMeasurement:
    """Compares runs of a graph, or of its last part, with the run in which everything is float."""

    def __init__(self, session: Session, feeds: Sequence[Feed]) -> None:
        """Runs ``session`` once on ``feeds``, in which everything is set to float."""
        self._session = session
        self._wanted = {spec.name for spec in session.inputs}
        self._feeds = [{name: feed[name] for name in self._wanted} for feed in feeds]
        names = [spec.name for spec in session.outputs]
        caches = {filled_by(spec.name, names) for spec in session.inputs}
        self._outputs = [name for name in names if name not in caches]
        self._expected = [session.run(feed, self._outputs) for feed in self._feeds]
        whole = NoiseMeter()
        for expected in self._expected:
            whole.add(expected, expected)
        self._signals = whole.signals

    def noise(self, settings: Mapping[str, Array], enough: float = math.inf, begun: NoiseMeter | None = None) -> float:
        """Returns noise over signal of the worst output; infinite as soon as it is known to exceed ``enough``.

        ``begun`` has seen the first batch.
        """
        meter = NoiseMeter() if begun is None else begun
        for number in range(0 if begun is None else 1, len(self._feeds)):
            self._add(number, settings, meter)
            if meter.least(self._signals) > enough:
                return math.inf
        return meter.worst()

    def first(self, settings: Mapping[str, Array]) -> NoiseMeter:
        """Returns what the first batch gives."""
        meter = NoiseMeter()
        self._add(0, settings, meter)
        return meter

    def beside(
        self, choices: Sequence[Mapping[str, Array]], feeds: Iterable[Feed], stop: Callable[[], bool]
    ) -> list[float] | None:
        """Returns noise over signal of the worst output for each of ``choices``; see ``FakeQuantGraph.noises``."""
        meters = [NoiseMeter() for _ in choices]
        batches = 0
        for feed in feeds:
            if stop():
                return None
            expected = self._run(feed, {})
            for meter, settings in zip(meters, choices, strict=True):
                meter.add(expected, self._run(feed, settings))
            batches += 1
        return [meter.worst() for meter in meters] if batches else None

    def _add(self, number: int, settings: Mapping[str, Array], meter: NoiseMeter) -> None:
        meter.add(self._expected[number], self._run(self._feeds[number], settings))

    def _run(self, feed: Mapping[str, Array], settings: Mapping[str, Array]) -> dict[str, Array]:
        given = {**feed, **settings}
        return self._session.run({name: given[name] for name in self._wanted}, self._outputs)


class NoiseAlone:
    """Measures one tensor's parameters."""

    def __init__(
        self,
        source: str,
        measurement: NoiseMeasurement,
        settings: Callable[[Mapping[str, AffineParams]], Mapping[str, Array]],
    ) -> None:
        """Takes the tensor, what measures, and what makes inputs of parameters."""
        self._source = source
        self._measurement = measurement
        self._settings = settings

    def __call__(self, params: AffineParams, enough: float = math.inf, begun: NoiseMeter | None = None) -> float:
        """Returns noise over signal of the worst output; infinite as soon as it is known to exceed ``enough``.

        ``begun`` is what the first batch gave, which is not run then.
        """
        return self._measurement.noise(self._settings({self._source: params}), enough, begun)

    def on_first_batch(self, params: AffineParams) -> NoiseMeter:
        """Returns what the first batch gives."""
        return self._measurement.first(self._settings({self._source: params}))
