"""Builds the change of trainable tokens: some rows of an embedding are replaced.

Source: https://huggingface.co/docs/peft/package_reference/trainable_tokens.
"""

from __future__ import annotations

from qtool.errors import InputError
from qtool.lora.methods.changes import Replaced
from qtool.lora.methods.module_changes import BaseModule, ModuleChange, check_roles
from qtool.lora.readers.adapter import Adapter, AdapterModule


def token_changes(module: AdapterModule, base: BaseModule, adapter: Adapter) -> list[ModuleChange]:
    """Returns the change of the embedding.

    Raises:
        InputError: the settings do not say which rows they are, or the rows are not in the base.
    """
    check_roles(module, {"trainable_tokens_delta"}, set(), base.source)
    values, shape = module.parts["trainable_tokens_delta"], base.shape("weight")
    rows = adapter.settings.rows_of(module.path)
    if rows is None or len(rows) != len(values) or len(set(rows)) != len(rows):
        raise InputError(
            f"{base.source} holds {len(values)} trained rows of {module.path}, and the settings name "
            f"{'none' if rows is None else len(set(rows))}",
            fix="use the adapter_config.json that was saved with these weights",
        )
    if tuple(values.shape[1:]) != shape[1:] or not all(0 <= row < shape[0] for row in rows):
        raise base.misfit("weight", f"its rows have the shape {tuple(values.shape[1:])}, the last is {max(rows)}")
    return [base.change("weight", Replaced(values=values, indices=rows, kind="trainable tokens"))]
