from collections.abc import Callable

import numpy as np
import pytest

from qtool.metrics.latency import interleaved_times, latency, paired_ratio, throughput


class Clock:
    """Time that passes only when a run says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_runs(clock: Clock, log: list[str], **seconds: Callable[[], float]) -> list[Callable[[], None]]:
    def make(name: str, takes: Callable[[], float]) -> Callable[[], None]:
        def run() -> None:
            log.append(name)
            clock.now += takes()

        return run

    return [make(name, takes) for name, takes in seconds.items()]


def test_each_round_times_every_run_and_the_order_turns_around() -> None:
    clock, log, rounds = Clock(), list[str](), list[int]()
    runs = make_runs(clock, log, a=lambda: 1.0, b=lambda: 1.0)
    interleaved_times(runs, rounds=3, advance=rounds.append, clock=clock)
    assert log[-6:] == ["a", "b", "b", "a", "a", "b"]
    assert rounds == [1, 1, 1]


def test_times_are_those_of_one_run() -> None:
    clock, log = Clock(), list[str]()
    slow, fast = interleaved_times(make_runs(clock, log, slow=lambda: 2.0, fast=lambda: 0.001), rounds=4, clock=clock)
    assert slow == pytest.approx(np.full(4, 2.0))
    assert fast == pytest.approx(np.full(4, 0.001))
    assert log.count("fast") > log.count("slow")  # a short run is repeated within its turn


def test_load_on_the_machine_does_not_change_the_ratio() -> None:
    clock = Clock()
    slow, fast = interleaved_times(
        make_runs(clock, [], slow=lambda: 2 + clock.now * 1e-2, fast=lambda: 1 + clock.now * 5e-3),
        rounds=9,
        clock=clock,
    )
    assert slow[-1] > 1.02 * slow[0]
    ratio = paired_ratio(slow, fast)
    assert ratio.median == pytest.approx(2, rel=0.01)
    assert ratio.low <= ratio.median <= ratio.high


def test_a_clock_that_stands_still_gives_finite_ratios() -> None:
    a, b = interleaved_times([lambda: None, lambda: None], rounds=2, clock=lambda: 0.0)
    assert np.isfinite(paired_ratio(a, b).median)


def test_median_and_p95_are_numpys() -> None:
    times = np.random.default_rng(0).gamma(3, size=41) / 1000
    result = latency(times)
    assert result.median_ms == pytest.approx(1e3 * np.median(times))
    assert result.p95_ms == pytest.approx(1e3 * np.quantile(times, 0.95))
    assert result.rounds == 41


def test_the_interval_narrows_with_more_rounds_and_is_the_same_each_time() -> None:
    random = np.random.default_rng(5)

    def width(rounds: int) -> float:
        base, other = 2 + 0.2 * random.random(rounds), 1 + 0.1 * random.random(rounds)
        assert paired_ratio(base, other) == paired_ratio(base, other)
        ratio = paired_ratio(base, other)
        return ratio.high - ratio.low

    # What sessions differ by, 2 % on both sides, stays however many rounds there are.
    assert 0.08 < width(1000) < 0.7 * width(20)


def test_the_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(11)
    covered = 0
    for seed in range(200):
        ratio = paired_ratio(np.exp(0.3 * random.normal(size=25)), np.ones(25), seed=seed)
        covered += ratio.low <= 1 <= ratio.high
    assert 190 <= covered <= 200  # 99 % of 200 is 198


def test_throughput_is_samples_over_the_median_time() -> None:
    assert throughput(np.array([0.1, 0.2, 9.0]), batch_size=16).median == pytest.approx(80)
