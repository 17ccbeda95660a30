"""From a value in one process to the same value in another, through all that lies between.

The way is the whole of it: `payload.pack`, `wire.encode`, a pair of sessions whose channel may break,
`wire.decode`, `payload.unpack`. What comes out is held against what plain pickle gives: at least as good, in
values, types, byte order, memory order and flags.
"""

from __future__ import annotations

import decimal
import gc
import pickle
import random
import tempfile
from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from computemanager import payload, wire
from computemanager.payload import OUT_OF_BAND_BYTES
from computemanager.session import Session
from computemanager.sharedmem import MIN_BUFFER_BYTES, SlabReader, SlabWriter
from computemanager.wire import NO_SLAB, Kind, Message

# -- values --------------------------------------------------------------------------------------------------


class Point(NamedTuple):
    x: Any
    y: Any


class Colour(Enum):
    RED = 1


@dataclass
class Record:
    name: Any
    content: Any


class Slotted:
    __slots__ = ("content",)

    def __init__(self, content: Any) -> None:
        self.content = content


class Unequal(np.ndarray):
    """A kind of array with something of its own."""

    unit: Any = None

    @classmethod
    def of(cls, array: Any, unit: Any) -> Any:
        made = array.view(cls)
        made.unit = unit
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Unequal.of, (self.view(np.ndarray), self.unit)


class Blob:
    """Brings its own bytes out of band, as a library's objects may."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Blob, (pickle.PickleBuffer(self.content),)


# Small, around the size from which buffers leave the pickle, and around that of slabs.
SIZES = (0, 1, 7, OUT_OF_BAND_BYTES - 1, OUT_OF_BAND_BYTES, MIN_BUFFER_BYTES - 8, MIN_BUFFER_BYTES, 150_000)

LAYOUTS = ("plain", "rows", "fortran", "gaps", "backwards", "turned", "empty", "single", "repeated")

dtypes = (
    hnp.scalar_dtypes()
    | hnp.unicode_string_dtypes(max_len=6)
    | hnp.byte_string_dtypes(max_len=6)
    | hnp.nested_dtypes(max_leaves=4, max_itemsize=64)
    | st.sampled_from([np.dtype("V5"), np.dtype(object), np.dtype(np.longdouble)])
)


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Arrays of any type and layout, of about one of the `SIZES` in bytes."""
    dtype = draw(dtypes)
    elements = None
    if dtype.hasobject:
        elements = st.text()
    elif dtype == np.dtype("V5"):
        elements = st.binary(min_size=5, max_size=5).map(np.void)
    few = draw(hnp.arrays(dtype, draw(st.integers(1, 11)), elements=elements))
    array = np.resize(few, draw(st.sampled_from(SIZES)) // max(1, dtype.itemsize))
    made = lay_out(array, draw(st.sampled_from(LAYOUTS)))
    if draw(st.booleans()):
        made.flags.writeable = False
    return made


def lay_out(array: Any, layout: str) -> Any:
    """Give the items of a flat array another layout in memory."""
    rows = len(array) // 3
    block = array[: rows * 3].reshape(3, rows)
    layouts = {
        "plain": array,
        "rows": block.copy(),
        "fortran": np.asfortranarray(block),
        "gaps": array[::2],
        "backwards": array[::-1],
        "turned": block[:, None, :].transpose(2, 0, 1),
        "empty": np.zeros((4, 0, 2), array.dtype),
        "single": np.resize(array, 1).reshape(()),
        "repeated": np.broadcast_to(array[:50], (3, *array[:50].shape)),
    }
    return layouts[layout]


def local_instance(content: Any) -> Any:
    """Make something that plain pickle does not take along."""

    class Local:
        content: Any

    # Not as a variable that the class captures: the life of a class is its own affair.
    made = Local()
    made.content = content
    return made


def masked(array: Any) -> Any:
    return np.ma.masked_less(np.resize(array, 5000), 1)


numbers = hnp.arrays(np.int16, st.integers(1, 9))
raw = st.builds(
    lambda few, size: (few * (size // len(few) + 1))[:size], st.binary(min_size=1), st.sampled_from(SIZES)
)
keys = st.text() | st.integers() | st.tuples(st.integers(), st.text()) | st.just(Colour.RED)
leaves = st.one_of(
    arrays(),
    arrays(),
    raw,
    raw.map(bytearray),
    raw.map(Blob),
    raw.map(bytearray).map(Blob),
    st.none() | st.booleans() | st.floats() | st.complex_numbers() | st.text() | st.just(Colour.RED),
    st.integers() | st.integers(2**300, 2**330),
    st.decimals() | st.fractions() | st.datetimes() | st.timedeltas(),
    st.frozensets(keys, max_size=4) | st.sets(keys, max_size=4),
    hnp.scalar_dtypes().flatmap(lambda dtype: hnp.from_dtype(dtype)),
    st.builds(lambda array, unit: Unequal.of(array, unit), arrays(), st.text()),
    numbers.map(masked),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4).map(deque),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(OrderedDict),
        st.builds(Point, inner, inner),
        st.builds(Record, st.text(), inner),
        st.builds(Slotted, inner),
        st.builds(local_instance, inner),
    ),
    max_leaves=6,
)


# -- what is the same ----------------------------------------------------------------------------------------


def same(left: Any, right: Any) -> bool:
    """Whether what arrived is what was sent."""
    if type(left).__qualname__ != type(right).__qualname__:
        return False
    if isinstance(left, np.ma.MaskedArray):
        left, right = ((each.tobytes(), np.ma.getmaskarray(each).tobytes()) for each in (left, right))
        return bool(left == right)
    if isinstance(left, np.ndarray):
        return same_array(left, right)
    if isinstance(left, (list, tuple, deque)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, Blob):
        return bytes(memoryview(left.content)) == bytes(memoryview(right.content))
    if isinstance(left, (float, complex, np.generic, decimal.Decimal)):
        return repr(left) == repr(right)  # not a number is itself
    if hasattr(left, "content"):
        return same(left.content, right.content)
    return bool(left == right)


def same_array(left: Any, right: Any) -> bool:
    """Whether an array arrived as plain pickle would have brought it, or better."""
    plain = pickle.loads(pickle.dumps(left, 5))
    through_buffer = left.dtype.kind not in "OMm" and (left.flags.c_contiguous or left.flags.f_contiguous)
    # NumPy's own pickle of other arrays forgets their byte order, and that they were read only.
    expected = left if through_buffer and not has_dates(left.dtype) else plain
    return (
        right.shape == left.shape
        and right.dtype == expected.dtype
        and right.flags.writeable == expected.flags.writeable
        and right.flags.c_contiguous == plain.flags.c_contiguous
        and right.flags.f_contiguous == plain.flags.f_contiguous
        and right.flags.aligned
        and getattr(right, "unit", None) == getattr(left, "unit", None)
        and (right.tolist() == left.tolist() if left.dtype.hasobject else same_items(left, right))
    )


def has_dates(dtype: np.dtype[Any]) -> bool:
    if dtype.subdtype is not None:
        return has_dates(dtype.subdtype[0])
    if dtype.names is not None:
        return any(has_dates(dtype[name]) for name in dtype.names)
    return dtype.kind in "Mm"


def same_items(left: Any, right: Any) -> bool:
    if left.dtype == np.longdouble:
        return np.array_equal(left, right, equal_nan=True)  # it has unused bytes
    return right.astype(left.dtype).tobytes() == left.tobytes()


# -- the way -------------------------------------------------------------------------------------------------


def at_an_odd_address(frame: Any) -> memoryview:
    return memoryview(bytearray(b"x" + bytes(frame)))[1:]


def travel(frames: list[Any], chance: random.Random, loss: float) -> list[Any]:
    """Bring a message, in one packet or many, through sessions over a channel that loses packets."""
    fragment = chance.choice([10_000, 10_000_000])
    memory = chance.choice([bytes, bytearray, at_an_odd_address])
    here, there = Session(7, fragment_bytes=fragment), Session(7, fragment_bytes=fragment)
    here.send(frames)
    arrived: list[list[Any]] = []
    while not here.idle:
        for packet in here.packets():
            if chance.random() >= loss:
                arrived += there.receive([memoryview(memory(frame)) for frame in packet])
        arrived += there.receive(here.beat())
        if chance.random() >= loss:
            here.receive(there.beat())
    (message,) = arrived
    return message


@given(
    value=values,
    more=st.lists(st.sampled_from(SIZES), max_size=5),
    slabs=st.booleans(),
    loss=st.sampled_from([0.0, 0.0, 0.2]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_result_arrives_as_it_was(
    value: Any, more: list[int], slabs: bool, loss: float, seed: int
) -> None:
    values = [value, value, *(np.full(size // 8, number + 0.5) for number, size in enumerate(more))]
    with tempfile.TemporaryDirectory() as directory:
        writer = SlabWriter(directory, "w") if slabs else None
        reader = SlabReader(directory, "w") if slabs else None
        packed = payload.pack(values, writer)
        sent = Message(Kind.ANSWER, seed, 1, *packed, seconds=0.5, has_state=True)
        message = wire.decode(travel(wire.encode(sent), random.Random(seed), loss))
        assert message[:3] == sent[:3] and message[6:] == sent[6:]
        received = payload.unpack(message.payload, message.places, message.buffers, reader)
        # In functions of their own: what an assertion looks at may live on with its frame.
        assert is_one_object(received, value)
        assert same(values, received)
        if reader is not None:
            check_slabs(reader, [place.slab for place in packed.places if place.slab != NO_SLAB], received)


def is_one_object(received: list[Any], value: Any) -> bool:
    """Whether what was sent twice in one message arrived as one thing, where pickle promises that."""
    return received[0] is received[1] or not isinstance(value, (np.ndarray, list, dict))


def check_slabs(reader: SlabReader, used: list[int], received: list[Any]) -> None:
    """Each slab is given back, once, when nobody looks at it any more."""
    early = reader.returned()
    received.clear()
    gc.collect()
    assert sorted(early + reader.returned()) == sorted(used)


@pytest.mark.parametrize("slabs", [True, False], ids=["slabs", "no slabs"])
@pytest.mark.parametrize("nbytes", [100, OUT_OF_BAND_BYTES, MIN_BUFFER_BYTES, 300_000])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("seed", range(8))
def test_what_arrives_is_the_receivers_own(
    nbytes: int, slabs: bool, order: Any, seed: int, tmp_path: Path
) -> None:
    """Writing to it changes neither what was sent, nor what else arrived."""
    writer = SlabWriter(tmp_path, "w") if slabs else None
    reader = SlabReader(tmp_path, "w") if slabs else None
    sent = [np.full((2, nbytes // 2), number, np.uint8, order) for number in (1, 2)]
    packed = payload.pack(sent, writer)
    frames = travel(wire.encode(Message(Kind.ANSWER, 1, 1, *packed)), random.Random(seed), 0.0)
    message = wire.decode(frames)
    received = payload.unpack(message.payload, message.places, message.buffers, reader)
    received[0][:] = 77
    assert [int(array.max()) for array in (*sent, received[1])] == [1, 2, 2]
    assert received[0].flags.f_contiguous == sent[0].flags.f_contiguous


@given(value=values, data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_message_that_lost_or_gained_a_frame_is_refused(value: Any, data: st.DataObject) -> None:
    frames = [bytes(frame) for frame in wire.encode(Message(Kind.ANSWER, 1, 1, *payload.pack(value, None)))]
    at = data.draw(st.integers(0, len(frames) - 1))
    for damaged in ([*frames[:at], *frames[at + 1 :]], [*frames, b""], [*frames[:-1], frames[-1] + b"x"]):
        if len(damaged) == len(frames) == 2:
            continue  # one byte more in the pickle, which says itself where it ends
        with pytest.raises(wire.BadMessage):
            wire.decode(damaged)
