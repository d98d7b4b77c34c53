"""Weights of 4 bits: the accuracy of small networks in float, rounded (PTQ), reconstructed, and trained (QAT).

Run: python benchmarks/training/low_bits.py [DIGITS.npz] [--seeds N]

Trains a small CNN on handwritten digits and a small encoder on sequences that are drawn as it learns, from several
seeds, and quantizes each of them: weights of 4 bits with one scale a tensor or a channel, activations of 8 bits.
Hardware with 4 bits is simulated: the integers lie in 8. DIGITS.npz holds 'image' (samples, 1, 28, 28), float32, and
'_label'; the last fifth of it is what is counted. Reconstruction and training see inputs alone, no labels.
"""

from __future__ import annotations

import argparse
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnx_ir.passes import common
from torch import nn

from qtool import qat
from qtool.backends.registry import backend_named
from qtool.backends.targets import preset
from qtool.calib.collect import collect
from qtool.calib.grid import Grid
from qtool.calib.ranges.min_max import MinMax
from qtool.learn.learned_rounding import BlockTraining, learn_rounding
from qtool.planning import build_plan
from qtool.progress import SILENT
from qtool.qdq.insert_qdq import insert_qdq
from qtool.quantizer import quantities
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.session import Watcher
from qtool.schemes import Scheme
from qtool.selection import NodeSelection
from qtool.weights.bias_correction import set_biases
from qtool.workflows.quantize.prepare import prepare

DIGITS = Path(__file__).resolve().parents[2] / "samples" / "digits_eval.npz"
BATCH, FLOAT_STEPS, QAT_STEPS, SEEN = 32, 1500, 300, 256
LENGTH, FEATURES, KINDS, NOISE, WIDTH = 48, 16, 8, 0.4, 32
RECONSTRUCTION = BlockTraining(steps=200)


class SmallCnn(nn.Module):
    """Convolutions, half of them depthwise: one scale a tensor fits their channels badly."""

    def __init__(self) -> None:
        """Makes the layers."""
        super().__init__()
        stages: list[nn.Module] = [nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        for inner, outer, stride in ((16, 32, 1), (32, 48, 2), (48, 64, 1)):
            stages += [
                nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False),
                nn.BatchNorm2d(inner),
                nn.ReLU(),
                nn.Conv2d(inner, outer, 1, bias=False),
                nn.BatchNorm2d(outer),
                nn.ReLU(),
            ]
        self.stages, self.head = nn.Sequential(*stages), nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns scores, (batch, 10)."""
        return self.head(self.stages(image).mean((2, 3)))


class Block(nn.Module):
    """Attention and two linear layers, each behind a normalization and beside a residual."""

    def __init__(self, width: int, heads: int) -> None:
        """Makes a block that keeps its input's shape, (batch, length, ``width``)."""
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns tokens of the same shape, (batch, length, width)."""
        batch, length, width = tokens.shape
        normal = self.norm1(tokens)
        query, key, value = (
            part(normal).reshape(batch, length, self.heads, -1).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        weights = torch.softmax(query @ key.transpose(-1, -2) * (width // self.heads) ** -0.5, -1)
        tokens = tokens + self.out((weights @ value).transpose(1, 2).reshape(batch, length, width))
        return tokens + self.down(torch.nn.functional.gelu(self.up(self.norm2(tokens))))


class SmallEncoder(nn.Module):
    """Reads a sequence of vectors."""

    def __init__(self) -> None:
        """Makes the layers."""
        super().__init__()
        self.embed, self.place = nn.Linear(FEATURES, WIDTH), nn.Parameter(torch.randn(1, LENGTH, WIDTH) * 0.1)
        self.blocks, self.norm, self.head = (
            nn.Sequential(Block(WIDTH, 4), Block(WIDTH, 4)),
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, KINDS),
        )

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        """Returns scores, (batch, kinds), for vectors, (batch, length, features)."""
        tokens = self.embed(sequence) + self.place
        return self.head(self.norm(self.blocks(tokens)).mean(1))


@dataclass(frozen=True)
class Task:
    """What a network learns.

    Attributes:
        seen: inputs that reconstruction and the observers see.
        counted: inputs on which its accuracy is counted.
        wanted: their classes.
        batch: draws inputs and their classes.
    """

    seen: torch.Tensor
    counted: torch.Tensor
    wanted: torch.Tensor
    batch: Callable[[torch.Generator], tuple[torch.Tensor, torch.Tensor]]


def digits(path: Path) -> Task:
    """Reads the file and splits it; images are drawn shifted by up to two pixels."""
    with np.load(path) as file:
        images, labels = torch.from_numpy(file["image"]), torch.from_numpy(file["_label"])
    first = len(images) * 4 // 5

    def batch(draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randint(0, first, (BATCH,), generator=draw)
        shifts = torch.randint(-2, 3, (2,), generator=draw).tolist()
        return torch.roll(images[chosen], shifts, dims=(2, 3)), labels[chosen]

    return Task(images[:SEEN], images[first:], labels[first:], batch)


def majorities() -> Task:
    """Sequences of noisy vectors of a few kinds; the class is the kind that occurs once more than any other."""
    fixed = torch.Generator().manual_seed(0)
    kinds = torch.randn(KINDS, FEATURES, generator=fixed)

    def drawn(count: int, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.randint(0, KINDS, (8 * count, LENGTH), generator=draw)
        often = nn.functional.one_hot(tokens, KINDS).sum(1).topk(2)
        close = (often.values[:, 0] == often.values[:, 1] + 1).nonzero().flatten()[:count]
        noise = torch.randn(len(close), LENGTH, FEATURES, generator=draw)
        return kinds[tokens[close]] + NOISE * noise, often.indices[close, 0]

    counted, wanted = drawn(2000, fixed)
    return Task(drawn(SEEN, fixed)[0], counted, wanted, lambda draw: drawn(BATCH, draw))


def train_in_float(module: nn.Module, task: Task, draw: torch.Generator) -> None:
    """Trains on labels."""
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, FLOAT_STEPS)
    for _ in range(FLOAT_STEPS):
        images, labels = task.batch(draw)
        loss = nn.functional.cross_entropy(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    module.eval()


def exported(module: nn.Module, example: torch.Tensor) -> ir.Model:
    """Returns the float graph, prepared to be quantized."""
    file = io.BytesIO()
    program = torch.onnx.export(
        module, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
    )
    program.save(file)
    model = ir.serde.deserialize_model(onnx.load_from_string(file.getvalue()))
    common.NameFixPass()(model)
    return prepare(model)


def rounded_and_reconstructed(module: nn.Module, task: Task, scheme: Scheme) -> Mapping[str, ir.Model]:
    """Returns the graph with rounded weights, and the one with weights and biases that were reconstructed."""
    model = exported(module, task.seen[:2])
    plan = build_plan(model, scheme, NodeSelection())
    name = model.graph.inputs[0].name or ""
    feeds = [{name: batch.numpy()} for batch in task.seen.split(BATCH)]
    with watching(model, plan.observed) as graph, open_graph(graph) as session:
        statistics = collect(Watcher(session), feeds, plan.observed).statistics
    activations, weights = quantities(model, plan, statistics, MinMax())
    found = learn_rounding(model, plan, scheme, activations, weights, feeds, SILENT, training=RECONSTRUCTION)
    graphs = {}
    for title, ranges, integers, biases in (
        ("PTQ", activations, weights, {}),
        ("reconstruction", activations, {**weights, **found.weights}, found.biases),
    ):
        graphs[title] = model.clone()
        set_biases(graphs[title], biases)
        insert_qdq(graphs[title], plan, ranges, integers)
        backend_named(scheme.backend).finish(graphs[title], scheme)
    return graphs


def trained(module: nn.Module, task: Task, scheme: Scheme, draw: torch.Generator) -> qat.FakeQuantizedModule:
    """Distils: the float module's scores are the aim."""
    learner = qat.prepare(module, task.seen, scheme)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, QAT_STEPS)
    for _ in range(QAT_STEPS):
        images, _ = task.batch(draw)
        with torch.no_grad():
            aim = torch.log_softmax(module(images), -1)
        given = torch.log_softmax(learner(images), -1)
        loss = nn.functional.kl_div(given, aim, log_target=True, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return learner


def accuracy(model: ir.Model, task: Task) -> float:
    """Returns the share of the counted digits that onnxruntime tells right, in percent."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path)
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    scores = session.run(None, {session.get_inputs()[0].name: task.counted.numpy()})[0]
    return float((scores.argmax(-1) == task.wanted.numpy()).mean()) * 100


def main() -> None:
    """Prints a line per network, granularity and seed, and the means."""
    parser = argparse.ArgumentParser(description="Accuracy with weights of 4 bits.")
    parser.add_argument("digits", type=Path, nargs="?", default=DIGITS)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    ort.set_default_logger_severity(3)
    torch.set_num_threads(1)  # the networks are too small to share
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
    columns = ("float", "PTQ", "reconstruction", "QAT")
    print(f"{'':32}" + "".join(f"{column:>16}" for column in columns))
    for build, task in ((SmallCnn, digits(given.digits)), (SmallEncoder, majorities())):
        found: dict[bool, list[list[float]]] = {False: [], True: []}
        for seed in range(given.seeds):
            torch.manual_seed(seed)
            draw = torch.Generator().manual_seed(seed)
            module = build()
            train_in_float(module, task, draw)
            plain = accuracy(exported(module, task.seen[:2]), task)
            for per_channel in (False, True):
                scheme = replace(preset("x86"), weights=Grid(bits=4), per_channel=per_channel)
                graphs = rounded_and_reconstructed(module, task, scheme)
                learner = trained(module, task, scheme, draw)
                rows = found[per_channel]
                rows.append([plain, *(accuracy(graph, task) for graph in (*graphs.values(), learner.graph()))])
                print(line(build, f"seed {seed}", rows[-1], per_channel=per_channel), flush=True)
        for per_channel, rows in found.items():
            means = [float(mean) for mean in np.mean(rows, 0)]
            print(line(build, "mean", means, per_channel=per_channel))
            lost = means[0] - means[1]
            if lost > 0:
                back = [100 * (mean - means[1]) / lost for mean in means[2:]]
                print(f"  of {lost:.1f} points lost, reconstruction gets back {back[0]:.0f} %, QAT {back[1]:.0f} %")


def line(build: type[nn.Module], what: str, row: list[float], *, per_channel: bool) -> str:
    """Returns one row of the table."""
    scales = "per channel" if per_channel else "per tensor"
    return f"{build.__name__ + ', ' + scales + ', ' + what:32}" + "".join(f"{figure:16.2f}" for figure in row)


if __name__ == "__main__":
    main()
