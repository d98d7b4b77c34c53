"""A small residual CNN for handwritten digits, the model of the samples."""

from __future__ import annotations

import torch
from torch import nn


class ResidualBlock(nn.Module):
    """Adds what two normalized convolutions make of its input to the input."""

    def __init__(self, channels: int) -> None:
        """Makes a block that keeps its input's shape, (batch, ``channels``, height, width)."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns features of the same shape, none below zero."""
        inner = torch.relu(self.norm1(self.conv1(features)))
        return torch.relu(features + self.norm2(self.conv2(inner)))


class DigitClassifier(nn.Module):
    """Tells handwritten digits apart."""

    def __init__(self, width: int) -> None:
        """Makes a network whose first stage has ``width`` channels, each later one twice the one before."""
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stage1 = ResidualBlock(width)
        self.down = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        self.stage2 = ResidualBlock(2 * width)
        self.stage3 = ResidualBlock(2 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(2 * width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns the logits of the ten digits, (batch, 10), for images (batch, 1, 28, 28) from 0 to 1."""
        features = self.stage3(self.stage2(self.down(self.stage1(self.stem(image)))))
        logits: torch.Tensor = self.classifier(self.pool(features).flatten(1))
        return logits


def build(width: int = 16) -> DigitClassifier:
    """Returns the network with random weights; what ``qtool convert --model samples/mnist_cnn.py:build`` calls."""
    return DigitClassifier(width)
