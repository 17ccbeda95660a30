"""Names, files and arrays: what may be assigned, in which order it comes back, what errors say."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from applier.associations import (
    BlockAssociations,
    FilenameAssociations,
    OtherInputs,
    closest_first,
    symbolic_names,
)
from applier.errors import ControlsError

NAMES = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True)
PATHS = st.text("abc/.", min_size=1, max_size=8)
ENTRIES = st.dictionaries(NAMES, st.one_of(PATHS, st.lists(PATHS, max_size=4)), max_size=6)


def associations(entries: dict[str, object]) -> FilenameAssociations:
    made = FilenameAssociations()
    for name, entry in entries.items():
        setattr(made, name, entry)
    return made


def flattened(entries: dict[str, object]) -> list[tuple[str, int | None, object]]:
    flat: list[tuple[str, int | None, object]] = []
    for name, entry in entries.items():
        if isinstance(entry, list):
            flat += [(name, seq, item) for seq, item in enumerate(entry)]
        else:
            flat.append((name, None, entry))
    return flat


@given(ENTRIES)
def test_iteration_flattens_in_order_of_assignment(entries: dict[str, object]) -> None:
    made = associations(entries)
    assert list(made) == flattened(entries)
    assert len(made) == len(flattened(entries))
    assert made.names() == symbolic_names(made) == tuple(entries)


@given(ENTRIES)
def test_every_key_of_the_iteration_leads_back_to_its_file(entries: dict[str, object]) -> None:
    made = associations(entries)
    for name, seq, filename in made:
        assert made[name, seq] == filename
        assert (name, seq) in made
    for name, entry in entries.items():
        assert made[name] == made[name, None] == getattr(made, name) == entry
        assert name in made


@given(ENTRIES)
def test_blocks_have_the_structure_of_the_files(entries: dict[str, object]) -> None:
    blocks = BlockAssociations(associations(entries))
    assert [(name, seq) for name, seq, _ in blocks] == [(name, seq) for name, seq, _ in flattened(entries)]
    assert all(value is None for _, _, value in blocks)


def test_paths_become_str_and_tuples_lists() -> None:
    made = associations({"one": PurePosixPath("a/b.tif"), "two": (Path("c.tif"), "d.tif")})
    assert (made.one, made.two) == ("a/b.tif", ["c.tif", "d.tif"])


def test_a_list_can_be_appended_to_after_its_assignment() -> None:
    made = associations({"scenes": []})
    made.scenes.append(Path("a.tif"))
    assert list(made) == [("scenes", 0, "a.tif")]
    made.scenes.append(7)
    with pytest.raises(ControlsError, match=r"scenes\[1\] is of type int"):
        list(made)


def test_the_callers_list_is_not_shared() -> None:
    files = ["a.tif"]
    made = associations({"scenes": files})
    files.append("b.tif")
    assert made.scenes == ["a.tif"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "img is None"),
        (3, "img is of type int"),
        (np.zeros((1, 2, 2)), "img is of type ndarray"),
        (b"img.tif", "img is of type bytes"),
        ({"a": "b.tif"}, "img is of type dict"),
        ("", "img is an empty string"),
        (["a.tif", None], r"img\[1\] is None"),
        ([["a.tif"]], r"img\[0\] is of type list"),
    ],
)
def test_what_is_not_a_path_is_refused(value: object, said: str) -> None:
    made = FilenameAssociations()
    with pytest.raises(ControlsError, match=said + r".*; give a file name or a list of them"):
        made.img = value
    assert len(made) == 0


def test_an_unknown_name_lists_the_known_ones_closest_first() -> None:
    made = associations({"elevation": "e.tif", "img": "i.tif"})
    with pytest.raises(AttributeError, match="no 'imgs'; it has: img, elevation"):
        _ = made.imgs
    with pytest.raises(KeyError, match="no 'elevatoin'; it has: elevation, img"):
        made["elevatoin"]
    with pytest.raises(AttributeError, match="nothing is set on it yet"):
        _ = FilenameAssociations().img


@pytest.mark.parametrize("key", [("img", 0), ("many", 2), ("many", -1), "other", 3, ("img", None, None)])
def test_wrong_keys_are_not_in_it(key: object) -> None:
    made = associations({"img": "i.tif", "many": ["a.tif", "b.tif"]})
    assert key not in made
    with pytest.raises(KeyError):
        made[key]  # type: ignore[index]


def test_indexing_files_does_not_assign() -> None:
    with pytest.raises(TypeError):
        FilenameAssociations()["img"] = "i.tif"  # type: ignore[index]


def test_a_file_may_be_called_like_a_method() -> None:
    made = associations({"names": "n.tif"})
    assert made.names == "n.tif"
    assert list(made) == [("names", None, "n.tif")]
    assert symbolic_names(made) == ("names",)


def test_blocks_from_a_mapping() -> None:
    image, first, second = (np.full((1, 2, 3), value) for value in range(3))
    inputs = BlockAssociations({"img": image, "many": [first, second]})
    assert inputs.img is image
    assert inputs["many", 1] is second
    assert len(inputs) == 3
    assert [name for name, _, _ in inputs] == ["img", "many", "many"]


def test_outputs_can_be_set_in_every_way() -> None:
    outputs = BlockAssociations()
    outputs.a = 1
    outputs["b"] = 2
    outputs["c", None] = 3
    outputs.d = (4, 5)
    outputs["d", 1] = 6
    assert list(outputs) == [("a", None, 1), ("b", None, 2), ("c", None, 3), ("d", 0, 4), ("d", 1, 6)]
    assert outputs.names() == ("a", "b", "c", "d")


@pytest.mark.parametrize("key", [("d", 2), ("a", 0), ("unknown", 0)])
def test_outputs_cannot_be_set_where_there_is_no_place(key: tuple[str, int]) -> None:
    outputs = BlockAssociations({"a": 1, "d": [2, 3]})
    with pytest.raises(KeyError):
        outputs[key] = 9


def test_other_inputs_hold_anything_and_show_it() -> None:
    other = OtherInputs(low=1)
    other.names = ["x"]
    assert (other.low, other.names) == (1, ["x"])
    assert repr(other) == "OtherInputs(low=1, names=['x'])"
    other.big = np.arange(10_000)
    assert len(repr(other)) < 200
    with pytest.raises(AttributeError, match="no 'hihg'; it has"):
        _ = other.hihg
    assert not hasattr(other, "high")


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize(
    "original",
    [
        associations({"img": "i.tif", "many": ["a.tif"]}),
        BlockAssociations({"img": 1, "many": [2]}),
        OtherInputs(img=1, many=[2]),
    ],
)
def test_copies_and_pickles_are_equal(clone: object, original: object) -> None:
    made = clone(original)  # type: ignore[operator]
    assert type(made) is type(original)
    assert vars(made) == vars(original)


@given(NAMES, st.lists(NAMES, unique=True))
def test_closest_first_loses_no_name(name: str, known: list[str]) -> None:
    ordered = closest_first(name, known)
    assert sorted(ordered) == sorted(known)
    if name in known:
        assert ordered[0] == name
