"""Merges an adapter into one model three ways, and measures outputs, time and memory.

Run: python benchmarks/merging.py MODEL_FOLDER [--rounds 5] [--large-gb 3.2]

MODEL_FOLDER is a text encoder as transformers saves it, such as that of all-MiniLM-L6-v2. PEFT makes adapters of random
numbers for its attention, feed-forward and embedding layers. One is merged into the weights, into the graph of torch's
exporter and into that of the older one; all of them are to compute what PEFT's own merged model does, and so is a graph
that takes one adapter after the other as it runs. Then come the seconds of the command and of the function against
PEFT's, and the memory that a base of several gigabytes in four files takes. Needs peft and transformers; the memory is
read from /proc.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import peft
import torch
from large_model import measure
from processes import Finished, run
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from qtool.progress import Silent
from qtool.workflows.lora.merge_weights import merge_lora
from qtool.workflows.lora.request import AdapterSource, MergeRequest

ONCE_SCRIPT = Path(__file__).with_name("merge_once.py")
TARGETS = ["query", "key", "value", "dense", "word_embeddings"]
SPREAD = 0.02
SIDE, SHARDS = 8192, 4


class Encoder(torch.nn.Module):
    """Gives the last hidden states of a text encoder."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Takes the encoder."""
        super().__init__()
        self.m = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Returns (batch, length, width)."""
        hidden: torch.Tensor = self.m(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden


def make_adapter(model: Path, folder: Path, seed: int = 0) -> torch.nn.Module:
    """Writes an adapter of noise to ``folder`` and returns what PEFT merges."""
    base = AutoModel.from_pretrained(model, attn_implementation="eager", dtype=torch.float32)
    trained = peft.get_peft_model(base, peft.LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * SPREAD)
    trained.save_pretrained(folder)
    merged: torch.nn.Module = trained.merge_and_unload()
    return merged.eval()


def export(model: torch.nn.Module, example: tuple[torch.Tensor, ...], path: Path, *, dynamo: bool) -> None:
    """Writes ``model`` as a graph."""
    names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["hidden"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(Encoder(model).eval(), example, path, **names, external_data=False, verbose=False)
        else:
            torch.onnx.export(Encoder(model).eval(), example, path, **names, dynamo=False, opset_version=17)


def compare_outputs(model: Path, adapter: Path, expected: torch.nn.Module, scratch: Path) -> dict[str, float]:
    """Returns the largest difference to PEFT's merged model, for each way to merge."""
    ids = torch.randint(5, 3000, (4, 32), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1:, 20:] = 0
    base = AutoModel.from_pretrained(model, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        reference, before = (Encoder(module)(ids, mask).numpy() for module in (expected, base))
    found = {"change by the adapter": float(np.abs(reference - before).max())}
    merge(model, adapter, scratch / "merged")
    with torch.no_grad():
        own = Encoder(AutoModel.from_pretrained(scratch / "merged", attn_implementation="eager").eval())(ids, mask)
    found["safetensors"] = float(np.abs(own.numpy() - reference).max())
    for name, dynamo in (("dynamo export", True), ("TorchScript export", False)):
        graph, result = scratch / f"{dynamo}.onnx", scratch / f"{dynamo}.merged.onnx"
        export(base, (ids, mask), graph, dynamo=dynamo)
        merge(graph, adapter, result, base_weights=model)
        session = onnxruntime.InferenceSession(result, providers=["CPUExecutionProvider"])
        outputs = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        found[name] = float(np.abs(outputs - reference).max())
    return found


def compare_exchanged(model: Path, scratch: Path) -> dict[str, float]:
    """Returns the largest difference to PEFT's merged models of one graph with two adapters and none."""
    ids = torch.randint(5, 3000, (4, 32), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    base = AutoModel.from_pretrained(model, attn_implementation="eager", dtype=torch.float32).eval()
    export(base, (ids, mask), scratch / "base.onnx", dynamo=True)
    modules = {name: make_adapter(model, scratch / name, seed) for seed, name in enumerate(("first", "second"), 1)}
    sources = tuple(AdapterSource(path=scratch / name) for name in modules)
    request = MergeRequest(
        base=scratch / "base.onnx",
        adapters=sources,
        output=scratch / "exchangeable.onnx",
        base_weights=model,
        exclude=("pooler.dense",),
        as_adapter=True,
    )
    merge_lora(request, Silent())
    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(scratch / "exchangeable.onnx", providers=["CPUExecutionProvider"])
    found = {}
    for name, module in {**modules, "none": base}.items():
        options, adapter = onnxruntime.RunOptions(), onnxruntime.LoraAdapter()
        if name in modules:
            adapter.Load(str(scratch / f"{name}.onnx_adapter"))
            options.add_active_adapter(adapter)
        outputs = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}, options)[0]
        with torch.no_grad():
            found[f"LoraAdapter, {name}"] = float(np.abs(outputs - Encoder(module)(ids, mask).numpy()).max())
    return found


def merge(base: Path, adapter: Path, output: Path, base_weights: Path | None = None) -> None:
    """Merges with the function."""
    source = AdapterSource(path=adapter)
    pooler = () if base_weights is None else ("pooler.dense",)  # it is behind the output of the graph
    request = MergeRequest(base=base, adapters=(source,), output=output, base_weights=base_weights, exclude=pooler)
    merge_lora(request, Silent())


def compare_seconds(model: Path, adapter: Path, scratch: Path, rounds: int) -> dict[str, float]:
    """Returns medians of processes in turns."""
    seconds: dict[str, list[float]] = {}
    given = (str(model), str(adapter))
    once = (sys.executable, str(ONCE_SCRIPT))
    for number in range(rounds):
        theirs, ours = (_run((*once, tool, *given, str(scratch / tool), "--warm")) for tool in ("peft", "qtool"))
        merged, written = map(float, theirs.output.split()[-2:])
        command = (sys.executable, "-m", "qtool", "merge-lora", *given, "-o", str(scratch / f"result{number}"))
        taken = {
            "PEFT, load and merge": merged,
            "PEFT, load, merge and write": written,
            "qtool's function, with writing": float(ours.output.split()[-1]),
            "PEFT, whole process": _run((*once, "peft", *given, str(scratch / "peft"))).seconds,
            "qtool merge-lora, whole process": _run((*command, "--quiet")).seconds,
        }
        for name, value in taken.items():
            seconds.setdefault(name, []).append(value)
    return {name: median(values) for name, values in seconds.items()}


def _run(command: Sequence[str]) -> Finished:
    finished = run(command)
    if finished.code:
        sys.exit(f"{' '.join(command)}: {finished.last_line}")
    return finished


def write_large_base(folder: Path, gigabytes: float) -> None:
    """Writes a base in four files, and an adapter for it."""
    layers = max(1, round(gigabytes * 1e9 / (SHARDS * SIDE * SIDE * 4)))
    places: dict[str, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    for shard in range(SHARDS):
        weights = {f"layer{shard}.{number}.weight": torch.randn(SIDE, SIDE) for number in range(layers)}
        file = folder / f"part{shard}.safetensors"
        save_file(weights, file)
        places |= dict.fromkeys(weights, file.name)
    for name in places:
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors |= {f"{module}.lora_A.weight": torch.randn(16, SIDE), f"{module}.lora_B.weight": torch.randn(SIDE, 16)}
    (folder / "adapter").mkdir()
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    (folder / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 16, "lora_alpha": 16}')
    index = folder / "base.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))


def report_memory(scratch: Path, gigabytes: float) -> None:
    """Prints what merging a large base takes."""
    write_large_base(scratch, gigabytes)
    largest = max(file.stat().st_size for file in scratch.glob("part*.safetensors"))
    index, output = scratch / "base.safetensors.index.json", scratch / "out.safetensors.index.json"
    command = ["merge-lora", str(index), str(scratch / "adapter"), "-o", str(output)]
    taken = measure(command)
    print(f"base of {SHARDS} files, the largest of {largest / 1e6:.0f} MB; limit {largest / 1e6 + 500:.0f} MB")
    memory = (
        f"{taken.private_mb:.0f} MB private, {taken.mapped_mb:.0f} MB of files, {taken.resident_mb:.0f} MB together"
    )
    print(f"  at most {memory}; {taken.seconds:.1f} s")
    file = json.loads(output.read_text())["weight_map"]["layer0.0.weight"]
    parts = load_file(scratch / "adapter" / "adapter_model.safetensors")
    module = "base_model.model.layer0.0"
    product = parts[f"{module}.lora_B.weight"][:64].double() @ parts[f"{module}.lora_A.weight"].double()
    before = load_file(scratch / "part0.safetensors")["layer0.0.weight"][:64]
    after = load_file(scratch / file)["layer0.0.weight"][:64]
    print(f"  largest error of the first rows {float((after - (before + product)).abs().max()):.1e}")


def main() -> None:
    """Merges, measures and prints."""
    parser = argparse.ArgumentParser(description="Measures merging of adapters against PEFT.")
    parser.add_argument("model", type=Path, help="the folder of a text encoder")
    parser.add_argument("--rounds", type=int, default=5, help="of the timing; default 5")
    parser.add_argument("--large-gb", type=float, default=3.2, help="size of the large base; 0 for none; default 3.2")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        expected = make_adapter(arguments.model, scratch / "adapter")
        print("largest difference of outputs to PEFT's merged model")
        differences = compare_outputs(arguments.model, scratch / "adapter", expected, scratch)
        for what, value in {**differences, **compare_exchanged(arguments.model, scratch)}.items():
            print(f"  {what:32} {value:.1e}")
        print(f"seconds, medians of {arguments.rounds}")
        taken = compare_seconds(arguments.model, scratch / "adapter", scratch, arguments.rounds)
        for what, value in taken.items():
            print(f"  {what:32} {value:.2f}")
    if arguments.large_gb:
        with tempfile.TemporaryDirectory() as name:
            report_memory(Path(name), arguments.large_gb)


if __name__ == "__main__":
    main()
