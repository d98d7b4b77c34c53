"""Products and convolutions, which are why one quantizes."""

from __future__ import annotations

import torch
from torch import nn

from tests.operators.kinds import Between, Build, Kind, floats, near_float


class Product(nn.Module):
    """Multiplies what two linear layers make."""

    def __init__(self, equation: str | None = None) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(16, 16), nn.Linear(16, 16)
        self.equation = equation

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        left, right = self.left(a), self.right(b)
        return left @ right if self.equation is None else torch.einsum(self.equation, left, right)


def _convolution(layer: Build, rank: int, values: int) -> Build:
    """Runs a convolution behind another one, for it to read integers, and a linear layer behind it."""
    first = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    return lambda: Between(
        nn.Sequential(first(3, 8, 3, padding=1), nn.ReLU()),
        layer(),
        nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(values, 8)),
    )


PRODUCTS = (
    Kind(
        name="Linear",
        build=lambda: nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8)),
        inputs={"input": floats(16)},
        bounds=near_float((39, 0.9), (39, 1.0), (39, 0.9), (40, 0.8)),
    ),
    Kind(
        name="Linear on sequences",
        build=lambda: nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8)),
        inputs={"input": floats(6, 16)},
        bounds=near_float((38, 1.0), (38, 1.0), (38, 1.1), (39, 0.9)),
    ),
    Kind(
        name="MatMul, batched",
        build=Product,
        inputs={"a": floats(4, 6, 16), "b": floats(4, 16, 16)},
        bounds=near_float((33, 2.7), (32, 2.6), (33, 2.4), (40, 0.8)),
    ),
    Kind(
        name="MatMul, broadcast",
        build=Product,
        inputs={"a": floats(1, 6, 16), "b": floats(4, 16, 16)},
        bounds=near_float((33, 1.2), (33, 1.1), (33, 1.3), (40, 0.8)),
    ),
    Kind(
        name="Einsum",
        build=lambda: Product("bic,bjc->bij"),
        inputs={"a": floats(6, 16), "b": floats(5, 16)},
        bounds=near_float((33, 1.2), (33, 1.3), (33, 1.3), (39, 0.8)),
    ),
)

CONVOLUTIONS = (
    Kind(
        name="Conv1d",
        build=_convolution(lambda: nn.Conv1d(8, 8, 3), 1, 8 * 10),
        inputs={"x": floats(3, 12)},
        bounds=near_float((40, 0.9), (39, 0.9), (34, 1.5), (43, 0.6)),
    ),
    Kind(
        name="Conv2d",
        build=_convolution(lambda: nn.Conv2d(8, 8, 3), 2, 8 * 36),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((36, 1.3), (36, 1.5), (32, 1.8), (39, 0.8)),
    ),
    Kind(
        name="Conv3d",
        build=_convolution(lambda: nn.Conv3d(8, 8, 3), 3, 8 * 27),
        inputs={"x": floats(3, 5, 5, 5)},
        bounds=near_float((39, 1.1), (38, 0.9), (35, 1.3), (43, 0.6)),
    ),
    Kind(
        name="Conv2d, depthwise",
        build=_convolution(lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), 2, 8 * 64),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((40, 0.9), (40, 0.9), (34, 1.6), (40, 0.7)),
    ),
    Kind(
        name="Conv2d, grouped",
        build=_convolution(lambda: nn.Conv2d(8, 16, 3, groups=4), 2, 16 * 36),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((38, 1.0), (37, 1.3), (33, 1.5), (39, 0.9)),
    ),
    Kind(
        name="Conv2d, dilated",
        build=_convolution(lambda: nn.Conv2d(8, 8, 3, dilation=2), 2, 8 * 16),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((40, 0.9), (39, 0.7), (33, 1.6), (45, 0.5)),
    ),
    Kind(
        name="Conv2d, strided",
        build=_convolution(lambda: nn.Conv2d(8, 8, 3, stride=2, padding=1), 2, 8 * 16),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((38, 1.0), (37, 1.1), (33, 1.4), (41, 0.7)),
    ),
    Kind(
        name="ConvTranspose1d",
        build=_convolution(lambda: nn.ConvTranspose1d(8, 8, 2, stride=2), 1, 8 * 24),
        inputs={"x": floats(3, 12)},
        bounds=near_float((39, 2.1), (40, 2.1), (38, 1.1), (46, 0.6)),
    ),
    Kind(
        name="ConvTranspose2d",
        build=_convolution(lambda: nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1), 2, 4 * 225),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((38, 1.0), (38, 1.2), (33, 1.7), (38, 0.9)),
    ),
    Kind(
        name="ConvTranspose2d, windows side by side",
        build=lambda: Between(
            nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU()),
            nn.ConvTranspose2d(64, 4, 2, stride=2),
            nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 8)),
        ),
        inputs={"x": floats(3, 4, 4)},
        bounds=near_float((36, 1.0), (35, 1.2), (31, 1.8), (39, 0.7)),
    ),
)
