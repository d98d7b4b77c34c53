"""What a decoder takes: a prompt with empty caches, then one token a step with the caches of the step before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qtool.calib.datasets.text_file import Role, role_array, role_of
from qtool.calib.datasets.zero_states import empty_state, states_of
from qtool.calib.specs import Array, TensorSpec
from qtool.errors import InputError
from qtool.graph.decoder_caches import filled_by
from qtool.llm.token_scores import logits_name


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderInputs:
    """The inputs of a language model by what they are for, and its outputs.

    Attributes:
        by_role: the inputs besides caches, with the role of each.
        caches: the output that fills each cache, by the input; empty for a model without.
        logits: the output with the logits.
    """

    by_role: tuple[tuple[TensorSpec, Role], ...]
    caches: Mapping[TensorSpec, str]
    logits: str

    @classmethod
    def of(cls, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> DecoderInputs:
        """Sorts the inputs of a graph.

        Raises:
            InputError: it is no language model that qtool knows how to feed.
        """
        logits = logits_name(outputs)
        states = states_of(inputs, outputs)
        others = [(spec, role_of(spec)) for spec in inputs if spec not in states]
        unknown = [spec.name for spec, role in others if role is None]
        if logits is None or unknown or [role for _, role in others].count("tokens") != 1:
            why = f"it takes {', '.join(unknown)}" if unknown else "it does not take tokens and return logits"
            raise InputError(f"the model cannot be run as a language model: {why}", fix="give other data than text")
        for spec in states:
            if 0 not in empty_state(spec, 1).shape:
                raise InputError(
                    f"the cache '{spec.name}' has the fixed shape {spec.shape}, and cannot be empty",
                    fix="export the model with a free length of the cache",
                )
        names = [spec.name for spec in outputs]
        return cls(
            by_role=tuple((spec, role) for spec, role in others if role is not None),
            caches={spec: _present(spec.name, names) for spec in states},
            logits=logits,
        )

    def prompt(self, tokens: Sequence[int] | Array) -> dict[str, Array]:
        """Returns the feed of a first step, of one row."""
        row = np.asarray(tokens, np.int64)
        feed = {spec.name: role_array(role, row, spec.dtype) for spec, role in self.by_role}
        return feed | {spec.name: empty_state(spec, 1) for spec in self.caches}

    def step(self, token: int, position: int, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the feed of a further step.

        Args:
            token: the token to add.
            position: how many tokens stand before it.
            outputs: those of the step before.
        """
        whole = np.full(position + 1, token, np.int64)
        feed = {}
        for spec, role in self.by_role:
            values = role_array(role, whole, spec.dtype)
            feed[spec.name] = values if role == "mask" else values[:, -1:]
        return feed | {spec.name: outputs[name] for spec, name in self.caches.items()}


def _present(past: str, outputs: Sequence[str]) -> str:
    found = filled_by(past, outputs)
    if found is not None:
        return found
    raise InputError(
        f"the cache '{past}' is filled by no output that is named after it",
        fix="export the model with caches past_key_values.N.key and present.N.key",
    )
