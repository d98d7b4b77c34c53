"""The pass over a text in which a report's language models run side by side, one row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qtool.calib.datasets.batching import fixed_batch_size
from qtool.calib.datasets.text_file import TextOptions
from qtool.calib.datasets.tokenizing import Tokenizer
from qtool.calib.specs import Array, Feed, TensorSpec
from qtool.errors import UsageError
from qtool.llm.cached_feeds import DecoderInputs
from qtool.llm.decoder_folder import find_decoder_folder, is_decoder_folder
from qtool.llm.generation import Answer, answers
from qtool.llm.language_figures import TokenTimes, token_times
from qtool.llm.perplexity import LanguageMeter, MeanMeter, perplexity_of, require_tokens
from qtool.llm.token_scores import in_parts, token_losses
from qtool.metrics.fidelity import FidelityMeter
from qtool.metrics.judged_batch import Batch
from qtool.metrics.latency import Times
from qtool.metrics.session_group import SessionGroup
from qtool.metrics.task import Metric
from qtool.progress import Progress
from qtool.workflows.report.report_data import OpenData
from qtool.workflows.report.report_outputs import Seen, TextSeen, total_samples

NEW_TOKENS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """What models are to go on with.

    Attributes:
        texts: the prompts.
        tokenizer: makes tokens of them.
        count: how many tokens each model adds at most.
        ends: tokens that end an answer.
    """

    texts: tuple[str, ...]
    tokenizer: Tokenizer
    count: int
    ends: tuple[int, ...] = ()


def check_text(opened: Sequence[OpenData], batch_size: int | None) -> None:
    """Refuses what has no effect on text.

    Raises:
        UsageError: a batch size is given.
    """
    if batch_size not in (None, 1) and any(entry.tokenizer is not None for entry in opened):
        raise UsageError(
            f"--batch-size {batch_size} has no effect on text, of which one row runs at a time", fix="drop it"
        )


def asked_prompts(
    texts: tuple[str, ...], options: TextOptions | None, count: int, models: Sequence[Path]
) -> Prompts | None:
    """Returns the prompts with what they need; None where there are none.

    Raises:
        UsageError: there is no tokenizer for them, or one is empty.
        CalibError: the tokenizer cannot be read.
        InputError: the configuration of a model's folder cannot be read.
    """
    if not texts:
        return None
    if options is None:
        raise UsageError(
            "--prompt needs a tokenizer, and none stands beside the models", fix="name it: --tokenizer FOLDER"
        )
    tokenizer = Tokenizer(options.tokenizer)
    if not all(map(tokenizer.prompt, texts)):
        raise UsageError("a prompt is empty", fix="give it some words: --prompt 'Once upon a time'")
    folder = next((model for model in models if is_decoder_folder(model)), None)
    ends = () if folder is None else find_decoder_folder(folder).eos_tokens
    return Prompts(texts=texts, tokenizer=tokenizer, count=count, ends=ends)


def run_over_text(
    group: SessionGroup,
    opened: OpenData,
    metric: Metric | None,
    *,
    references: Sequence[int],
    limit: int | None,
    progress: Progress,
) -> Seen:
    """Runs every model on every row, and compares what they say of the tokens that follow.

    Holds the logits of float models and of one other for one row, and a few sums a row.

    Args:
        group: the models, a float model first.
        opened: the text.
        metric: a metric to compute as well, if any.
        references: of each model the place of the one that it is compared with, which stands before it.
        limit: use only the first so many rows.
        progress: receives the steps.

    Raises:
        InputError: the models are no language models, or the tokens are not theirs.
        RuntimeRefusedError: a runtime stops while it runs a model.
        CalibError: the text does not fit the models.
    """
    inputs = DecoderInputs.of(group.inputs, group.outputs)
    losses = MeanMeter()
    meters = [LanguageMeter() for _ in range(group.count - 1)]
    fidelity = [FidelityMeter() for _ in meters]
    scores = [metric.start() for _ in range(group.count)] if metric is not None else []
    first: Feed | None = None
    rows = predicted = 0
    feeds = opened.data.feeds(group.inputs, batch_size=1, limit=limit, remark=progress.note)
    with progress.task("reading the text", total_samples(opened.data.count, limit)) as advance:
        for feed in feeds:
            first = first or feed
            tokens = require_tokens(feed)
            logits: dict[int, Array] = {}
            for place, outputs in enumerate(group.runs(feed, [inputs.logits])):
                found = outputs[inputs.logits]
                reference = logits[references[place]] if place else found
                if place in references:
                    logits[place] = found
                for row, expected, got in zip(tokens, reference, found, strict=True):
                    if place:
                        meters[place - 1].add(expected, got, row)
                    else:
                        losses.add(token_losses(got, row))
                for part in in_parts(found.shape[1], found.shape[2]) if place else ():
                    # All at once would take many times the logits themselves.
                    fidelity[place - 1].add({inputs.logits: reference[:, part]}, {inputs.logits: found[:, part]})
                if scores:
                    scores[place].add(_batch(inputs.logits, found, reference, feed, len(tokens)))
            rows += len(tokens)
            predicted += tokens.size - len(tokens)
            advance(len(tokens))
    if first is None:
        raise AssertionError("a text has at least one row")
    results = tuple(meter.result() for meter in meters)
    prompt, step, cached = _timed_feeds(group, inputs, first)
    return Seen(
        fidelity=tuple(meter.results() for meter in fidelity),
        accuracy=(),
        metric=tuple(meter.result() for meter in scores),
        classes=((),) * len(meters),
        changed=((),) * len(meters),
        samples=rows,
        sample=step,
        batch=prompt,
        text=TextSeen(
            perplexities=(perplexity_of(losses), *(result.perplexity for result in results)),
            scores=results,
            predicted=predicted,
            prompt_tokens=require_tokens(prompt).size,
            cached_tokens=cached,
            logits=inputs.logits,
        ),
    )


def answers_of(
    group: SessionGroup, references: Sequence[int], prompts: Prompts | None, progress: Progress
) -> list[tuple[Answer, ...]]:
    """Returns what each model but the first says to the prompts, beside its float model.

    Raises:
        InputError: a model cannot go on with a prompt.
        RuntimeRefusedError: a runtime stops while it runs a model.
    """
    if prompts is None:
        return [() for _ in range(group.count - 1)]
    found: list[list[Answer]] = [[] for _ in range(group.count - 1)]
    with progress.task("asking the models", len(prompts.texts)) as advance:
        for text in prompts.texts:
            said = answers(text, group.models, references, prompts.tokenizer, count=prompts.count, ends=prompts.ends)
            for own, answer in zip(found, said, strict=True):
                own.append(answer)
            advance(1)
    return [tuple(own) for own in found]


def times_of_tokens(
    text: TextSeen | None, references: Sequence[int], steps: Sequence[Times], prompts: Sequence[Times]
) -> list[TokenTimes | None]:
    """Sums up the rounds of each model; None for each where there is no text, or nothing was timed."""
    if text is None or not steps:
        return [None for _ in references]
    return [
        token_times(
            (prompts[reference], prompts[place]),
            (steps[reference], steps[place]),
            prompt_tokens=text.prompt_tokens,
            cached_tokens=text.cached_tokens,
        )
        for place, reference in enumerate(references)
    ]


def _timed_feeds(group: SessionGroup, inputs: DecoderInputs, first: Feed) -> tuple[Feed, Feed, int]:
    """Returns a prompt, one step, and how many tokens the cache holds in that step; times do not depend on values."""
    row = require_tokens(first)[0]
    if fixed_batch_size(group.inputs) not in (None, 1) or _fixed_length(inputs) is not None:
        # Whatever is to be added, the model runs over all that it is made for.
        return first, first, 0
    prompt = inputs.prompt(row)
    if not inputs.caches:
        return prompt, inputs.prompt(row[:1]), 0
    # One token less, so that the step stays within the model's context.
    cached = len(row) - 1
    outputs = group.models[0].run(inputs.prompt(row[:-1]), list(inputs.caches.values()))
    return prompt, inputs.step(int(row[-1]), cached, outputs), cached


def _fixed_length(inputs: DecoderInputs) -> int | None:
    tokens: TensorSpec = next(spec for spec, role in inputs.by_role if role == "tokens")
    length = None if tokens.shape is None else tokens.shape[1]
    return length if isinstance(length, int) else None


def _batch(logits: str, found: Array, reference: Array, feed: Feed, rows: int) -> Batch:
    return Batch(outputs={logits: found}, reference={logits: reference}, inputs=feed, labels=None, rows=rows)
