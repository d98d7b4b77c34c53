"""Selection of the nodes to quantize, by name or operator, with wildcards and regular expressions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

import onnx_ir as ir

from qtool.errors import UsageError


@dataclass(frozen=True, slots=True)
class NodeSelection:
    """Holds patterns: ``Conv``, ``/head/*``, ``re:layer[0-3]/.*``; a pattern meets a node's name or its operator.

    Attributes:
        include: when there are any, only nodes that meet one of them are quantized.
        exclude: nodes that meet one of these stay float.
        dynamic: layers that meet one of these quantize their activations as they run, in an otherwise static model.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    dynamic: tuple[str, ...] = ()

    def check(self, nodes: Sequence[ir.Node]) -> None:
        """Rejects patterns that meet nothing, since a misspelt exclusion would go unnoticed.

        Raises:
            UsageError: a pattern matches no node, or is not a regular expression.
        """
        known = sorted({node.op_type for node in nodes} | {node.name for node in nodes if node.name})
        for option, patterns in (
            ("--include", self.include),
            ("--exclude", self.exclude),
            ("--dynamic", self.dynamic),
        ):
            for pattern in patterns:
                if not any(_meets(pattern, node) for node in nodes):
                    near = get_close_matches(pattern, known, n=1)
                    fix = f"did you mean '{near[0]}'?" if near else "`qtool inspect` lists operators and node names"
                    raise UsageError(f"{option} '{pattern}' matches no node of the model", fix=fix)

    def wants_dynamic(self, node: ir.Node) -> bool:
        """Returns whether a pattern asks for a node to quantize its activations as it runs."""
        return any(_meets(pattern, node) for pattern in self.dynamic)

    def reason_to_skip(self, node: ir.Node) -> str | None:
        """Returns why the person's patterns keep a node float, or None when they do not."""
        if self.include and not any(_meets(pattern, node) for pattern in self.include):
            return "no --include pattern matches it"
        for pattern in self.exclude:
            if _meets(pattern, node):
                return f"--exclude '{pattern}' matches it"
        return None


def _meets(pattern: str, node: ir.Node) -> bool:
    candidates = (node.op_type, node.name or "")
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern.removeprefix("re:"))
        except re.error as error:
            raise UsageError(
                f"'{pattern}' is not a regular expression: {error}", fix="correct it, or use wildcards such as /head/*"
            ) from error
        return any(expression.fullmatch(candidate) for candidate in candidates)
    return any(fnmatchcase(candidate, pattern) for candidate in candidates)
