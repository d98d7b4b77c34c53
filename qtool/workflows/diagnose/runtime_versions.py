"""Compares what versions of onnxruntime make of a model: whether it loads, its values, its kernels and its speed."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from qtool.backends.coverage import Coverage, NodeCoverage
from qtool.backends.onnxruntime_cpu.coverage import coverage_in, fuses_signed
from qtool.calib.specs import Feed, samples_in
from qtool.errors import GateError, InputError, RuntimeRefusedError
from qtool.formats.onnx.map_types import load_model
from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.formats.torch.example_inputs import first_sizes, make_feeds
from qtool.metrics.fidelity import FidelityMeter, OutputFidelity
from qtool.metrics.latency import Interval, interleaved_turns, paired_ratio, run_milliseconds
from qtool.private_folder import private_folder
from qtool.progress import Progress
from qtool.reporting.surroundings import versions as installed_versions
from qtool.runtime.environments import environment_with
from qtool.runtime.foreign_runtime import ForeignRuntime, of_this_python
from qtool.runtime.session import Session
from qtool.runtime.steady_draws import with_steady_draws
from qtool.workflows.diagnose.verify import onnx_path
from qtool.workflows.quantize.check_result import input_spec
from qtool.workflows.quantize.data_request import DataRequest

USUAL_ROUNDS = 25
# Between versions, sums are added up in another order; a rounding that falls to the other side of a step is the most
# that this does, and it leaves more of the signal than this.
SAME_VALUES_DB = 40.0
# Below this speedup, a version is slower. Load on the machine may slow whole processes down, and with them their
# medians, but hardly their fastest turns: both have to show it.
SLOWER_SPEEDUP = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionsRequest:
    """What to compare.

    Attributes:
        model: the file.
        versions: as ``checked_versions`` returns them.
        data: the samples; None for random inputs.
        python: the interpreter of the environments; None for this one.
        environments: where they are kept; None to remove them at the end.
        threads: threads inside an operator; 0 is one per core.
        rounds: rounds of timing.
    """

    model: Path
    versions: tuple[str, ...]
    data: DataRequest | None = None
    python: Path | None = None
    environments: Path | None = None
    threads: int = 0
    rounds: int = USUAL_ROUNDS


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionResult:
    """What one version makes of the model.

    Attributes:
        version: of onnxruntime.
        problem: why it does not load or run the model; None where it does.
        fidelity: its outputs beside those of the version installed here.
        coverage: what it runs on integers; None where it does not load the model.
        time_ms: of one run of the first batch; None where it does not run.
        fastest_ms: what a run takes in its fastest turn.
        speedup: above 1, it is faster than the version installed here.
        changes: what is worse than in the version installed here, or not the same, in words.
    """

    version: str
    problem: str | None = None
    fidelity: tuple[OutputFidelity, ...] = ()
    coverage: Coverage | None = None
    time_ms: Interval | None = None
    fastest_ms: float | None = None
    speedup: Interval | None = None
    changes: tuple[str, ...] = ()

    @property
    def kernels(self) -> Mapping[str, int]:
        """How many nodes run in each integer kernel."""
        nodes = () if self.coverage is None else self.coverage.nodes
        return Counter(node.kernel for node in nodes if node.kernel is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionsReport:
    """What several versions make of a model.

    Attributes:
        model: the file.
        installed: the version that is installed here, which the others are compared with.
        others: the others, in the order in which they were asked for.
        samples: what they were compared on, in words.
    """

    model: Path
    installed: VersionResult
    others: tuple[VersionResult, ...]
    samples: str


def compare_versions(request: VersionsRequest, progress: Progress) -> VersionsReport:
    """Runs a model in several versions of onnxruntime, each in an environment and a process of its own.

    Nothing but onnxruntime opens the model there. Memory holds one batch, and the model once for each version.

    Raises:
        FormatError: the file cannot be read.
        InputError: the file is not an ONNX graph, does not run on random inputs, or a version cannot be installed.
        RuntimeRefusedError: the version that is installed here does not load or run it.
        CalibError: the data does not fit the model.
    """
    path = onnx_path(request.model)
    with private_folder() as folder, ExitStack() as stack:
        pythons = []
        for version in request.versions:
            with progress.task(f"installing onnxruntime {version}"):
                home = request.environments or folder
                pythons.append(environment_with(version, home, python=request.python))
        with progress.task("reading the model"):
            graph, file = _named(path, folder)
        names = (installed_versions()["onnxruntime"], *request.versions)
        trials = []
        for place, (name, python) in enumerate(zip(names, (None, *pythons), strict=True)):
            with progress.task(f"opening it {name}"):
                own = folder / f"process-{place}"
                own.mkdir()
                trials.append(_Trial(name, own, stack))
                trials[-1].open(python, file, graph, request.threads)
        return _compared(request, file, trials, progress)


class _Trial:
    """One version, until it fails."""

    def __init__(self, version: str, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._runtime: ForeignRuntime | None = None
        self._meter = FidelityMeter()
        self.result = VersionResult(version=version)

    def open(self, python: Path | None, file: Path, graph: ir.Model, threads: int) -> None:
        """Opens the model, and reads the graph that it is rewritten to; ``python`` is None for this one."""
        optimized = self._folder / "optimized.onnx"
        command: list[str | Path] = [sys.executable, "-P"] if python is None else [python, "-I"]
        environment = of_this_python() if python is None else None
        try:
            runtime = self._stack.enter_context(ForeignRuntime(command, self._folder, environment=environment))
            self.result = replace(self.result, version=runtime.version)
            # At a higher level layouts change too, and with them the names of nodes.
            runtime.open(
                file, level="extended", threads=threads, optimized_to=optimized, fuses_signed=fuses_signed(graph)
            )
            kept = {node.name: node for node in load_model(optimized).graph if node.name}
            self.result = replace(self.result, coverage=coverage_in(graph, kept))
            runtime.open(file, threads=threads)
            self._runtime = runtime
        except RuntimeRefusedError as error:
            self._fails(error)

    def run(self, feed: Feed) -> Feed | None:
        """Returns the outputs for a batch; None where it has failed."""
        try:
            return None if self._runtime is None else self._runtime.run(feed)
        except RuntimeRefusedError as error:
            self._fails(error)
            return None

    def compare(self, expected: Feed, feed: Feed) -> None:
        """Runs it on a batch, and adds up how far the outputs are from those expected."""
        outputs = self.run(feed)
        if outputs is not None:
            self._meter.add(expected, outputs)
            self.result = replace(self.result, fidelity=self._meter.results())

    def seconds(self) -> float:
        """Returns what a run takes of the batch that it ran last; NaN once it has failed."""
        try:
            return math.nan if self._runtime is None else self._runtime.seconds()
        except RuntimeRefusedError as error:
            self._fails(error)
            return math.nan

    def _fails(self, error: RuntimeRefusedError) -> None:
        self._runtime = None
        self.result = replace(self.result, problem=error.problem)


def _named(path: Path, folder: Path) -> tuple[ir.Model, Path]:
    """Returns the graph, and a file of it in which all nodes have names and draw the same random numbers."""
    graph = OnnxFile().read(path)
    lacks_names = common.NameFixPass()(graph).modified
    steady = with_steady_draws(graph)
    if not lacks_names and steady is graph:
        return graph, path
    copy = folder / "model.onnx"
    ir.save(steady, copy, external_data="model.onnx.data")
    return graph, copy


def _compared(request: VersionsRequest, file: Path, trials: Sequence[_Trial], progress: Progress) -> VersionsReport:
    here, *others = trials
    first: Feed = {}
    samples = 0
    with progress.task("comparing outputs") as advance:
        for feed in _feeds(request, file, progress):
            expected = here.run(feed)
            if expected is None:
                raise _failed_here(request, here.result)
            for trial in others:
                trial.compare(expected, feed)
            first = first or feed
            samples += samples_in(feed)
            advance(samples_in(feed))
    running = [trial for trial in trials if trial.run(first) is not None]
    with progress.task("timing", request.rounds) as advance:
        times = interleaved_turns([trial.seconds for trial in running], rounds=request.rounds, advance=advance)
    if here.result.problem is not None:
        raise _failed_here(request, here.result)
    for trial, taken in zip(running, times, strict=True):
        if trial.result.problem is None:
            speedup = None if trial is here else paired_ratio(times[0], taken)
            fastest = float(taken.min()) * 1e3
            trial.result = replace(trial.result, time_ms=run_milliseconds(taken), fastest_ms=fastest, speedup=speedup)
    plural = "" if samples == 1 else "s"
    return VersionsReport(
        model=request.model,
        installed=here.result,
        others=tuple(replace(trial.result, changes=_changes(trial.result, here.result)) for trial in others),
        samples="random inputs" if request.data is None else f"{samples} sample{plural} of {request.data.source}",
    )


def _feeds(request: VersionsRequest, file: Path, progress: Progress) -> Iterator[Feed]:
    session = Session(file, threads=1)
    inputs, outputs = session.inputs, session.outputs
    # Two of one model would take twice the memory.
    del session
    if request.data is not None:
        yield from request.data.feeds(request.data.open(), inputs, outputs, progress.note)
        return
    specs = [input_spec(spec) for spec in inputs]
    yield make_feeds(specs, first_sizes(specs, None), None)


def _failed_here(request: VersionsRequest, result: VersionResult) -> InputError | RuntimeRefusedError:
    if request.data is None and result.coverage is not None:
        return InputError(
            f"the model does not run on random inputs: {result.problem}", fix="give real ones with --data"
        )
    return RuntimeRefusedError(
        f"onnxruntime {result.version}, installed here, does not run {request.model}: {result.problem}",
        fix="check the model with `qtool verify`, and the data with `qtool inspect`",
    )


def _changes(result: VersionResult, base: VersionResult) -> tuple[str, ...]:
    """Tells what is worse than in the version that is installed here, or not the same."""
    if result.problem is not None:
        return (f"does not run it: {result.problem}",)
    changes = []
    for output in result.fidelity:
        if output.non_finite or output.unmatched_batches:
            changes.append(f"'{output.name}' has another shape, or values that are not finite")
        elif output.sqnr_db is not None and output.sqnr_db < SAME_VALUES_DB:
            changes.append(f"'{output.name}' differs: {output.sqnr_db:.1f} dB")
        elif output.equal_share is not None and output.equal_share < 1:
            changes.append(f"'{output.name}' differs in {1 - output.equal_share:.2%} of its values")
    lost = moved_nodes(base, result)
    if lost:
        changes.append(f"{len(lost)} node{'' if len(lost) == 1 else 's'} fewer on integers")
    if result.speedup is not None and result.speedup.high < SLOWER_SPEEDUP and _is_slower_at_best(result, base):
        changes.append(f"takes {1 / result.speedup.median:.2f} times as long")
    return tuple(changes)


def _is_slower_at_best(result: VersionResult, base: VersionResult) -> bool:
    if result.fastest_ms is None or base.fastest_ms is None:
        return False
    return base.fastest_ms / result.fastest_ms < SLOWER_SPEEDUP


def moved_nodes(one: VersionResult, other: VersionResult) -> tuple[NodeCoverage, ...]:
    """Returns the nodes that run on integers in ``one``, and in float in ``other``."""
    if one.coverage is None or other.coverage is None:
        return ()
    floats = {node.node for node in other.coverage.misses}
    return tuple(node for node in one.coverage.nodes if node.kernel is not None and node.node in floats)


def check_coverage_of_versions(report: VersionsReport, minimum: float) -> None:
    """Checks the share of nodes on integers in every version that loads the model.

    Raises:
        GateError: it is smaller than ``minimum``, 0 to 1, in one of them.
    """
    for result in report.others:
        if result.coverage is not None and result.coverage.share < minimum:
            raise GateError(
                f"{result.coverage.share:.1%} of the quantizable nodes run on integers in onnxruntime "
                f"{result.version}, too few for --min-coverage {100 * minimum:.4g}%",
                fix="stay with a version that runs more of them, or lower --min-coverage",
            )


def check_versions(report: VersionsReport) -> None:
    """Checks that every version does with the model what the one installed here does.

    Raises:
        GateError: one does not.
    """
    changed = [result for result in report.others if result.changes]
    if changed:
        worst = changed[0]
        raise GateError(
            f"{len(changed)} of {len(report.others)} versions of onnxruntime do not do the same with "
            f"{report.model.name} as {report.installed.version}: {worst.version}: {'; '.join(worst.changes)}",
            fix="stay with a version that does, or quantize the model again with the one to deploy installed",
        )
