"""Digests: the same in every process, another as soon as a result may be another."""

from __future__ import annotations

import collections
import enum
import functools
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from computemanager.errors import CheckpointError
from computemanager.fingerprint import fingerprint

# A script with one of everything; a test replaces some of its text.
SCRIPT = '''
import enum, functools, logging, math, os, re, sys, threading
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass, field
import numpy as np
import helper
from helper import scale as scaled
import package.inner

LIMIT = 10
WORDS = {"alpha", "beta", "gamma", "delta"}
TABLE = {"one": 1, "two": [2, 2.5]}
ARRAY = np.arange(12, dtype="int16").reshape(3, 4)
LOCK = threading.Lock()
LOG = logging.getLogger("x")
PATTERN = re.compile("a+b")

class Color(enum.Enum):
    RED = 1
    BLUE = 2

Pair = namedtuple("Pair", "a b")

@dataclass
class Point:
    x: int = 3
    tags: list = field(default_factory=lambda: ["t"])
    def norm(self):
        return other_function(self.x, Base)

class Base:
    factor = 2
    def __init__(self):
        self.value = 5
    @property
    def double(self):
        return self.value * self.factor
    @staticmethod
    def stat():
        return 7
    @classmethod
    def make(cls):
        return cls()

class Child(Base):
    def __call__(self, x):
        return super().__init__() or x in {"p", "q", "r"}

def other_function(x, y=1, *, z=2):
    """A document."""
    # a comment
    return function if x > 100 else x + y + z

@functools.lru_cache
def cached(x):
    return x + 11

def decorate(f):
    @functools.wraps(f)
    def wrapper(*args):
        return f(*args) + 13
    return wrapper

@decorate
def decorated(x):
    return x + 17

def factory(n):
    return lambda x: x + n

captured = factory(19)
part = functools.partial(other_function, 1, z=23)

def function(x, unused=[1, 2]):
    import inside
    if x in ("a", "b") or x in {"k", "l", "m", "n"}:
        return LIMIT
    nested = lambda y: [y * 29 for _ in WORDS]
    LOG.info("hello")
    with LOCK:
        total = x + other_function(x) + cached(x) + decorated(x) + captured(x) + part()
    total += sum(nested(1)) + TABLE["one"] + ARRAY[0, 0] + len(PATTERN.findall("ab"))
    total += Point().norm() + Child().double + Color.RED.value + Pair(1, 2).a
    return total + helper.used(x) + scaled(x) + package.inner.deep(x) + math.sqrt(4) + np.float64(1)

method = Child().make
values = [None, True, -5, 2**70, 1.5, float("nan"), 1j, "text", b"b", (1, [2]), Ellipsis, frozenset("xyz"),
          Point(), Color.BLUE, Pair(1, "2"), OrderedDict(a=1), defaultdict(list, a=[1]), np.float32(3),
          range(5), slice(1, 2), np.dtype("f4"), np.random.default_rng(3), list[int], int, len, math.sin,
          [].append, np.add]

from computemanager.fingerprint import fingerprint
for each in (function, method, Child(), part, captured, values):
    print(fingerprint(each))
'''
FILES = {
    "helper.py": "def used(x):\n    return x + _deeper(x)\n\ndef _deeper(x):\n    return x + 31\n\n"
    "def scale(x):\n    return x * 37\n\ndef not_used(x):\n    return 41\n",
    "inside.py": "VALUE = 43\n",
    "package/__init__.py": "",
    "package/inner.py": "def deep(x):\n    return 47\n",
}


# Runs scripts as __main__, each in a process of its own that has the big modules already.
RUNNER = """
import os, runpy, sys
import computemanager.fingerprint

for folder in sys.argv[1:]:
    process = os.fork()
    if not process:
        sys.path[0] = folder
        sys.stdout = open(folder + "/printed", "w")
        runpy.run_path(folder + "/script.py", run_name="__main__")
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0
"""

Changes = tuple[tuple[str, str], ...]


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[list[str]]]:
    """Return a function that runs the script as often as it is given changes, and gives what each prints."""
    if not hasattr(os, "fork"):
        pytest.skip("makes processes with fork")

    def run(*variants: Changes, seed: str = "1") -> list[list[str]]:
        folders = []
        for changes in variants:
            files = {"script.py": SCRIPT, **FILES}
            for old, new in changes:
                assert any(old in text for text in files.values()), old
                files = {name: text.replace(old, new) for name, text in files.items()}
            folders.append(tmp_path_factory.mktemp("script"))
            (folders[-1] / "package").mkdir()
            for name, text in files.items():
                (folders[-1] / name).write_text(text)
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", RUNNER, *map(str, folders)]
        done = subprocess.run(command, capture_output=True, env=environment, text=True)
        assert done.returncode == 0, done.stderr
        return [(folder / "printed").read_text().split() for folder in folders]

    return run


def test_the_same_in_other_processes(digests: Callable[..., list[list[str]]]) -> None:
    moved = ("def function(x, unused", "\n\n\n# further down\ndef function(x, unused")
    commented = ("# a comment", "# another\n\n")
    turned = ('"alpha", "beta"', '"beta", "alpha"')
    helper_moved = ("x):\n    return x * 37", "x):\n\n    return x * 37")
    not_used = ("return 41", "return 42")
    first, *others = digests((), (), (moved,), (commented, turned), (helper_moved,), (not_used,))
    assert len(set(first)) == 6 and others == [first] * 5
    for seed in ("2", "3"):
        assert digests((), seed=seed) == [first]


CHANGES = {
    "code": ("total = x + other", "total = x - other"),
    "constant": ("y * 29", "y * 30"),
    "constant set": ('"k", "l", "m", "n"', '"k", "l", "m", "o"'),
    "constant tuple": ('in ("a", "b")', 'in ("a", "c")'),
    "default": ("unused=[1, 2]", "unused=[1, 3]"),
    "default of another": ("y=1, *", "y=4, *"),
    "keyword default": ("z=2)", "z=4)"),
    "global number": ("LIMIT = 10", "LIMIT = 11"),
    "global type": ("LIMIT = 10", "LIMIT = 10.0"),
    "global set": ('"gamma"', '"gamma "'),
    "global dict": ("[2, 2.5]", "[2, 2.25]"),
    "global array": ("np.arange(12, ", "np.arange(1, 13, "),
    "type of an array": ('"int16"', '"int32"'),
    "shape of an array": ("reshape(3, 4)", "reshape(4, 3)"),
    "pattern": ('"a+b"', '"a*b"'),
    "function that is called": ("return function if x > 100", "return function if x > 101"),
    "cached function": ("x + 11", "x + 12"),
    "decorator": ("f(*args) + 13", "f(*args) + 14"),
    "decorated": ("x + 17", "x + 18"),
    "captured variable": ("factory(19)", "factory(20)"),
    "argument of a partial": ("other_function, 1, z=23", "other_function, 1, z=24"),
    "class attribute": ("factor = 2", "factor = 3"),
    "method": ("self.value = 5", "self.value = 6"),
    "property": ("self.value * self.factor", "self.value + self.factor"),
    "static method": ("return 7", "return 8"),
    "field of a dataclass": ("x: int = 3", "x: int = 4"),
    "factory of a field": ('["t"]', '["u"]'),
    "member of an enum": ("RED = 1", "RED = 3"),
    "base class": ("class Child(Base)", "class Child(Base, dict)"),
    "module beside the script": ("_deeper(x):\n    return x + 31", "_deeper(x):\n    return x + 32"),
    "name imported from a module": ("x * 37", "x * 38"),
    "module imported inside": ("VALUE = 43", "VALUE = 44"),
    "module in a package": ("return 47", "return 48"),
}


def test_another_after_a_change(digests: Callable[..., list[list[str]]]) -> None:
    before, *after = digests((), *[(change,) for change in CHANGES.values()])
    assert [name for name, each in zip(CHANGES, after, strict=True) if each[0] == before[0]] == []


def test_objects_that_are_called(digests: Callable[..., list[list[str]]]) -> None:
    """A method, an object, a partial, a closure, a list of values."""
    point, random = ("Point(), Color.BLUE", "Point(5), Color.BLUE"), ("default_rng(3)", "default_rng(4)")
    names = ("method", "argument of a partial", "captured variable")
    changes = [*[CHANGES[name] for name in names], point, random]
    before, *after = digests((), *[(change,) for change in changes])
    same = [[a == b for a, b in zip(before, each, strict=True)][1:] for each in after]
    # The partial, and a method of one of the values, call a function that uses all of them.
    assert same == [
        [False, False, False, True, False],
        [True, True, False, True, False],
        [True, True, False, False, False],
        [True, True, True, True, False],
        [True, True, True, True, False],
    ]


def test_a_script_that_refers_to_itself_in_circles(tmp_path: Path) -> None:
    names = [f"f{number}" for number in range(60)]
    text = "".join(f"def {name}(x):\n    return [{', '.join(names)}, Holder]\n\n" for name in names)
    text += "class Holder:\n" + "".join(
        f"    def {name}(self):\n        return Holder, {name}\n" for name in names
    )
    text += "ring = []\nring.append(ring)\nHolder.ring = {'ring': ring, 'self': Holder}\n"
    text += "from computemanager.fingerprint import fingerprint\nprint(fingerprint(f0))\n"
    (tmp_path / "script.py").write_text(text)
    run = functools.partial(subprocess.run, capture_output=True, text=True, check=True, timeout=30)
    one = run([sys.executable, tmp_path / "script.py"], env={**os.environ, "PYTHONHASHSEED": "5"}).stdout
    assert (
        one == run([sys.executable, tmp_path / "script.py"], env={**os.environ, "PYTHONHASHSEED": "6"}).stdout
    )
    (tmp_path / "script.py").write_text(text.replace("def f59(x):", "def f59(x=1):"))
    assert one != run([sys.executable, tmp_path / "script.py"]).stdout


class Color(enum.Enum):
    RED = 1


atoms = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
)
hashables = st.recursive(
    atoms, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4), max_leaves=6
)
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(hashables, inner, max_size=4)
        | st.sets(hashables, max_size=4)
        | st.tuples(inner)
    ),
    max_leaves=12,
)


def rebuilt(value: Any) -> Any:
    """An equal value of other objects, dictionaries and sets filled the other way round."""
    if isinstance(value, dict):
        return {rebuilt(key): rebuilt(each) for key, each in reversed(value.items())}
    if isinstance(value, (list, tuple)):
        return type(value)(rebuilt(each) for each in value)
    if isinstance(value, (set, frozenset)):
        return type(value)(reversed([rebuilt(each) for each in value]))
    return value


@given(value=values)
def test_equal_values(value: Any) -> None:
    assert fingerprint(value) == fingerprint(rebuilt(value))


def typed(value: Any) -> str:
    """What tells values apart: 1, 1.0 and True are three."""
    if isinstance(value, dict):
        return "dict" + str(sorted(typed(key) + typed(each) for key, each in value.items()))
    if isinstance(value, (list, tuple)):
        return type(value).__name__ + str([typed(each) for each in value])
    if isinstance(value, (set, frozenset)):
        return "set" + str(sorted(map(typed, value)))
    return f"{type(value).__name__} {value!r}"


@given(one=values, other=values)
def test_values_that_differ(one: Any, other: Any) -> None:
    assert (fingerprint(one) == fingerprint(other)) == (typed(one) == typed(other))


def test_arrays() -> None:
    array = np.arange(24.0).reshape(4, 6)
    assert fingerprint(array) == fingerprint(np.asfortranarray(array)) == fingerprint(array.copy())
    others = [
        array.T,
        array.reshape(6, 4),
        array.astype("f4"),
        array.astype(">f8"),
        array + 1,
        array.tolist(),
    ]
    others += [np.ma.masked_less(array, 3), np.ma.masked_less(array, 4), np.array([array, None], object)]
    others += [np.zeros(0), np.zeros((0, 3)), np.float64(0), np.array(0.0), np.zeros(2, "i4,f4")]
    others += [np.array(["2026-01-01"], "M8[D]"), np.zeros(2, "i4,i4")]
    assert len({fingerprint(each) for each in [array, *others]}) == 1 + len(others)


def test_containers_of_other_kinds() -> None:
    different = [
        {"a": 1, "b": 2},
        collections.OrderedDict(a=1, b=2),
        collections.OrderedDict(b=2, a=1),
        collections.defaultdict(int, a=1, b=2),
        collections.defaultdict(list, a=1, b=2),
        collections.Counter(a=1, b=2),
        [("a", 1), ("b", 2)],
        (("a", 1), ("b", 2)),
        collections.deque([1]),
        Color.RED,
        Color,
        1,
    ]
    assert len({fingerprint(each) for each in different}) == len(different)
    one, other = collections.defaultdict(int, a=1, b=2), collections.defaultdict(int, b=2, a=1)
    assert fingerprint(one) == fingerprint(other)

    class Words(set):  # type: ignore[type-arg]
        pass

    assert fingerprint(Words("abc")) == fingerprint(Words("cba")) != fingerprint({"a", "b", "c"})


def test_a_temporary_object_is_not_taken_for_an_earlier_one() -> None:
    """Both may lie at the same place in memory, one after the other."""

    class Makes:
        def __init__(self, number: int) -> None:
            self.number = number

        def __reduce__(self) -> Any:
            return list, ([self.number, [self.number]],)

    assert len({fingerprint([Makes(number) for number in range(n)]) for n in range(20)}) == 20
    assert fingerprint([Makes(1), Makes(2)]) != fingerprint([Makes(1), Makes(1)])


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    file = open(tmp_path / "log", "w")  # noqa: SIM115

    def writes(x: int) -> None:
        file.write(str(x))

    with file, pytest.raises(CheckpointError) as caught:
        fingerprint({"deep": [functools.partial(writes, 1)]})
    text = str(caught.value)
    assert "item deep -> captured variable file (a TextIOWrapper) cannot be compared" in text
    assert "Make it inside the function, or run without a checkpoint" in text

    long: Any = []
    for _ in range(100_000):
        long = [long]
    with pytest.raises(CheckpointError, match="nested too deep"):
        fingerprint(long)


def test_locks_make_no_difference() -> None:
    one, other, again = threading.Lock(), threading.Lock(), threading.RLock()
    assert fingerprint([one]) == fingerprint([other])
    assert fingerprint(threading.Condition(again))


def test_a_name_that_leads_elsewhere_now() -> None:
    """What is not found under its name is taken by content."""

    def renamed(x: int) -> int:
        return x + 1

    other = renamed

    def renamed(x: int) -> int:  # type: ignore[no-redef] # noqa: F811
        return x + 2

    assert fingerprint(other) != fingerprint(renamed)


def test_recursion_of_a_nested_function() -> None:
    def make(step: int) -> Callable[[int], int]:
        def factorial(x: int) -> int:
            return 1 if x < 2 else x * factorial(x - step)

        return factorial

    assert fingerprint(make(1)) == fingerprint(make(1)) != fingerprint(make(2))


def test_a_variable_without_a_value() -> None:
    def outer() -> Callable[[], int]:
        def inner() -> int:
            return later

        found = fingerprint(inner)
        later = 1
        assert fingerprint(inner) != found
        return inner

    assert outer()() == 1


def test_python_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(1)
    monkeypatch.setattr("platform.python_version", lambda: "4.0.0")
    assert fingerprint(1) != before


def test_methods_of_built_in_classes() -> None:
    generator_item = vars(type(_ for _ in ())).get("__class_getitem__")
    things = [
        vars(dict)["fromkeys"],
        str.upper,
        str.lower,
        int.__add__,
        type.__dict__["__mro__"],
        generator_item,
    ]
    found = [fingerprint(lambda thing=thing: thing) for thing in things if thing is not None]
    assert len(set(found)) == len(found)


def test_versions_of_installed_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    def uses() -> Any:
        return np.zeros(1)

    before = fingerprint(uses), fingerprint(np.linalg.norm)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.1")
    assert fingerprint(uses) != before[0] and fingerprint(np.linalg.norm) != before[1]


def test_a_module_that_is_neither_installed_nor_beside_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PYTHONPATH, say: by the content of its file."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "strayed_module.py").write_text(textwrap.dedent("def f(x):\n    return x\n"))
    import strayed_module  # type: ignore[import-not-found]

    before = fingerprint(strayed_module.f)
    (tmp_path / "strayed_module.py").write_text("def f(x):\n    return x + 1\n")
    assert fingerprint(strayed_module.f) != before
    del sys.modules["strayed_module"]
