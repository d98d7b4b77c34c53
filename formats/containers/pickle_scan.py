"""Determines what a pickle would import and call, by symbolic execution of its operations."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from qtool.formats.containers.pickle_globals import Meaning, full_name, meaning
from qtool.formats.containers.pickle_walk import Operation, PickleError, Skipped, operations

# Pickles of the protocols that say which one they are.
PICKLE_HEADS = tuple(b"\x80" + bytes([protocol]) for protocol in (2, 3, 4, 5))
_COMPUTED = "a name that is computed at run time"
# Pickles may hold pickles as bytes; they are followed to this depth.
_DEEPEST_NESTING = 4
_LONGEST_SHOWN = 60
_MOST_CALLS = 1000


@dataclass(frozen=True, slots=True)
class Global:
    """The result of an import.

    Attributes:
        name: module and name in one.
    """

    name: str


@dataclass(frozen=True, slots=True)
class Called:
    """The result of a call.

    Attributes:
        target: the callable, in words.
    """

    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBytes:
    """A block of data outside of the pickle that a tensor refers to.

    Attributes:
        key: what it is called.
        storage: the storage class, such as ``torch.FloatStorage``.
        elements: how many elements it says it has.
    """

    key: str
    storage: str
    elements: int


@dataclass(slots=True, kw_only=True)
class PickleScan:
    """What a pickle would do.

    Attributes:
        imports: what it imports, in order, each once.
        calls: its calls, except for those that make tensors, in words.
        storages: the data that it refers to.
        problem: why it cannot be followed to its end; None where it can.
        end: where it ends in the file, as far as it could be followed.
    """

    imports: dict[str, Meaning] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    storages: list[StoredBytes] = field(default_factory=list)
    problem: str | None = None
    end: int = 0

    @property
    def foreign(self) -> tuple[str, ...]:
        """The imports that are not for tensors: opening the file would run their code."""
        return tuple(name for name, what in self.imports.items() if what is not Meaning.TENSOR)

    @property
    def runs_something(self) -> bool:
        """Whether it imports or calls, so that the bytes are a pickle and not other data with the same start.

        A damaged pickle with a call counts, too, since opening it runs the call.
        """
        return bool(self.calls) or (bool(self.imports) and self.problem is None)


def scan_pickle(stream: IO[bytes], start: int, end: int) -> PickleScan:
    """Follows the pickle in bytes ``start`` to ``end`` and returns what it would do, without imports or calls.

    A damaged pickle is reported up to the damage, because opening it runs that part.
    """
    return _scan(stream, start, end, 0)


def _scan(stream: IO[bytes], start: int, end: int, depth: int) -> PickleScan:
    machine = _Machine(PickleScan(end=start), depth)
    try:
        for operation in operations(stream, start, end):
            machine.step(operation)
            machine.found.end = stream.tell()
    except PickleError as error:
        machine.found.problem = str(error)
    except IndexError:
        machine.found.problem = "an operation lacks its operands"
    return machine.found


class _Machine:
    """A pickle machine with names and numbers instead of objects."""

    def __init__(self, found: PickleScan, depth: int) -> None:
        self.found = found
        self._depth = depth
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def step(self, operation: Operation) -> None:
        """Follows one operation."""
        name, argument = operation.name, operation.argument
        if name in _SILENT:
            return
        if name in _CALLS:
            self._call(name, argument)
        elif name in _POPS:
            self._pop_values(name)
        elif "GET" in name:
            self._stack.append(self._memo.get(_number(argument)))
        elif "PUT" in name:
            self._memo[_number(argument)] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name == "MARK":
            self._marks.append(len(self._stack))
        elif name == "DUP":
            self._stack.append(self._stack[-1])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self._import(name, argument)
        elif name in ("PERSID", "BINPERSID"):
            self._persistent(name)
        else:
            self._constant(name, argument)

    def _constant(self, name: str, argument: object) -> None:
        self._stack.append(argument)
        for content in _as_bytes(argument):
            self._look_inside(content)

    def _look_inside(self, content: bytes) -> None:
        """Follows bytes that are a pickle themselves, for the call that will open them."""
        if self._depth >= _DEEPEST_NESTING or content[:1] != b"\x80" or content[1:2] not in _PROTOCOLS:
            return
        inner = _scan(io.BytesIO(content), 0, len(content), self._depth + 1)
        if inner.foreign or inner.problem is None:
            self.found.imports.update(inner.imports)
            self.found.calls.extend(f"{call}, in a pickle within the pickle" for call in inner.calls)

    def _popped(self) -> Any:
        if self._marks and self._marks[-1] == len(self._stack):
            raise IndexError
        return self._stack.pop()

    def _to_mark(self) -> tuple[Any, ...]:
        mark = self._marks.pop()
        values = tuple(self._stack[mark:])
        del self._stack[mark:]
        return values

    def _pop_values(self, name: str) -> None:
        """Follows operations that build containers from the stack, or add to one."""
        if name == "POP" and self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
            return
        values = self._to_mark() if name in _TO_MARK else tuple(self._popped() for _ in range(_POPS[name]))[::-1]
        if name.startswith("TUPLE"):
            self._stack.append(values)
        elif name in _MAKES:
            self._stack.append(None)

    def _import(self, name: str, argument: object) -> None:
        if name == "GLOBAL":
            module, _, attribute = str(argument).partition(" ")
        else:
            attribute, module = self._popped(), self._popped()
        if isinstance(module, str) and isinstance(attribute, str):
            self._stack.append(self._imported(full_name(module, attribute)))
        else:
            self._stack.append(self._imported(_COMPUTED))

    def _imported(self, name: str) -> Global:
        self.found.imports.setdefault(name, Meaning.ATTACK if name == _COMPUTED else meaning(name))
        return Global(name)

    def _call(self, name: str, argument: object) -> None:
        arguments: Any = ()
        if name.startswith("EXT"):
            self._stack.append(self._imported(_COMPUTED))
            return
        if name == "INST":
            arguments = self._to_mark()
            target: Any = self._imported(full_name(*_two(str(argument))))
        elif name == "OBJ":
            target, *arguments = self._to_mark() or (None,)
        elif name == "NEWOBJ_EX":
            _, arguments, target = self._popped(), self._popped(), self._popped()
        elif name == "BUILD":
            self._popped()
            return
        else:
            arguments, target = self._popped(), self._popped()
        self._stack.append(Called(_words(target)))
        plain = isinstance(target, Global) and meaning(target.name) is Meaning.TENSOR
        if not plain and len(self.found.calls) < _MOST_CALLS:
            self.found.calls.append(f"{_words(target)}({', '.join(_shown(arguments))})")

    def _persistent(self, name: str) -> None:
        reference = self._popped() if name == "BINPERSID" else None
        self._stack.append(None)
        if isinstance(reference, tuple) and len(reference) >= 5 and reference[0] == "storage":
            _, storage, key, _, elements = reference[:5]
            if isinstance(storage, Global) and isinstance(elements, int):
                self.found.storages.append(StoredBytes(key=str(key), storage=storage.name, elements=elements))


_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")
_SILENT = frozenset({"PROTO", "FRAME", "STOP", "READONLY_BUFFER"})
_CALLS = frozenset({"REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "BUILD", "EXT1", "EXT2", "EXT4"})
# The number of operands of each, where it is not all since the last mark.
_POPS = {"POP": 1, "APPEND": 1, "SETITEM": 2, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_TO_MARK = frozenset({"POP_MARK", "APPENDS", "SETITEMS", "ADDITEMS", "LIST", "DICT", "TUPLE", "FROZENSET"})
_POPS |= dict.fromkeys(_TO_MARK, 0)
_MAKES = frozenset({"LIST", "DICT", "FROZENSET"})


def _number(argument: object) -> int:
    """Returns the memo index of an operation; -1 for an invalid one."""
    if isinstance(argument, str):
        return int(argument) if argument.isdecimal() and len(argument) < 20 else -1
    return argument if isinstance(argument, int) else -1


def _two(text: str) -> tuple[str, str]:
    module, _, name = text.partition(" ")
    return module, name


def _as_bytes(argument: object) -> Iterator[bytes]:
    if isinstance(argument, bytes):
        yield argument
    elif isinstance(argument, str) and argument[:1] == "\x80":
        # Before protocol 3 bytes are written as text, to be encoded as latin-1.
        yield argument.encode("latin-1", errors="replace")


def _words(target: object) -> str:
    match target:
        case Global(name):
            return name
        case Called(inner):
            return f"what {inner} returns"[:_LONGEST_SHOWN]
        case _:
            return "an unknown object"


def _shown(arguments: object) -> Iterator[str]:
    if not isinstance(arguments, tuple | list):
        yield "…"
        return
    for value in arguments[:4]:
        match value:
            case str() | bytes():
                yield repr(value) if len(value) <= _LONGEST_SHOWN else f"{value[:_LONGEST_SHOWN]!r}…"
            case int() if value.bit_length() < 64:
                yield str(value)
            case Global(name):
                yield name
            case Skipped(nbytes):
                yield f"{nbytes:,} bytes"
            case _:
                yield "…"
