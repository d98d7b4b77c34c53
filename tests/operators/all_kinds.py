"""Every kind of operator, in the order of the table."""

from __future__ import annotations

from tests.operators.activations_and_norms import ACTIVATIONS, NORMS
from tests.operators.decoding import DECODER
from tests.operators.layers import CONVOLUTIONS, PRODUCTS
from tests.operators.networks import BLOCKS, NETWORKS
from tests.operators.picking_and_shapes import PICKING, POOLING, SHAPES
from tests.operators.sequences import ATTENTION, POSITIONS, RECURRENT

KINDS = (
    *PRODUCTS,
    *CONVOLUTIONS,
    *PICKING,
    *SHAPES,
    *POOLING,
    *ACTIVATIONS,
    *NORMS,
    *BLOCKS,
    *RECURRENT,
    *POSITIONS,
    *ATTENTION,
    DECODER,
    *NETWORKS,
)
