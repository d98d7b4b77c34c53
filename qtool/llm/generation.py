"""Lets models go on with a prompt, with the token that is most likely at each step."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from qtool.calib.datasets.tokenizing import Tokenizer
from qtool.errors import InputError
from qtool.llm.cached_feeds import DecoderInputs
from qtool.runtime.running_model import RunningModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How two models go on with a prompt.

    Attributes:
        prompt: the prompt.
        float_text: what the float model says.
        text: what the other one says.
        tokens: how many tokens the float model says.
        same_tokens: how many of them, from the first on, the other one says too.
    """

    prompt: str
    float_text: str
    text: str
    tokens: int
    same_tokens: int


def continuation(
    model: RunningModel, inputs: DecoderInputs, prompt: Sequence[int], *, count: int, ends: Collection[int] = ()
) -> list[int]:
    """Returns the tokens that ``model`` adds to ``prompt``, each the most likely one.

    Args:
        model: with or without a cache; without, every step runs over all tokens again.
        inputs: what it takes.
        prompt: its tokens, at least one.
        count: how many tokens to add at most.
        ends: tokens that end an answer; the one that does belongs to it.

    Raises:
        RuntimeRefusedError: the model does not run.
    """
    said: list[int] = []
    feed = inputs.prompt(prompt)
    wanted = [inputs.logits, *inputs.caches.values()]
    while len(said) < count:
        outputs = model.run(feed, wanted)
        said.append(int(outputs[inputs.logits][0, -1].argmax()))
        if said[-1] in ends:
            break
        if inputs.caches:
            feed = inputs.step(said[-1], len(prompt) + len(said) - 1, outputs)
        else:
            feed = inputs.prompt([*prompt, *said])
    return said


def answers(
    prompt: str,
    models: Sequence[RunningModel],
    references: Sequence[int],
    tokenizer: Tokenizer,
    *,
    count: int,
    ends: Collection[int] = (),
) -> tuple[Answer, ...]:
    """Returns what each model but the first says to ``prompt``, beside the float model that it is compared with.

    Args:
        prompt: a text of at least one token.
        models: a float model, then others.
        references: of each model the place of the one that it is compared with.
        tokenizer: that of the models.
        count: how many tokens each adds at most.
        ends: tokens that end an answer.

    Raises:
        InputError: a model is no language model.
        RuntimeRefusedError: a model does not run.
    """
    tokens = tokenizer.prompt(prompt)
    said = []
    for model in models:
        inputs = DecoderInputs.of(model.inputs, model.outputs)
        fixed = next(spec.shape[1] for spec, role in inputs.by_role if role == "tokens" and spec.shape is not None)
        if isinstance(fixed, int):
            raise InputError(
                f"the model takes rows of exactly {fixed} tokens, and cannot go on with a prompt",
                fix="export it with a free length, or leave --prompt out",
            )
        said.append(continuation(model, inputs, tokens, count=count, ends=ends))
    return tuple(
        Answer(
            prompt=prompt,
            float_text=tokenizer.text(said[reference]),
            text=tokenizer.text(own),
            tokens=len(said[reference]),
            same_tokens=_same(said[reference], own),
        )
        for own, reference in zip(said[1:], references[1:], strict=True)
    )


def _same(left: Sequence[int], right: Sequence[int]) -> int:
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))
