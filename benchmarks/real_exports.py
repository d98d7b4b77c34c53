"""Builds in torch those of the real models whose packages ship weights only, and writes them as ONNX."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

Array = npt.NDArray[Any]
_STEPS = 64


def _export(module: nn.Module, inputs: tuple[torch.Tensor, ...], names: Sequence[str], output: str, path: Path) -> None:
    """Writes ``module`` with a free number of samples."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.onnx.export(
        module.eval(),
        inputs,
        str(path),
        input_names=list(names),
        output_names=[output],
        dynamo=True,
        dynamic_shapes=tuple({0: batch} for _ in inputs),
        external_data=False,
        verbose=False,
    )


def digits(_: list[Path], source: Path, destination: Path) -> None:
    """Exports the small network of the samples."""
    sys.path.insert(0, str(source.parent))
    from mnist_cnn import build

    module = build()
    module.load_state_dict(torch.load(source, weights_only=True))
    _export(module, (torch.rand(2, 1, 28, 28),), ["image"], "logits", destination)


def efficientnet_lite0(folders: list[Path], source: Path, destination: Path) -> None:
    """Exports the network of its own package."""
    sys.path.insert(0, str(folders[1]))
    from efficientnet_lite_pytorch import EfficientNet

    module = EfficientNet.from_name("efficientnet-lite0")
    module.load_state_dict(torch.load(source, weights_only=True))
    _export(module, (torch.rand(2, 3, 224, 224),), ["input"], "logits", destination)


def minilm(_: list[Path], source: Path, destination: Path) -> None:
    """Exports the sentence encoder: the mean over the tokens that are not padding, of length one."""
    from transformers import AutoModel

    class SentenceEncoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(source.parent, attn_implementation="eager")

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return functional.normalize((hidden * kept).sum(1) / kept.sum(1), dim=1)

    ids = torch.randint(5, 3000, (2, _STEPS))
    _export(
        SentenceEncoder(), (ids, torch.ones_like(ids)), ["input_ids", "attention_mask"], "sentence_vector", destination
    )


def encoded_sentences(folder: Path, sentences: Sequence[str]) -> Mapping[str, Array]:
    """Returns the tokens of sentences and which of them are no padding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(next(folder.glob("**/tokenizer.json"))))
    tokenizer.enable_truncation(_STEPS)
    tokenizer.enable_padding(length=_STEPS)
    encoded = tokenizer.encode_batch(list(sentences))
    return {
        "input_ids": np.array([one.ids for one in encoded], np.int64),
        "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
    }


class _MobileNetV2(nn.Module):
    """M. Sandler et al., MobileNetV2 (CVPR 2018), table 2, with channels last at its input as Keras has it."""

    def __init__(self, weights: Mapping[str, Any], classes: Mapping[str, Any]) -> None:
        super().__init__()
        self.stem = _block(weights, "Conv1", "bn_Conv1", stride=2, clamp=True)
        blocks: list[nn.Module] = []
        number = 0
        for repeats, first_stride in ((1, 1), (2, 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1)):
            for repeat in range(repeats):
                blocks.append(_Bottleneck(weights, number, first_stride if repeat == 0 else 1, repeat > 0))
                number += 1
        self.blocks = nn.Sequential(*blocks)
        self.last = _block(weights, "Conv_1", "Conv_1_bn", stride=1, clamp=True)
        self.classes = nn.Linear(*classes["kernel"].shape)
        with torch.no_grad():
            self.classes.weight.copy_(torch.from_numpy(np.asarray(classes["kernel"]).T))
            self.classes.bias.copy_(torch.from_numpy(np.asarray(classes["bias"])))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.last(self.blocks(self.stem(image.permute(0, 3, 1, 2))))
        return self.classes(features.mean((2, 3)))


class _Bottleneck(nn.Module):
    def __init__(self, weights: Mapping[str, Any], number: int, stride: int, adds: bool) -> None:
        super().__init__()
        prefix = f"block_{number}_" if number else "expanded_conv_"
        parts = [_block(weights, f"{prefix}expand", f"{prefix}expand_BN", stride=1, clamp=True)] if number else []
        parts.append(_block(weights, f"{prefix}depthwise", f"{prefix}depthwise_BN", stride=stride, clamp=True))
        parts.append(_block(weights, f"{prefix}project", f"{prefix}project_BN", stride=1, clamp=False))
        self.layers, self.adds = nn.Sequential(*parts), adds

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.layers(features) if self.adds else self.layers(features)


def _block(weights: Mapping[str, Any], layer: str, norm: str, *, stride: int, clamp: bool) -> nn.Module:
    """Returns a convolution with its normalization; Keras pads at the end where it strides."""
    kernel = np.asarray(weights[layer]["kernel"])
    each = layer.endswith("depthwise")
    stored = torch.from_numpy(kernel.transpose((2, 3, 0, 1) if each else (3, 2, 0, 1)).copy())
    size, channels = stored.shape[-1], stored.shape[0]
    convolution = nn.Conv2d(
        channels if each else stored.shape[1], channels, size, stride, groups=channels if each else 1, bias=False
    )
    normal = nn.BatchNorm2d(channels, eps=1e-3)
    with torch.no_grad():
        convolution.weight.copy_(stored)
        for own, name in (
            (normal.weight, "gamma"),
            (normal.bias, "beta"),
            (normal.running_mean, "moving_mean"),
            (normal.running_var, "moving_variance"),
        ):
            own.copy_(torch.from_numpy(np.asarray(weights[norm][name])))
    before, after = (0, 1) if stride == 2 else ((size - 1) // 2,) * 2
    pad = nn.ZeroPad2d((before, after, before, after)) if size > 1 else nn.Identity()
    return nn.Sequential(pad, convolution, normal, nn.ReLU6() if clamp else nn.Identity())


def mobilenet_v2(folders: list[Path], source: Path, destination: Path) -> None:
    """Exports MobileNetV2 with the weights of a Keras file."""
    sys.path.insert(0, str(folders[2]))
    import h5py

    with h5py.File(source) as file:
        stored = file["model_weights"]
        module = _MobileNetV2(stored["mobilenetv2_1.00_160"], stored["dense/dense"])
    _export(module, (torch.rand(2, 160, 160, 3),), ["image"], "logits", destination)


EXPORTS: Mapping[str, Callable[[list[Path], Path, Path], None]] = {
    "digits": digits,
    "efficientnet_lite0": efficientnet_lite0,
    "minilm": minilm,
    "mobilenet_v2": mobilenet_v2,
}
