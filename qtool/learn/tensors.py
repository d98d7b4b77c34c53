"""Arrays of numpy as tensors of torch."""

from __future__ import annotations

import numpy as np
import torch

from qtool.calib.specs import Array


def tensor_of(array: Array, device: torch.device) -> torch.Tensor:
    """Returns an array as a tensor: floats on ``device``, shapes and indices on the processor."""
    tensor = torch.from_numpy(np.array(array, order="C"))
    return tensor.to(device) if tensor.dtype.is_floating_point else tensor
