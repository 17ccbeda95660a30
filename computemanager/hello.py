"""The first words between main and an agent: plain JSON, so that nothing is unpickled before both agree.

::

    agent ── hello: versions, machine, slots ──> main
    agent <── welcome: what it needs to know ── main      or    agent <── refused: why ── main
    agent <── gone: I do not know you (any more) ── main

A hello is said again every second until it is answered, and an answer may come twice. Everything after the
welcome goes through a `computemanager.session.Session`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cloudpickle
import numpy as np

from computemanager import wire

__all__ = [
    "GONE",
    "HELLO",
    "REFUSED",
    "WELCOME",
    "BadHello",
    "Difference",
    "Hello",
    "differences",
    "identity_of",
    "is_word",
    "refusal",
]

HELLO, WELCOME, REFUSED, GONE = b"hello", b"welcome", b"refused", b"gone"
_WORDS = frozenset({HELLO, WELCOME, REFUSED, GONE})
_MAX_WORD_BYTES = 8
_MAX_JSON_BYTES = 64 * 1024
_MAX_SLOTS = 4096
_MAX_TEXT = 200


class BadHello(ValueError):
    """Something that is not a hello of ours."""


class Hello(NamedTuple):
    """What an agent says of itself.

    Attributes
    ----------
    name : str
        What its provider calls it.
    token : int
        Of its session; drawn by the agent, never used again.
    slots : int
        Slots that it is starting.
    ends_in_s : float or None
        Seconds until it will be ended from outside, where it knows.
    protocol : int
        `wire.PROTOCOL` there.
    versions : mapping of str to str
        Of Python, of this library, cloudpickle and NumPy.
    machine : str
        Processor architecture, such as ``x86_64`` or ``aarch64``.
    host, environment : str
        The machine's name, and the image or the Python environment it runs in.
    """

    name: str
    token: int
    slots: int
    ends_in_s: float | None
    protocol: int
    versions: Mapping[str, str]
    machine: str
    host: str
    environment: str

    @classmethod
    def of_this_process(cls, name: str, token: int, slots: int, ends_in_s: float | None = None) -> Hello:
        """What there is to say of this process.

        Examples
        --------
        >>> hello = Hello.of_this_process("agent-0", 1, slots=2)
        >>> Hello.decode(hello.encode()) == hello
        True
        """
        return cls(
            _readable(name),
            token,
            slots,
            ends_in_s,
            wire.PROTOCOL,
            {
                "Python": platform.python_version(),
                "computemanager": _own_version(),
                "cloudpickle": cloudpickle.__version__,
                "NumPy": np.__version__,
            },
            platform.machine(),
            _readable(socket.gethostname()),
            _readable(os.environ.get("COMPUTEMANAGER_IMAGE") or sys.prefix),
        )

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps({**self._asdict(), "versions": dict(self.versions)}).encode()

    @classmethod
    def decode(cls, data: Any) -> Hello:
        """From JSON that anybody may have sent.

        Raises
        ------
        BadHello
            If it is anything else than a hello.
        """
        view = memoryview(data)
        if view.nbytes > _MAX_JSON_BYTES:
            raise BadHello(f"{view.nbytes} bytes")
        try:
            found = json.loads(bytes(view))
        except ValueError as error:
            raise BadHello(f"not JSON: {error}") from None
        except RecursionError:
            raise BadHello("nested too deeply") from None
        if not isinstance(found, dict) or set(found) != set(cls._fields):
            raise BadHello("not the fields of a hello")
        for field, kind in (("token", int), ("slots", int), ("protocol", int), ("versions", dict)):
            if type(found[field]) is not kind:
                raise BadHello(f"{field} is {found[field]!r:.40}")
        texts = [found[field] for field in ("name", "machine", "host", "environment")]
        texts += [*found["versions"], *found["versions"].values()]
        if not all(map(_is_text, texts)) or not found["name"]:
            raise BadHello("a text that is none, or is too long")
        ends_in_s = found["ends_in_s"]
        if ends_in_s is not None and (type(ends_in_s) not in (int, float) or not 0 <= ends_in_s < 1e9):
            raise BadHello(f"ends_in_s is {ends_in_s!r:.40}")
        if not (0 < found["token"] < 2**64 and 0 < found["slots"] <= _MAX_SLOTS):
            raise BadHello("a number out of range")
        return cls(**found)


class Difference(NamedTuple):
    """Something that is not the same at both ends.

    Attributes
    ----------
    what, there, here : str
        E.g. ``("NumPy", "1.26.4", "2.1.0")``.
    matters : bool
        Whether the worker could fail to unpickle the job, or its answers not be understood.
    """

    what: str
    there: str
    here: str
    matters: bool


def differences(there: Hello, here: Hello) -> list[Difference]:
    """All that differs, what matters first.

    Python's pickles of functions hold bytecode, which is for one minor version. cloudpickle and NumPy read
    what others of their major version wrote. Other processors read the same pickles.
    """
    found = []
    if there.protocol != here.protocol:
        found.append(Difference("protocol", str(there.protocol), str(here.protocol), True))
    for what, digits in (("Python", 2), ("computemanager", 3), ("cloudpickle", 1), ("NumPy", 1)):
        theirs, ours = there.versions.get(what, "none"), here.versions[what]
        if theirs != ours:
            matters = theirs.split(".")[:digits] != ours.split(".")[:digits]
            found.append(Difference(what, theirs, ours, matters))
    if there.machine != here.machine:
        found.append(Difference("processor", there.machine, here.machine, False))
    return sorted(found, key=lambda difference: not difference.matters)


def refusal(there: Hello, found: Sequence[Difference]) -> str | None:
    """Why a worker is not let in, and what to do about it; None if it is."""
    wrong = [difference for difference in found if difference.matters]
    if not wrong:
        return None
    lines = [f"  {what}: {theirs} there, {ours} here" for what, theirs, ours, _ in found]
    wanted = ", ".join(f"{difference.what} {difference.here}" for difference in wrong)
    return (
        f"worker {there.name} on {there.host} cannot run this job, because it is not made of the same parts:"
        "\n"
        + "\n".join(lines)
        + f"\nRebuild the image or environment of the worker ({there.environment}) with {wanted}, or run the "
        f"main script in the worker's"
    )


def identity_of(token: int) -> bytes:
    """By which libzmq knows the connection of an agent, this one and those after it."""
    return b"a" + token.to_bytes(8, "big")  # those that begin with a zero it keeps for itself


def is_word(frame: Any) -> bool:
    """Whether a first frame is one of the words of this module, and not a session's."""
    view = memoryview(frame)
    return view.nbytes <= _MAX_WORD_BYTES and bytes(view) in _WORDS


def _readable(text: str) -> str:
    """A text as the other end takes it: the end of one that is too long says the most of a path."""
    return text.encode(errors="replace").decode()[-_MAX_TEXT:]


def _is_text(found: Any) -> bool:
    """Whether this is a text that can be sent back; JSON can spell half a character."""
    if not isinstance(found, str) or len(found) > _MAX_TEXT:
        return False
    try:
        found.encode()
    except UnicodeEncodeError:
        return False
    return True


def _own_version() -> str:
    try:
        return importlib.metadata.version("computemanager")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return "0"
