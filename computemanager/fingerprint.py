"""Digests of functions and values that are the same in another process, and differ where results may.

Two processes that run the same script make the same objects in different memory, with another order in their
sets; the digest must not see that. It must see whatever may change a result: code, constants, defaults,
captured and global variables, the functions and classes that are used in turn.

What is the user's own (``__main__``, modules beside the script, lambdas and nested functions) is taken by its
content: bytecode without line numbers and file names. What is installed is taken by name and version.

Functions and classes that are found under their names refer to each other in circles. So each is digested
once, with nothing but the names of others in it, and the digest of the whole is made of all that were
reached.
"""

from __future__ import annotations

import contextlib
import copyreg
import dis
import enum
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import struct
import sys
import sysconfig
import threading
import types
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, TypeGuard

import numpy as np

from computemanager.errors import CheckpointError
from computemanager.payload import modules_beside_script

__all__ = ["fingerprint"]

_LOCKS = (type(threading.Lock()), type(threading.RLock()))
_GLOBALS_OF_MODULES = frozenset(
    {"__builtins__", "__cached__", "__doc__", "__file__", "__loader__", "__name__", "__package__", "__spec__"}
)
# Where it stands in its file, what Python keeps for itself, and what follows from the rest of the class.
_NOT_OF_CLASS = frozenset(
    {
        "__annotations_cache__",
        "__dataclass_fields__",
        "__dataclass_params__",
        "__dict__",
        "__firstlineno__",
        "__module__",
        "__static_attributes__",
        "__weakref__",
        "_abc_impl",
        "_hashable_values_",
        "_unhashable_values_",
        "_unhashable_values_map_",
        "_value2member_map_",
    }
)


def fingerprint(value: Any) -> str:
    """Return a digest of a function, or of any value.

    Parameters
    ----------
    value : object
        Functions, partials, methods, objects that can be called, containers, arrays, whatever can be pickled.

    Returns
    -------
    str
        32 hexadecimal digits. Python's version is part of it.

    Raises
    ------
    CheckpointError
        If something in it is different in every process, such as an open file; the message says where.

    Examples
    --------
    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    >>> fingerprint(lambda x: x + 1) == fingerprint(lambda x: x + 2)
    False
    """
    return _Fingerprint().of(value).hex()


def _digest(kind: str, *parts: bytes) -> bytes:
    made = hashlib.blake2b(digest_size=16)
    for part in (kind.encode(), *parts):
        made.update(struct.pack("<Q", len(part)))
        made.update(part)
    return made.digest()


def _text(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


# What classes written in C have for methods and attributes; most of them cannot be pickled.
_BUILT_IN_METHODS = (
    types.ClassMethodDescriptorType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)


class _Fingerprint:
    """One digest in the making."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[bytes, Any]] = {}  # the object too, so that its id stays its own
        self._under_way: dict[int, int] = {}  # objects that are being looked at, outermost first
        self._waiting: dict[str, Any] = {}  # named functions and classes to be looked at
        self._named: dict[str, bytes] = {}
        self._versions: dict[str, bytes] = {}
        self._trail: list[tuple[str, Any]] = []  # where in the value this is

    @functools.cached_property
    def _users(self) -> set[str]:
        """Names of the modules that are the user's own."""
        return {"__main__", *(module.__name__ for module in modules_beside_script())}

    def of(self, value: Any) -> bytes:
        """Digest a value and all it refers to."""
        try:
            parts = [_text(f"{sys.implementation.name} {platform.python_version()}"), self._value(value)]
            while self._waiting:
                key, entity = self._waiting.popitem()
                self._named[key] = b""
                self._trail.append(("", key))
                self._named[key] = self._content(entity)
                self._trail.pop()
        except RecursionError:
            raise self._error("is nested too deep") from None
        parts += [part for key in sorted(self._named) for part in (_text(key), self._named[key])]
        return _digest("whole", *parts)

    def _error(self, problem: str) -> CheckpointError:
        trail = [f"{words} {thing}".strip() for words, thing in self._trail] or ["a value"]
        if len(trail) > 8:
            trail[4:-3] = ["..."]
        return CheckpointError(
            f"a checkpoint must see whether a job is still the same, but {' -> '.join(trail)} {problem}. "
            f"Make it inside the function, or run without a checkpoint"
        )

    def _part(self, words: str, thing: Any, value: Any) -> bytes:
        """Digest a part of something. Where it raises, the trail stays as it is for the message."""
        self._trail.append((words, thing))
        found = self._value(value)
        self._trail.pop()
        return found

    # -- values ----------------------------------------------------------------------------------------

    def _value(self, value: Any) -> bytes:
        plain = _plain(value)
        if plain is not None:
            return plain
        key = id(value)
        if key in self._done:
            return self._done[key][0]
        if key in self._under_way:
            return _digest("circle", b"%d" % (len(self._under_way) - self._under_way[key]))
        self._under_way[key] = len(self._under_way)
        try:
            found = self._reference(value)
        finally:
            del self._under_way[key]
        self._done[key] = (found, value)
        return found

    def _values(self, kind: str, values: Iterable[Any]) -> bytes:
        return _digest(kind, *[self._value(each) for each in values])

    def _reference(self, value: Any) -> bytes:
        """Digest by name what has one, by content what has none."""
        if isinstance(value, types.ModuleType):
            return self._module(value.__name__)
        if (_is_class(value) or isinstance(value, types.FunctionType)) and _is_found_by_name(value):
            name = f"{value.__module__}:{value.__qualname__}"
            if value.__module__ not in self._users:
                return _digest("installed", _text(name), self._version(value.__module__))
            if name not in self._named:
                self._waiting[name] = value
            return _digest("named", _text(name))
        return self._content(value)

    def _content(self, value: Any) -> bytes:
        """Digest something that is not just a name."""
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.CodeType):
            return self._code(value)
        if _is_class(value):
            return self._class(value)
        if isinstance(value, types.MethodType):
            return self._values("method", (value.__func__, value.__self__))
        if isinstance(value, (staticmethod, classmethod)):
            return self._values(type(value).__name__, (value.__func__,))
        if isinstance(value, property):
            return self._values("property", (value.fget, value.fset, value.fdel))
        if isinstance(value, types.BuiltinFunctionType) and not isinstance(value.__self__, types.ModuleType):
            return _digest("builtin method", _text(value.__qualname__), self._value(value.__self__))
        if isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType)):
            return _digest("descriptor", _text(value.__qualname__))
        if isinstance(value, functools.partial):
            return self._values("partial", (value.func, value.args, value.keywords))
        if isinstance(value, enum.Enum):
            return self._values("member", (type(value), value.name, value.value))
        if isinstance(value, (np.ndarray, np.generic)) and type(value).__module__ == "numpy":
            return self._array(np.asarray(value), type(value).__name__)
        if isinstance(value, _LOCKS):
            return _digest("lock")
        container = self._container(value)
        return self._object(value) if container is None else container

    def _container(self, value: Any) -> bytes | None:
        kind = type(value)
        if kind in (list, tuple):
            return self._values(kind.__name__, value)
        if kind in (set, frozenset):
            return _digest("set", *sorted(self._value(each) for each in value))
        if kind in (dict, types.MappingProxyType):
            items = [self._value(key) + self._part("item", key, each) for key, each in value.items()]
            return _digest("dict", *sorted(items))
        if isinstance(value, (set, frozenset)):  # which pickle would take in the order of the day
            inside = sorted(self._value(each) for each in value)
            return _digest("set", self._value(kind), self._value(getattr(value, "__dict__", None)), *inside)
        return None

    def _array(self, array: Any, kind: str) -> bytes:
        head = (_text(kind), _text(repr(array.dtype.descr if array.dtype.names else array.dtype.str)))
        shape = _text(repr(array.shape))
        if array.dtype.hasobject:
            return _digest("array", *head, shape, self._values("list", array.ravel().tolist()))
        # Bytes in row order, whatever the order in memory; without a copy where they are so already.
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return _digest("array", *head, shape, raw.data)  # type: ignore[arg-type]

    def _object(self, value: Any) -> bytes:
        """Digest what pickle would take of an object, in an order that is always the same."""
        if isinstance(value, _BUILT_IN_METHODS):
            return self._values("built-in", (value.__objclass__.__qualname__, value.__name__))
        for inner in ("py_func", "__wrapped__"):  # of functions that a decorator has made into objects
            function = getattr(value, inner, None)
            if isinstance(function, types.FunctionType):
                return self._values("decorated", (type(value), function))
        try:
            registered = copyreg.dispatch_table.get(type(value))
            reduced: Any = value.__reduce_ex__(4) if registered is None else registered(value)
        except Exception as error:
            raise self._error(
                f"(a {type(value).__name__}) cannot be compared with that of an earlier run: {error}"
            ) from error
        if isinstance(reduced, str):
            return self._global(value, reduced)
        function, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        found = [self._value(key) + self._part("item", key, each) for key, each in pairs or ()]
        return _digest(
            "object",
            self._value(function),
            self._value(arguments),
            self._value(state),
            self._values("items", items or ()),
            *(found if isinstance(value, OrderedDict) else sorted(found)),
        )

    def _global(self, value: Any, name: str) -> bytes:
        module = getattr(value, "__module__", None) or ""
        return _digest("global", _text(f"{module}:{name}"), self._version(module))

    # -- code ------------------------------------------------------------------------------------------

    def _function(self, function: types.FunctionType) -> bytes:
        code = function.__code__
        own = {name: each for name, each in vars(function).items() if name != "__wrapped__"}
        parts = [
            self._code(code),
            self._part("defaults of", function.__name__, (function.__defaults__, function.__kwdefaults__)),
            self._part("attributes of", function.__name__, own),
        ]
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                content: tuple[Any, ...] = (cell.cell_contents,)
            except ValueError:  # a variable that has no value yet
                content = ()
            parts.append(self._part("captured variable", name, content))
        used = _Names(code)
        for name in sorted((used.variables & function.__globals__.keys()) - _GLOBALS_OF_MODULES):
            each = function.__globals__[name]
            parts += [_text(name), self._part("global variable", name, each)]
            if isinstance(each, types.ModuleType) and each.__name__ in self._users:
                parts.append(self._attributes(each, used.attributes, set()))
        # Not by what is loaded: whether it is depends on what ran before.
        parts += [_digest("import", _text(name), self._version(name)) for name in sorted(used.imports)]
        return _digest("function", *parts)

    def _code(self, code: types.CodeType) -> bytes:
        """Digest what code does, wherever it stands and whatever it is called."""
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        return _digest(
            "code",
            _text(repr(counts)),
            code.co_code,
            getattr(code, "co_exceptiontable", b""),
            *[_text(repr(names)) for names in (code.co_names, code.co_varnames, code.co_freevars)],
            _text(repr(code.co_cellvars)),
            self._values("constants", code.co_consts),
        )

    def _class(self, made: type) -> bytes:
        parts = [_text(made.__qualname__), self._values("bases", made.__bases__), self._value(type(made))]
        for name, each in sorted(vars(made).items()):
            if name not in _NOT_OF_CLASS:
                parts += [_text(name), self._part("attribute", name, each)]
        return _digest("class", *parts)

    def _module(self, name: str) -> bytes:
        """Digest a module that is used as a whole: the user's own has its parts digested one by one."""
        if name in self._users:
            return _digest("module", _text(name))
        return _digest("module", _text(name), self._version(name))

    def _attributes(self, module: types.ModuleType, names: set[str], seen: set[str]) -> bytes:
        """Digest what a function may use of the user's own module: all attributes with a name it mentions."""
        seen.add(module.__name__)
        parts = []
        for name in sorted(names & vars(module).keys()):
            each = vars(module)[name]
            parts += [_text(name), self._part(f"variable of module {module.__name__}", name, each)]
            if isinstance(each, types.ModuleType) and each.__name__ in self._users - seen:
                parts.append(self._attributes(each, names, seen))
        return _digest("attributes", *parts)

    def _version(self, module: str) -> bytes:
        if module not in self._versions:
            self._versions[module] = _version_of(module)
        return self._versions[module]


def _plain(value: Any) -> bytes | None:
    """Digest what has no parts; None for what may have."""
    kind = type(value)
    if value is None or value is Ellipsis or value is NotImplemented or kind in (bool, int, complex):
        return _digest(kind.__name__, repr(value).encode() if kind is not int else b"%x" % value)
    if kind is float:
        return _digest("float", struct.pack("<d", value))
    if kind is str:
        return _digest("str", _text(value))
    if kind in (bytes, bytearray):
        return _digest(kind.__name__, value)
    return None


class _Names:
    """What code mentions, with the functions inside it: global variables, modules it imports, attributes."""

    def __init__(self, code: types.CodeType) -> None:
        self.variables: set[str] = set()
        self.imports: set[str] = set()
        self.attributes: set[str] = set()
        self._add(code)

    def _add(self, code: types.CodeType) -> None:
        self.attributes.update(code.co_names)
        for instruction in dis.get_instructions(code):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                self.variables.add(str(instruction.argval))
            elif instruction.opname == "IMPORT_NAME" and instruction.argval:
                self.imports.add(str(instruction.argval))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._add(constant)


def _is_class(value: Any) -> TypeGuard[type]:
    return isinstance(value, type) and not isinstance(value, types.GenericAlias)


def _is_found_by_name(value: Any) -> bool:
    """Whether a function or class is what its module has under its name."""
    found: Any = sys.modules.get(value.__module__ or "")
    for name in value.__qualname__.split("."):
        found = vars(found).get(name) if hasattr(found, "__dict__") else None
    return (found.__func__ if isinstance(found, (staticmethod, classmethod)) else found) is value


def _version_of(module: str) -> bytes:
    """What tells whether a module has changed: its version if it is installed, else what is in its file."""
    top = module.partition(".")[0]
    if not top or top in sys.stdlib_module_names:
        return b""  # Python's version tells
    file = _file_of(module)
    if file is not None and not _is_installed(file):
        with contextlib.suppress(OSError), open(file, "rb") as opened:
            return _digest("file", opened.read())
    try:
        return _text(importlib.metadata.version(top))
    except importlib.metadata.PackageNotFoundError:
        return _text(str(getattr(sys.modules.get(top), "__version__", "")))


def _file_of(module: str) -> str | None:
    """The source of a module, whether it is loaded or not. Looking for it loads nothing."""
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.has_location:
        return None
    for folder in spec.submodule_search_locations or () if inner else ():
        for ending in (".py", os.sep + "__init__.py"):
            if os.path.isfile(path := os.path.join(folder, *inner) + ending):
                return path
    return spec.origin


def _is_installed(file: str) -> bool:
    real = os.path.realpath(file)
    places = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return any(real.startswith(os.path.realpath(place) + os.sep) for place in places if place) or any(
        part in ("site-packages", "dist-packages") for part in real.split(os.sep)
    )
