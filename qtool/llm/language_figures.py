"""What a report tells of language models besides what it tells of any model."""

from __future__ import annotations

from dataclasses import dataclass

from qtool.metrics.latency import Interval, Times, paired_ratio, run_milliseconds, throughput


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTimes:
    """How fast one model takes a prompt, and adds tokens to it.

    Attributes:
        prompt_tokens: the length of the prompt.
        cached_tokens: how many tokens were in the cache when tokens were added; 0 for a model without a cache.
        prefill: tokens of the prompt a second.
        decode: tokens added a second.
        first_token_ms: milliseconds from the prompt to the first token after it.
        prefill_speedup: the float model's time for the prompt over this model's, from paired rounds.
        decode_speedup: the float model's time for a token over this model's, from paired rounds.
    """

    prompt_tokens: int
    cached_tokens: int
    prefill: Interval
    decode: Interval
    first_token_ms: Interval
    prefill_speedup: Interval
    decode_speedup: Interval


def token_times(
    prompts: tuple[Times, Times], steps: tuple[Times, Times], *, prompt_tokens: int, cached_tokens: int
) -> TokenTimes:
    """Sums up the rounds of a model.

    Args:
        prompts: seconds a prompt, of the model that it is compared with and of the model itself, by round.
        steps: seconds a token, as above.
        prompt_tokens: the length of the prompt.
        cached_tokens: how many tokens were in the cache.
    """
    return TokenTimes(
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        prefill=throughput(prompts[1], batch_size=prompt_tokens),
        decode=throughput(steps[1], batch_size=1),
        first_token_ms=run_milliseconds(prompts[1]),
        prefill_speedup=paired_ratio(*prompts),
        decode_speedup=paired_ratio(*steps),
    )
