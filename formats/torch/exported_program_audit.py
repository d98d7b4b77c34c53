"""Audits the JSON of ``torch.export`` files for code that torch would run while it opens them.

torch 2.13 unpickles entries with ``use_pickle`` and opaque objects, evaluates symbolic expressions and guards as
Python, and looks operators up by name, all of it without asking.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

from qtool.formats.findings import AuditNotes, Risk

# Operators of torch, arithmetic of Python, and torch's arithmetic on lengths; anything else is a call of some function.
_OPERATOR = re.compile(
    r"torch\.ops\.[\w.]+|torch\.(sym_\w+|_sym_\w+)|math\.\w+|_operator\.(?!attrgetter|methodcaller|itemgetter|call)\w+"
    r"|torch\._C\._set_grad_enabled|torch\.amp\.autocast_mode\._(enter|exit)_autocast"
)
_EXPRESSION_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.Name, ast.Constant, ast.keyword,
    ast.Load, ast.Tuple, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Subscript, ast.Attribute,
)  # fmt: skip
_FUNCTIONS = re.compile(
    r"Symbol|Integer|Float|Rational|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|CeilToInt|FloorToInt|TruncToInt"
    r"|TruncToFloat|RoundToInt|RoundDecimal|IntTrueDiv|FloatTrueDiv|ToFloat|ModularIndexing|Where|Identity|Piecewise"
    r"|ExprCondPair|PowByNatural|FloatPow|LShift|RShift|Eq|Ne|Lt|Le|Gt|Ge|Equality|Unequality|StrictLessThan|LessThan"
    r"|StrictGreaterThan|GreaterThan|Abs|Add|Mul|Pow|floor|ceiling|And|Or|Not|sqrt|OpaqueUnaryFn_\w+|BitwiseFn_\w+"
    r"|len|max|min|int|float|bool|abs"
)
_ATTRIBUTES = frozenset({"size", "stride", "storage_offset", "shape", "ndim", "dim", "dtype"})
_LONGEST_EXPRESSION = 100_000
# Keys of classes and functions that pytrees import to rebuild a container.
_IMPORTS = ("default_factory_module", "__enum__")


def audit_program_json(content: bytes, where: str, notes: AuditNotes) -> None:
    """Notes what torch would unpickle, evaluate or call because of this part of the file."""
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):
        notes.add(Risk.INCONSISTENT, where, "is no JSON")
        return
    for key, value in _entries(whole):
        problem = _problem(key, value)
        if problem is not None:
            notes.add(Risk.RUNS_CODE, where, problem)


def _entries(whole: Any) -> Iterator[tuple[str, Any]]:
    """Yields every key with its value, wherever it stands; values in a list go with the list's key."""
    waiting: list[tuple[str, Any]] = [("", whole)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += ((key, item) for item in value)
        else:
            yield key, value


def _problem(key: str, value: Any) -> str | None:
    if key == "use_pickle" and value is not False:
        return "makes torch open a pickle without checks (use_pickle)"
    if not isinstance(value, str):
        return None
    shown = repr(value[:80])
    if key == "path_name" and (not re.fullmatch(r"\w+", value) or value.startswith("opaque_obj")):
        return f"makes torch open {shown} as a pickle, or a file outside"
    if key in ("target", "as_operator") and not _OPERATOR.fullmatch(value) and "." in value:
        return f"calls {shown}, which is no operator of torch"
    if key in ("expr_str", "guards_code") and not _is_arithmetic(value):
        return f"makes torch evaluate {shown} as Python"
    if any(name in value for name in _IMPORTS):
        return f"makes torch import what {shown} names"
    return None


def _is_arithmetic(text: str) -> bool:
    if len(text) > _LONGEST_EXPRESSION:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_is_plain(node) for node in ast.walk(tree))


def _is_plain(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return _FUNCTIONS.fullmatch(name) is not None
        case ast.Call(func=ast.Attribute(attr=name)) | ast.Attribute(attr=name):
            return name in _ATTRIBUTES
        case ast.Call():
            return False
        case ast.Name(id=name):
            return not name.startswith("__")
        case _:
            return isinstance(node, _EXPRESSION_NODES)
