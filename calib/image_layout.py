"""Where the channels of images are."""

from __future__ import annotations

from typing import Literal, TypeAlias

Layout: TypeAlias = Literal["nchw", "nhwc"]
