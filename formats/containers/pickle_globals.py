"""Distinguishes names that a pickle may import for tensors from those that run other code."""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from enum import StrEnum

_REBUILD = (
    "_rebuild_device_tensor_from_cpu_tensor",
    "_rebuild_device_tensor_from_numpy",
    "_rebuild_meta_tensor_no_storage",
    "_rebuild_nested_tensor",
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
    "_rebuild_qtensor",
    "_rebuild_sparse_tensor",
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
    "_rebuild_wrapper_subclass",
)
_KINDS = (
    "BFloat16",
    "Bool",
    "Byte",
    "Char",
    "ComplexDouble",
    "ComplexFloat",
    "Double",
    "Float",
    "Half",
    "Int",
    "Long",
    "QInt32",
    "QInt8",
    "QUInt2x4",
    "QUInt4x2",
    "QUInt8",
    "Short",
)
_DTYPES = [
    "bfloat16",
    "bool",
    "complex128",
    "complex32",
    "complex64",
    "float16",
    "float32",
    "float64",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "int16",
    "int32",
    "int64",
    "int8",
    "qint32",
    "qint8",
    "quint2x4",
    "quint4x2",
    "quint8",
    "uint16",
    "uint32",
    "uint64",
    "uint8",
    "per_channel_affine",
    "per_channel_affine_float_qparams",
    "per_channel_symmetric",
    "per_tensor_affine",
    "per_tensor_symmetric",
]

# Everything that tensors, their containers and their types need; torch's weights_only=True allows them too.
TENSOR_GLOBALS: frozenset[str] = frozenset(
    {
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch.Tensor",
        "torch._tensor._rebuild_from_type_v2",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
        *(f"torch._utils.{name}" for name in _REBUILD),
        *(f"torch.{kind}Storage" for kind in _KINDS),
        *(f"torch.{name}" for name in _DTYPES),
    }
)
# No model needs any of these, and attacks use them: they run commands or code, or give access to such functions.
_ATTACK_MODULES = frozenset(
    [
        "os",
        "posix",
        "nt",
        "subprocess",
        "sys",
        "builtins",
        "shutil",
        "socket",
        "runpy",
        "importlib",
        "pty",
        "ctypes",
        "_ctypes",
        "pickle",
        "_pickle",
        "cPickle",
        "marshal",
        "webbrowser",
        "code",
        "codeop",
        "pdb",
        "bdb",
        "timeit",
        "trace",
        "profile",
        "cProfile",
        "asyncio",
        "multiprocessing",
        "threading",
        "commands",
        "popen2",
        "urllib",
        "http",
        "httplib",
        "requests",
        "ftplib",
        "smtplib",
        "telnetlib",
        "pip",
        "pydoc",
        "idlelib",
        "ensurepip",
        "venv",
        "signal",
        "platform",
        "operator",
        "functools",
        "types",
        "inspect",
        "linecache",
        "fileinput",
        "tempfile",
        "pathlib",
        "io",
        "zipimport",
        "imp",
        "pkgutil",
        "doctest",
        "sqlite3",
        "dill",
        "cloudpickle",
        "joblib",
    ]
)
_ATTACK_NAMES = frozenset(
    [
        "system",
        "popen",
        "exec",
        "eval",
        "execfile",
        "compile",
        "__import__",
        "getattr",
        "setattr",
        "runstring",
        "load_url",
    ]
)
# Exceptions in those modules: types that only hold values.
_VALUE_TYPES = frozenset(
    {
        *(f"builtins.{name}" for name in ("bool", "bytes", "dict", "float", "frozenset", "int", "list", "object")),
        *(f"builtins.{name}" for name in ("range", "slice", "str", "tuple")),
        # Python 3.13 stores the same types under the second name.
        *(
            f"{module}.{name}"
            for module in ("pathlib", "pathlib._local")
            for name in ("Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
        ),
        "functools.partial",
        "io.BytesIO",
        "types.SimpleNamespace",
    }
)


class Meaning(StrEnum):
    """What importing a name means."""

    TENSOR = "makes tensors"
    OBJECT = "runs the code of a class"
    ATTACK = "runs commands or code of the file's choice"


def full_name(module: str, name: str) -> str:
    """Returns the two parts of a global as one name, in Python 3's words, as pickle itself reads those of Python 2."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def meaning(name: str) -> Meaning:
    """Describes what it means that a pickle imports ``name``, as ``full_name`` writes it."""
    if name in TENSOR_GLOBALS:
        return Meaning.TENSOR
    if name in _VALUE_TYPES:
        return Meaning.OBJECT
    parts = name.split(".")
    # Names may lead through modules: torch.serialization.os.system is os.system.
    if parts[0] in _ATTACK_MODULES or _ATTACK_NAMES & set(parts) or {"os", "subprocess", "sys"} & set(parts):
        return Meaning.ATTACK
    return Meaning.OBJECT
