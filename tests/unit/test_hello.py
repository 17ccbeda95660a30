"""The first words of an agent: what is read before anything is trusted."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from computemanager.hello import BadHello, Hello, differences, is_word, refusal


def greeting(**changes: Any) -> Hello:
    """Return the hello of an agent that is like this process but for the changes."""
    return Hello.of_this_process("agent-7", 42, slots=2)._replace(**changes)


def with_versions(**changes: str) -> Hello:
    return greeting(versions={**greeting().versions, **changes})


def test_it_survives_the_journey() -> None:
    hello = greeting(ends_in_s=12.5)
    assert Hello.decode(memoryview(hello.encode())) == hello


def test_an_equal_worker_is_let_in() -> None:
    assert differences(greeting(), greeting()) == []
    assert refusal(greeting(), []) is None


def test_all_differences_are_listed_at_once_with_what_to_do() -> None:
    there = with_versions(Python="3.8.1", NumPy="0.9.0", cloudpickle="0.1.0")._replace(
        machine="vax", host="far", environment="registry/image:7"
    )
    text = refusal(there, differences(there, greeting()))
    assert text is not None
    for part in ("agent-7 on far", "Python: 3.8.1 there", "NumPy: 0.9.0 there", "cloudpickle: 0.1.0 there"):
        assert part in text
    assert "processor: vax there" in text
    assert "Rebuild the image or environment of the worker (registry/image:7) with" in text
    assert f"Python {greeting().versions['Python']}" in text and "NumPy" in text.splitlines()[-1]


@pytest.mark.parametrize(
    "what, version, is_refused",
    [
        ("Python", "{0}.{1}.99", False),
        ("Python", "{0}.99.0", True),
        ("NumPy", "{0}.999.0", False),
        ("NumPy", "999.0.0", True),
        ("cloudpickle", "{0}.999.0", False),
        ("cloudpickle", "999.0", True),
        ("computemanager", "{0}.{1}.999", True),
    ],
)
def test_what_matters_and_what_does_not(what: str, version: str, is_refused: bool) -> None:
    ours = greeting().versions[what].split(".")
    there = with_versions(**{what: version.format(*ours)})
    found = differences(there, greeting())
    assert [difference.what for difference in found] == [what]
    assert (refusal(there, found) is not None) == is_refused


def test_another_processor_is_told_and_let_in() -> None:
    there = greeting(machine="aarch64" if greeting().machine != "aarch64" else "x86_64")
    (found,) = differences(there, greeting())
    assert found.what == "processor" and not found.matters
    assert refusal(there, [found]) is None


def test_another_protocol_is_refused() -> None:
    there = greeting(protocol=999)
    assert "protocol: 999 there" in (refusal(there, differences(there, greeting())) or "")


@pytest.mark.parametrize(
    "changes",
    [
        {"token": 0},
        {"token": 2**64},
        {"token": "1"},
        {"token": True},
        {"slots": 0},
        {"slots": 10**9},
        {"slots": None},
        {"name": ""},
        {"name": "x" * 1000},
        {"name": 7},
        {"versions": []},
        {"versions": {"Python": 3}},
        {"ends_in_s": -1.0},
        {"ends_in_s": "soon"},
        {"ends_in_s": float("nan")},
        {"protocol": 1.5},
        {"machine": None},
        {"another": 1},
    ],
)
def test_what_is_no_hello_is_not_taken_for_one(changes: dict[str, Any]) -> None:
    said = {**json.loads(greeting().encode()), **changes}
    with pytest.raises(BadHello):
        Hello.decode(json.dumps(said).encode())


def test_deep_or_large_json_is_refused_before_it_costs_anything() -> None:
    for data in (b"[" * 60_000, b" " * 70_000, b"", b"\xff\xfe", b"null", b"{}"):
        with pytest.raises(BadHello):
            Hello.decode(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_hello_or_refused(data: bytes) -> None:
    with pytest.raises(BadHello):
        Hello.decode(data)
    assert is_word(data) == (data in (b"hello", b"welcome", b"refused", b"gone"))


def test_it_names_the_image_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert greeting().environment == sys.prefix
    monkeypatch.setenv("COMPUTEMANAGER_IMAGE", "registry/image:7")
    assert greeting().environment == "registry/image:7"
