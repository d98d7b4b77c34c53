"""Measures the noise that fake quantization makes in the outputs of a graph, beside its run in float."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from qtool.calib.affine import AffineParams
from qtool.calib.specs import Array, Feed, batch_length
from qtool.graph.decoder_caches import filled_by
from qtool.metrics.noise import NoiseMeter
from qtool.runtime.session import Session

# A choice with so many times the noise of the best one, on so many samples or more, is not run on further batches: it
# will hardly overtake it. With 1.1 on a few samples, a text direction classifier lost 3 dB; on single samples, the best
# of a text detector had 33 times the noise of another.
_BEHIND = {16: 1.1, 4: 2.0}


class _Race:
    """Adds up the noise of choices batch by batch, without those that fell behind.

    Attributes:
        samples: how many were added.
    """

    def __init__(self, choices: int) -> None:
        """Takes how many choices there are."""
        self._meters = [NoiseMeter() for _ in range(choices)]
        self._left = list(range(choices))
        self.samples = 0

    def add(
        self,
        expected: Mapping[str, Array],
        run: Callable[[int], Mapping[str, Array]],
        known: Mapping[int, NoiseMeter],
        samples: int,
    ) -> None:
        """Adds so many samples: ``run`` returns the outputs of a choice, those in ``known`` have run already."""
        for place in self._left:
            if place in known:
                self._meters[place] = known[place]
            else:
                self._meters[place].add(expected, run(place))
        self.samples += samples
        behind = next((times for count, times in _BEHIND.items() if self.samples >= count), None)
        if behind is not None:
            noises = {place: self._meters[place].worst() for place in self._left}
            least = min(noises.values())
            self._left = [place for place, noise in noises.items() if noise <= behind * least]

    @property
    def is_decided(self) -> bool:
        """Whether all but one fell behind."""
        return len(self._left) == 1 and len(self._meters) > 1

    def noises(self) -> list[float]:
        """Returns noise over signal of the worst output for each choice; infinite for those that fell behind."""
        return [meter.worst() if place in self._left else math.inf for place, meter in enumerate(self._meters)]


class NoiseMeasurement:
    """Compares runs of a graph, or of its last part, with the run in which everything is float."""

    def __init__(self, session: Session, feeds: Sequence[Feed], samples: Sequence[int]) -> None:
        """Runs ``session`` once on ``feeds`` of so many samples each, in which everything is set to float."""
        self._session = session
        self._samples = samples
        self._wanted = {spec.name for spec in session.inputs}
        self._feeds = [{name: feed[name] for name in self._wanted} for feed in feeds]
        names = [spec.name for spec in session.outputs]
        caches = {filled_by(spec.name, names) for spec in session.inputs}
        self._outputs = [name for name in names if name not in caches]
        self._expected = [session.run(feed, self._outputs) for feed in self._feeds]

    def noise(self, settings: Mapping[str, Array]) -> float:
        """Returns noise over signal of the worst output."""
        (noise,) = self.race([settings])
        return noise

    def race(self, choices: Sequence[Mapping[str, Array]], begun: NoiseMeter | None = None) -> list[float]:
        """Returns noise over signal of the worst output for each of ``choices``; infinite where one fell behind.

        It ends early, with the noise so far, once all others did. ``begun`` has seen the first batch with the first
        one.
        """
        race = _Race(len(choices))
        for number, (feed, expected) in enumerate(zip(self._feeds, self._expected, strict=True)):
            known = {0: begun} if number == 0 and begun is not None else {}
            race.add(expected, self._outputs_of(feed, choices), known, self._samples[number])
            if race.is_decided:
                break
        return race.noises()

    def first(self, settings: Mapping[str, Array]) -> NoiseMeter:
        """Returns what the first batch gives."""
        meter = NoiseMeter()
        meter.add(self._expected[0], self._run(self._feeds[0], settings))
        return meter

    def beside(
        self, choices: Sequence[Mapping[str, Array]], feeds: Iterable[Feed], stop: Callable[[], bool]
    ) -> list[float] | None:
        """Returns the same on other batches; see ``FakeQuantGraph.noises``."""
        race = _Race(len(choices))
        for feed in feeds:
            if stop():
                return None
            race.add(self._run(feed, {}), self._outputs_of(feed, choices), {}, batch_length(feed))
            if race.is_decided:
                break
        return race.noises() if race.samples else None

    def _outputs_of(
        self, feed: Mapping[str, Array], choices: Sequence[Mapping[str, Array]]
    ) -> Callable[[int], dict[str, Array]]:
        return lambda place: self._run(feed, choices[place])

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

    def race(self, params: Sequence[AffineParams], begun: NoiseMeter) -> list[float]:
        """Returns noise over signal of the worst output for each of ``params``; see ``NoiseMeasurement.race``."""
        return self._measurement.race([self._settings({self._source: one}) for one in params], begun)

    def on_first_batch(self, params: AffineParams) -> NoiseMeter:
        """Returns what the first batch gives."""
        return self._measurement.first(self._settings({self._source: params}))
