"""Quantization-aware training of a quantized model by distillation from its float model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes import common

from qtool.atomic import check_output, staged
from qtool.backends.coverage import Coverage
from qtool.backends.execution import TARGET_KEY, Execution
from qtool.backends.execution_choice import execution_of
from qtool.backends.registry import FALLBACK_BACKEND, backend_named
from qtool.backends.runtimes import runtime_named
from qtool.calib.datasets.python_function import imported
from qtool.errors import InputError, QtoolError, UsageError
from qtool.fingerprint import data_sha256
from qtool.formats.companions import companion_files
from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.graph.specs import model_specs
from qtool.image_layout import image_layouts
from qtool.learn.augmentation import Augmentation
from qtool.manifest import Manifest, manifest_path, read_manifest, write_manifest
from qtool.metrics.size import model_bytes
from qtool.progress import SILENT, Progress
from qtool.qdq.quantized_tensors import quantized_tensors
from qtool.reporting.surroundings import versions
from qtool.runtime.graphs import open_graph
from qtool.search.logits_view import with_logits
from qtool.workflows.convert.model_source import save_graph
from qtool.workflows.diagnose.file_records import data_records, model_record
from qtool.workflows.diagnose.verify import onnx_path
from qtool.workflows.learn.pair_limits import limit_of_pairs
from qtool.workflows.learn.request import FinetuneReport, FinetuneRequest
from qtool.workflows.quantize.check_result import CheckSamples, compare_with_float, held_samples
from qtool.workflows.quantize.holdout_split import HoldoutSplit
from qtool.workflows.quantize.lock import check_reproduced, lock_record
from qtool.workflows.quantize.prepared_model import single_sample
from qtool.workflows.tune.activation_memory import ActivationMemory
from qtool.workflows.tune.tuning_split import TuningSplit

if TYPE_CHECKING:
    from qtool.learn.checkpoint import Checkpoint
    from qtool.learn.distillation import Distilled
    from qtool.learn.losses import Loss

_EVALUATION_SAMPLES = 64


def finetune(request: FinetuneRequest, progress: Progress = SILENT) -> FinetuneReport:
    """Trains, checks that as much runs on integers as before, and only then writes.

    Raises:
        UsageError: the options do not fit, or there is no device of the asked kind.
        InputError: the model is not in QDQ format, or its float model is not known.
        OutputError: the output cannot be written.
        FormatError: a file cannot be read.
        CalibError: the data does not fit the model.
        RuntimeRefusedError: onnxruntime does not load or run one of the models.
    """
    output = request.destination
    if output.resolve() == request.model.resolve():
        raise UsageError("the output is the input", fix="name another file with -o")
    check_output(output, force=request.force)
    float_path = _float_path(request)
    quantized = _graph(request.model)
    _check_form(quantized, request.model)
    original = _graph(float_path)
    samples = _samples(request, original)
    execution = execution_of(quantized.metadata_props.get(TARGET_KEY))
    with progress.task("reading what runs on integers"):
        covered = _coverage(quantized)
    checkpoint = _checkpoint(request, float_path)
    augmentation = Augmentation(image_layouts(original), request.variations)
    found, gained, device = _trained(
        request, quantized, original, samples, execution, checkpoint, progress, augmentation
    )
    with staged(output) as path:
        save_graph(found.model if gained else quantized, path)
        coverage = _coverage(_graph(path))
        _check_coverage(covered, coverage)
        progress.note("comparing with float on held-back samples")
        before = compare_with_float(original, request.model, samples, execution=execution, threads=request.threads)
        after = compare_with_float(original, path, samples, execution=execution, threads=request.threads)
        report = FinetuneReport(
            output=output,
            manifest=manifest_path(output),
            float_model=float_path,
            checks=found.checks,
            best=found.best,
            ended=found.ended,
            gained=gained,
            foreign=found.foreign,
            coverage=coverage,
            before=before.fidelity,
            fidelity=after.fidelity,
            compared_on=after.samples,
            device=device,
            learning_rate=found.learning_rate,
            varied=tuple(augmentation.layouts) if request.variations else (),
            bytes=model_bytes(path),
        )
        manifest = _manifest(request, report, path)
        check_reproduced(request.locked, manifest)
        write_manifest(manifest_path(path), manifest, home=output.parent)
    checkpoint.remove()
    return report


def _trained(
    request: FinetuneRequest,
    quantized: ir.Model,
    original: ir.Model,
    samples: CheckSamples,
    execution: Execution,
    checkpoint: Checkpoint,
    progress: Progress,
    augmentation: Augmentation,
) -> tuple[Distilled, bool, str]:
    from qtool.learn.devices import device_named
    from qtool.learn.distillation import Distillation
    from qtool.learn.losses import losses_for
    from qtool.workflows.learn.judge import Judge

    device = device_named(request.device)
    split = TuningSplit(original, samples, evaluation_samples=_EVALUATION_SAMPLES)
    view = with_logits(original)
    losses = losses_for(original, view, _loss(request.loss))
    distillation = Distillation(
        quantized,
        losses,
        view=with_logits(quantized),
        device=device,
        bounded=limit_of_pairs(quantized),
        varied=augmentation,
    )
    with open_graph(view, threads=request.threads) as session:
        judge = Judge(split.evaluation, session.run, losses, execution, threads=request.threads)
        found = distillation.train(
            split.all_tuning, session.run, judge, request.schedule, progress, checkpoint=checkpoint
        )
        # The best of many evaluations is the best by chance, too: other samples have to confirm it.
        held = Judge(held_samples(original, samples), session.run, losses, execution, threads=request.threads)
        gained = found.best.step > 0 and held(found.model).loss <= held(quantized).loss
    if found.foreign:
        kinds = ", ".join(sorted(set(found.foreign.values())))
        progress.note(f"{kinds}: without gradients, what stands before them learns through other ways or not at all")
    return found, gained, str(device)


def _checkpoint(request: FinetuneRequest, float_path: Path) -> Checkpoint:
    """Returns where the training keeps its state, with a key of everything that the result depends on."""
    from qtool.learn.checkpoint import SUFFIX, Checkpoint

    paths: tuple[Path | str, ...] = (request.model, float_path, *request.data.sources)
    schedule = asdict(request.schedule)
    del schedule["budget_s"]
    own_loss = None if request.loss is None else data_sha256(request.loss.partition(":")[0])
    parts = [*map(_hashes, paths), request.loss, own_loss, request.device, request.threads, schedule]
    parts.append(list(request.variations))
    parts += [request.data.preprocess, request.data.batch_size, request.data.limit, versions(["torch"])]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    path = request.destination
    return Checkpoint(path.with_name(path.name + SUFFIX), key, force=request.force)


def _hashes(source: Path | str) -> list[str | None]:
    path = Path(source)
    weights = companion_files(path) if path.suffix == ".onnx" and path.is_file() else ()
    return [data_sha256(str(source)), *(data_sha256(str(path.parent / name)) for name in weights)]


def _loss(name: str | None) -> Loss | None:
    from qtool.learn.losses import LOSSES

    if name is None:
        return None
    if name in LOSSES:
        return LOSSES[name]
    if ":" in name:
        loss: Loss = imported(name)
        return loss
    raise UsageError(f"no loss is called {name}", fix=f"use {', '.join(LOSSES)}, or FILE.py:FUNCTION")


def _graph(path: Path) -> ir.Model:
    model = OnnxFile().read(onnx_path(path))
    common.NameFixPass()(model)
    return model


def _float_path(request: FinetuneRequest) -> Path:
    if request.float_model is not None:
        return request.float_model
    manifest = manifest_path(request.model)
    if not manifest.is_file():
        raise InputError(
            f"the float model of {request.model} is not known: it has no manifest", fix="name it with --float MODEL"
        )
    path = read_manifest(manifest).float_model.path
    if not path.is_file():
        raise InputError(f"the float model {path} of the manifest is missing", fix="name it with --float MODEL")
    return path


def _check_form(model: ir.Model, path: Path) -> None:
    if not quantized_tensors(model):
        raise InputError(
            f"{path} has no QuantizeLinear and no integer weights: there is nothing whose rounding could be learned",
            fix="give a model that `qtool quantize` wrote with its static or its weights scheme",
        )


def _samples(request: FinetuneRequest, original: ir.Model) -> CheckSamples:
    dataset = request.data.open()
    memory = ActivationMemory.of(original, single_sample(original, dataset, request.data))
    batches = request.data.batches(dataset, *model_specs(original))
    return CheckSamples(dataset=dataset, data=request.data, holdout=HoldoutSplit.of(batches), memory=memory)


def _ended_by_chance(ended: str) -> str | None:
    return f"the search ended early: {ended}" if ended in {"the time is up", "interrupted"} else None


def _coverage(model: ir.Model) -> Coverage:
    found = backend_named(FALLBACK_BACKEND).coverage(model)
    if found is None:
        raise AssertionError("the provider that runs every model is always here")
    return found


def _check_coverage(before: Coverage, after: Coverage) -> None:
    if after.integer < before.integer:
        raise QtoolError(
            f"{after.integer} nodes run on integers after training, {before.integer} did before",
            fix="report this model: training must not change what runs on integers",
        )


def _manifest(request: FinetuneRequest, report: FinetuneReport, file: Path) -> Manifest:
    schedule = asdict(request.schedule)
    return Manifest(
        command="finetune",
        float_model=model_record(report.float_model, report.float_model),
        quantized_model=model_record(report.output, file),
        inputs={"model": model_record(request.model, request.model), **data_records(request.data.sources)},
        options={"loss": request.loss, "device": report.device, "threads": request.threads, **schedule}
        | {"augment": list(request.variations), "learning_rate": report.learning_rate},
        versions=versions([runtime_named(report.coverage.runtime).package, "torch"]),
        quantized={"integer_nodes": report.coverage.integer, "quantizable_nodes": report.coverage.total},
        figures={"sqnr_db": report.best.sqnr_db, "start_sqnr_db": report.checks[0].sqnr_db},
        lock={**lock_record(request.arguments), "search_ended": _ended_by_chance(report.ended)},
    )
