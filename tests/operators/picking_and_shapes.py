"""Operators that pick, place and reorder values."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.operators.kinds import Kind, computing, flags, floats, integers, near_float, on_features, on_images


class Table(nn.Module):
    """Looks rows up and multiplies them."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.linear = nn.Embedding(20, 16), nn.Linear(16, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(self.rows(ids))
        return out


class Picking(nn.Module):
    """Picks values out of what a linear layer makes, for another one to read."""

    def __init__(self, how: str, features: int = 16) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(16, 16), nn.Linear(features, 8)
        self.how = how

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.after(self.picked(self.before(x), ids))
        return out

    def picked(self, y: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        samples = torch.arange(y.shape[0])
        if self.how == "gather":
            return torch.gather(y, 2, ids)
        if self.how == "gather-nd":
            return y[samples, ids]
        if self.how == "scatter":
            return torch.zeros_like(y).scatter(1, ids, y)
        if self.how == "scatter-add":
            return y.scatter_add(1, ids, y * 0.5)
        if self.how == "scatter-nd":
            return y.index_put((samples, ids), torch.ones(1))
        if self.how == "masked-select":
            return torch.masked_select(y, ids[:, :, None]).reshape(-1, 16)
        return y[ids]


class Masked(nn.Module):
    """Clears what a mask names, between two convolutions, as models of sounds of different lengths do."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 8, 3, padding=1)
        self.after = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 8))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.after(self.before(x).masked_fill(mask, 0.0))
        return out


class Joining(nn.Module):
    """Joins two halves that it makes in different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([functional.relu(self.left(x)), self.right(x)], -1)


PICKING = (
    Kind(
        name="Embedding",
        build=Table,
        inputs={"ids": integers(20, 6)},
        bounds=near_float((39, 0.8), (38, 0.9), (39, 1.1), (39, 0.9)),
    ),
    Kind(
        name="Gather along an axis",
        build=lambda: Picking("gather"),
        inputs={"x": floats(6, 16), "ids": integers(16, 6, 16)},
        bounds=near_float((37, 0.9), (36, 1.1), (37, 1.0), (38, 0.8)),
    ),
    Kind(
        name="Gather of rows (GatherND)",
        build=lambda: Picking("gather-nd"),
        inputs={"x": floats(6, 16), "ids": integers(6)},
        bounds=near_float((37, 0.9), (37, 1.0), (37, 0.8), (39, 0.7)),
    ),
    Kind(
        name="Scatter",
        build=lambda: Picking("scatter"),
        inputs={"x": floats(6, 16), "ids": integers(6, 6, 16)},
        bounds=near_float((38, 1.0), (38, 1.0), (37, 1.0), (39, 0.9)),
    ),
    Kind(
        name="Scatter, adding",
        build=lambda: Picking("scatter-add"),
        inputs={"x": floats(6, 16), "ids": integers(6, 6, 16)},
        bounds=near_float((36, 1.0), (37, 1.0), (37, 1.0), (38, 0.9)),
    ),
    Kind(
        name="Scatter of rows (ScatterND)",
        build=lambda: Picking("scatter-nd"),
        inputs={"x": floats(6, 16), "ids": integers(6)},
        bounds=near_float((41, 0.7), (41, 1.0), (40, 0.8), (40, 0.8)),
    ),
    Kind(
        name="index_select",
        build=on_features(computing(lambda x: torch.index_select(x, 1, torch.tensor([2, 0, 3])))),
        inputs={"x": floats(6, 16)},
        bounds=near_float((37, 1.0), (37, 0.9), (37, 0.9), (38, 0.8)),
    ),
    Kind(
        name="masked_select",
        build=lambda: Picking("masked-select"),
        inputs={"x": floats(6, 16), "ids": flags(6)},
        bounds=near_float((39, 0.9), (39, 1.0), (39, 0.9), (40, 1.0)),
    ),
    Kind(
        name="Indexing with a mask",
        build=lambda: Picking("mask"),
        inputs={"x": floats(6, 16), "ids": flags(6)},
        bounds=near_float((37, 1.0), (37, 1.0), (37, 1.0), (37, 1.0)),
    ),
    Kind(
        name="Where (masked_fill)",
        build=Masked,
        inputs={"x": floats(3, 8, 8), "mask": flags(1, 8, 8)},
        bounds=near_float((36, 1.3), (36, 1.3), (35, 1.4), (42, 0.7)),
    ),
)

SHAPES = (
    Kind(
        name="Concat",
        build=on_features(Joining, after=32),
        inputs={"x": floats(16)},
        bounds=near_float((34, 1.3), (35, 1.3), (34, 1.4), (36, 1.2)),
    ),
    Kind(
        name="Split",
        build=on_features(computing(lambda x: sum(x.split([4, 8, 4], -1)[::2])), after=4),
        inputs={"x": floats(16)},
        bounds=near_float((36, 1.2), (36, 1.3), (37, 1.1), (41, 0.8)),
    ),
    Kind(
        name="Slice with steps",
        build=on_features(computing(lambda x: x[:, 1::2, ::2]), after=8),
        inputs={"x": floats(6, 16)},
        bounds=near_float((38, 1.0), (38, 1.4), (38, 1.1), (41, 1.1)),
    ),
    Kind(
        name="Unsqueeze",
        build=on_features(computing(lambda x: x.unsqueeze(1))),
        inputs={"x": floats(6, 16)},
        bounds=near_float((38, 1.1), (38, 1.0), (38, 1.2), (39, 1.0)),
    ),
    Kind(
        name="Expand",
        build=on_features(computing(lambda x: x[:, None].expand(-1, 4, -1))),
        inputs={"x": floats(16)},
        bounds=near_float((37, 1.1), (36, 1.2), (36, 1.4), (39, 1.0)),
    ),
    Kind(
        name="Transpose",
        build=on_features(computing(lambda x: x.transpose(1, 2)), after=6),
        inputs={"x": floats(6, 16)},
        bounds=near_float((39, 1.3), (39, 1.2), (39, 1.0), (40, 0.9)),
    ),
    Kind(
        name="Pad with zeros",
        build=on_images(computing(lambda x: functional.pad(x, (1, 2, 0, 1))), values=8 * 11 * 9),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((36, 1.1), (36, 1.1), (36, 1.2), (38, 1.0)),
    ),
    Kind(
        name="Pad in front of Conv2d",
        build=on_images(lambda: nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(8, 4, 3)), values=4 * 64),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((33, 1.2), (32, 1.4), (33, 1.4), (37, 0.8)),
    ),
    Kind(
        name="Pad with reflection",
        build=on_images(lambda: nn.ReflectionPad2d(1), values=8 * 100),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((35, 1.4), (35, 1.2), (35, 1.2), (35, 1.4)),
    ),
)

POOLING = (
    Kind(
        name="MaxPool2d",
        build=on_images(lambda: nn.MaxPool2d(2), values=8 * 16),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((34, 1.4), (34, 1.4), (33, 1.4), (36, 0.9)),
    ),
    Kind(
        name="AvgPool2d",
        build=on_images(lambda: nn.AvgPool2d(2), values=8 * 16),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((34, 1.3), (35, 1.5), (34, 1.5), (38, 1.0)),
    ),
    Kind(
        name="Global average pooling",
        build=on_images(computing(lambda x: x.mean((2, 3))), values=8),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((50, 0.6), (50, 0.5), (50, 0.6), (50, 0.5)),
    ),
    Kind(
        name="Global max pooling",
        build=on_images(computing(lambda x: x.amax((2, 3))), values=8),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((43, 1.0), (43, 1.0), (43, 1.0), (44, 0.7)),
    ),
    Kind(
        name="AdaptiveAvgPool2d(1)",
        build=on_images(lambda: nn.AdaptiveAvgPool2d(1), values=8),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((50, 0.6), (51, 0.6), (51, 0.5), (55, 0.4)),
    ),
    Kind(
        name="AdaptiveAvgPool2d(4)",
        build=on_images(lambda: nn.AdaptiveAvgPool2d(4), values=8 * 16),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((33, 1.4), (33, 1.5), (34, 1.2), (38, 0.9)),
    ),
    Kind(
        name="AdaptiveMaxPool2d(4)",
        build=on_images(lambda: nn.AdaptiveMaxPool2d(4), values=8 * 16),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((37, 1.2), (37, 1.0), (36, 1.3), (41, 0.8)),
    ),
    Kind(
        name="Resize, nearest",
        build=on_images(lambda: nn.Upsample(scale_factor=2.0), values=8 * 256),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((35, 1.2), (35, 1.4), (35, 1.1), (37, 0.9)),
    ),
    Kind(
        name="Resize, bilinear",
        build=on_images(lambda: nn.Upsample(scale_factor=2.0, mode="bilinear"), values=8 * 256),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((32, 1.8), (32, 1.3), (30, 2.1), (35, 1.1)),
    ),
)
