"""Blocks and small networks of the shapes that people build."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.operators.activations_and_norms import SwiGLU
from tests.operators.kinds import Kind, floats, integers, near_float, on_images
from tests.operators.sequences import FEATURES, STEPS, Attention

_WORDS = 20


class Residual(nn.Module):
    """Adds to its input what two convolutions make of it."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x + self.second(functional.relu(self.first(x))))


class InvertedResidual(nn.Module):
    """Widens, convolves channel by channel and narrows again, as MobileNetV2 does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(8, 16, 1), nn.ReLU6(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6(), nn.Conv2d(16, 8, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.layers(x)
        return out


class SqueezeExcitation(nn.Module):
    """Weighs channels by a gate that it makes from their means."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x * self.gate(x)
        return out


class Block(nn.Module):
    """Is a transformer's layer: attention and a feed-forward network, each added to what it reads."""

    def __init__(self, attention: nn.Module, inner: nn.Module, norm: type[nn.Module], *, norm_first: bool) -> None:
        super().__init__()
        self.attention, self.inner, self.norm_first = attention, inner, norm_first
        self.norms = nn.ModuleList([norm(FEATURES), norm(FEATURES)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.norm_first:
            x = x + self.attention(self.norms[0](x))
            return x + self.inner(self.norms[1](x))
        x = self.norms[0](x + self.attention(x))
        out: torch.Tensor = self.norms[1](x + self.inner(x))
        return out


def feed_forward(activation: nn.Module) -> nn.Module:
    """Returns the two linear layers of a transformer's block."""
    return nn.Sequential(nn.Linear(FEATURES, 32), activation, nn.Linear(32, FEATURES))


class Bert(nn.Module):
    """Encodes tokens from both sides, with norms behind the sums."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(_WORDS, FEATURES), nn.Embedding(STEPS, FEATURES)
        self.norm = nn.LayerNorm(FEATURES)
        self.blocks = nn.Sequential(
            *(Block(Attention(), feed_forward(nn.GELU()), nn.LayerNorm, norm_first=False) for _ in range(2))
        )
        self.pooler = nn.Linear(FEATURES, FEATURES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.tokens(ids) + self.places(torch.arange(ids.shape[1])))
        return torch.tanh(self.pooler(self.blocks(x)[:, 0]))


class Gpt(nn.Module):
    """Predicts tokens from those before, with norms in front."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(_WORDS, FEATURES), nn.Embedding(STEPS, FEATURES)
        self.blocks = nn.Sequential(
            *(
                Block(
                    Attention(causal=True),
                    feed_forward(nn.GELU(approximate="tanh")),
                    nn.LayerNorm,
                    norm_first=True,
                )
                for _ in range(2)
            )
        )
        self.norm, self.head = nn.LayerNorm(FEATURES), nn.Linear(FEATURES, _WORDS, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        out: torch.Tensor = self.head(self.norm(self.blocks(x)))
        return out


class Llama(nn.Module):
    """Predicts tokens with rotated keys that heads share, RMS norms and gated layers."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(_WORDS, FEATURES)
        self.blocks = nn.Sequential(
            *(
                Block(
                    Attention(key_heads=2, causal=True, rotary="half"),
                    SwiGLU(FEATURES, 32),
                    nn.RMSNorm,
                    norm_first=True,
                )
                for _ in range(2)
            )
        )
        self.norm, self.head = nn.RMSNorm(FEATURES), nn.Linear(FEATURES, _WORDS, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.norm(self.blocks(self.tokens(ids))))
        return out


class Vit(nn.Module):
    """Cuts an image into patches and encodes them behind a token of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, FEATURES, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, FEATURES) * 0.3)
        self.places = nn.Parameter(torch.randn(1, 5, FEATURES) * 0.3)
        self.blocks = nn.Sequential(
            *(Block(Attention(), feed_forward(nn.GELU()), nn.LayerNorm, norm_first=True) for _ in range(2))
        )
        self.norm, self.head = nn.LayerNorm(FEATURES), nn.Linear(FEATURES, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        seen = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.places
        out: torch.Tensor = self.head(self.norm(self.blocks(seen))[:, 0])
        return out


class UNet(nn.Module):
    """Labels pixels, with what the way down saw joined to the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom, self.last = self._step(3, 8), self._step(8, 16), self._step(16, 8)
        self.up, self.head = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(8, 2, 1)

    @staticmethod
    def _step(before: int, after: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.down(x)
        coarse = self.bottom(functional.max_pool2d(fine, 2))
        out: torch.Tensor = self.head(self.last(torch.cat([fine, self.up(coarse)], 1)))
        return out


class Crnn(nn.Module):
    """Reads text off images: convolutions, then a recurrent layer along the width."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d((4, 1)),
        )
        self.reader = nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = self.features(x).squeeze(2).transpose(1, 2)
        out: torch.Tensor = self.head(self.reader(columns)[0])
        return out


BLOCKS = (
    Kind(
        name="Residual block",
        build=on_images(Residual, values=512),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((35, 1.1), (34, 1.4), (33, 1.4), (42, 0.7)),
    ),
    Kind(
        name="Inverted residual block",
        build=on_images(InvertedResidual, values=512),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((33, 1.3), (33, 1.3), (33, 1.3), (38, 1.0)),
    ),
    Kind(
        name="Squeeze and excitation",
        build=on_images(SqueezeExcitation, values=512),
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((33, 1.6), (33, 1.3), (32, 1.5), (35, 1.3)),
    ),
)

NETWORKS = (
    Kind(
        name="BERT",
        build=Bert,
        inputs={"ids": integers(_WORDS, STEPS)},
        bounds=near_float((37, 1.6), (38, 1.5), (36, 1.6), (38, 1.4)),
    ),
    Kind(
        name="GPT",
        build=Gpt,
        inputs={"ids": integers(_WORDS, STEPS)},
        bounds=near_float((38, 1.1), (38, 1.1), (38, 1.0), (38, 1.1)),
    ),
    Kind(
        name="LLaMA",
        build=Llama,
        inputs={"ids": integers(_WORDS, STEPS)},
        bounds=near_float((36, 1.4), (37, 1.1), (36, 1.3), (37, 1.3)),
    ),
    Kind(
        name="ViT",
        build=Vit,
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((33, 2.2), (33, 2.1), (31, 2.8), (35, 1.7)),
    ),
    Kind(
        name="U-Net",
        build=UNet,
        inputs={"x": floats(3, 8, 8)},
        bounds=near_float((47, 1.2), (47, 0.9), (44, 1.3), None),
    ),
    Kind(
        name="CRNN",
        build=Crnn,
        inputs={"x": floats(1, 8, 12)},
        bounds=near_float((50, 0.5), (50, 0.6), (49, 0.7), (49, 0.7)),
    ),
)
