"""Messages: any of ours survives the journey, and nothing else is taken for one."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from computemanager.wire import NO_SLAB, BadMessage, BufferPlace, Kind, Message, decode, encode

seconds = st.floats(0, 1e9, allow_nan=False)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    places, buffers = [], []
    for buffer in draw(st.lists(st.binary(max_size=40), max_size=6)):
        slab = draw(st.sampled_from([NO_SLAB, 1, 7 << 40 | 4096, 2**64 - 1]))
        places.append(BufferPlace(slab, len(buffer)))
        if slab == NO_SLAB:
            buffers.append(buffer)
    return Message(
        draw(st.sampled_from(Kind)),
        draw(st.integers(0, 2**64 - 1)),
        draw(st.integers(0, 2**32 - 1)),
        draw(st.binary(max_size=100)),
        places,
        buffers,
        draw(seconds),
        draw(seconds),
        draw(st.booleans()),
        draw(st.booleans()),
    )


@given(messages())
def test_a_message_survives_the_journey(message: Message) -> None:
    assert decode([bytes(frame) for frame in encode(message)]) == message


@given(st.lists(st.binary(max_size=120), max_size=6))
def test_any_other_frames_are_a_bad_message(frames: list[bytes]) -> None:
    try:
        message = decode(frames)
    except BadMessage:
        return
    assert [bytes(frame) for frame in encode(message)] == frames  # by chance it was one


@given(messages(), st.data())
def test_a_damaged_message_is_never_taken_for_one_of_another_shape(
    message: Message, data: st.DataObject
) -> None:
    frames = [bytes(frame) for frame in encode(message)]
    how = data.draw(st.sampled_from(["cut head", "grow head", "drop frame", "add frame", "kind"]))
    if how == "cut head":
        frames[0] = frames[0][: data.draw(st.integers(0, len(frames[0]) - 1))]
    elif how == "grow head":
        frames[0] += b"\0"
    elif how == "drop frame":
        frames.pop()
    elif how == "add frame":
        frames.append(b"more")
    else:
        frames[0] = b"\xff" + frames[0][1:]
    with pytest.raises(BadMessage):
        decode(frames)


def test_a_buffer_of_another_length_than_announced_is_refused() -> None:
    frames = encode(Message(Kind.ANSWER, places=[BufferPlace(NO_SLAB, 3)], buffers=[b"abc"]))
    frames[2] = b"abcd"
    with pytest.raises(BadMessage, match="not of 3 bytes"):
        decode(frames)


def test_a_time_that_is_none_is_refused() -> None:
    with pytest.raises(BadMessage, match="time"):
        decode(encode(Message(Kind.ANSWER, seconds=float("nan"))))
