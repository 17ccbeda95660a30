"""What can travel, how, and what the user reads when something cannot."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from computemanager import payload
from computemanager.errors import PayloadError
from computemanager.model import Job
from computemanager.sharedmem import SlabReader, SlabWriter

arrays = hnp.arrays(
    hnp.scalar_dtypes(), hnp.array_shapes(max_dims=3, max_side=60), elements={"allow_nan": False}
)
anything = st.recursive(
    st.none() | st.integers() | st.text() | st.binary(max_size=60_000) | arrays,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        # NumPy's own pickle forgets the byte order of dates.
        left, right = (each.astype(each.dtype.newbyteorder("=")) for each in (left, right))
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


@given(value=anything, large=st.integers(0, 200_000), slabs=st.booleans())
def test_a_value_survives_the_journey(value: Any, large: int, slabs: bool, tmp_path_factory: Any) -> None:
    directory = tmp_path_factory.mktemp("slabs")
    writer = SlabWriter(directory, "w") if slabs else None
    reader = SlabReader(directory, "w") if slabs else None
    sent = [value, np.arange(large) % 251, np.asfortranarray(np.ones((3, large % 5000)))]
    packed = payload.pack(sent, writer)
    received = payload.unpack(packed.payload, packed.places, [bytes(b) for b in packed.buffers], reader)
    assert same(sent, received)


@pytest.mark.parametrize("nbytes", [100, 20_000, 100_000])
def test_arrays_are_as_writable_as_they_were(nbytes: int, tmp_path: Path) -> None:
    frozen = np.zeros(nbytes, np.uint8)
    frozen.flags.writeable = False
    writer, reader = SlabWriter(tmp_path, "w"), SlabReader(tmp_path, "w")
    packed = payload.pack([np.zeros(nbytes, np.uint8), frozen], writer)
    free, still_frozen = payload.unpack(*packed, reader)
    free += 1
    assert not still_frozen.flags.writeable and still_frozen.sum() == 0


def test_views_of_parts_and_other_orders_survive() -> None:
    base = np.arange(120_000).reshape(300, 400)
    for view in (base[::2, ::3], base.T, base[5:250, 7:300], base[:, ::-1]):
        packed = payload.pack(view, None)
        assert np.array_equal(payload.unpack(*packed, None), view)


def names_culprit(function: Any, *words: str, state: Any = None) -> None:
    with pytest.raises(PayloadError) as caught:
        payload.dumps_job(Job(function, state, name="myjob"))
    text = str(caught.value)
    assert "myjob" in text and "CW_THREADS" in text
    for word in words:
        assert word in text


LOCK = threading.Lock()


def uses_a_global_lock(block: Any) -> Any:
    with LOCK:
        return block


def test_what_cannot_travel_is_named() -> None:
    lock = threading.Lock()
    names_culprit(lambda block: lock and block, "captured variable 'lock' (lock)")
    names_culprit(functools.partial(print, lock), "argument 0 of the partial (lock)")

    def with_default(block: Any, guard: Any = lock) -> Any:
        return block

    names_culprit(with_default, "default of argument 'guard' (lock)")
    inner = {"deep": [lock]}
    names_culprit(lambda block: inner, "captured variable 'inner' (dict)", "item 'deep'", "item 0 (lock)")

    class Callable_:
        def __init__(self) -> None:
            self.guard = lock

        def method(self, block: Any) -> Any:
            return block

    names_culprit(Callable_().method, "attribute 'guard' (lock)")


def test_a_state_that_cannot_travel_is_named() -> None:
    class State:
        def __init__(self) -> None:
            self.connection = threading.Lock()

    names_culprit(abs, "attribute 'connection' (lock)", state=State())


def test_a_closure_that_drags_megabytes_is_named_but_works() -> None:
    table = np.zeros(20_000_000, np.uint8)
    with pytest.warns(payload.LargePayloadWarning, match=r"20\.0 MB .*captured variable 'table' \(ndarray\)"):
        data = payload.dumps_job(Job(lambda block: table[block], name="myjob"))
    assert payload.loads_job(data)[0].function(3) == 0


def test_a_class_of_main_comes_back_as_itself() -> None:
    class Local:
        pass

    assert isinstance(pickle.loads(payload.dumps_any(Local())), Local)


def test_modules_beside_the_script_travel_and_installed_ones_do_not(tmp_path: Path) -> None:
    """In an interpreter that has neither the script's folder nor its modules."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("from package.inner import double\n")
    (tmp_path / "package" / "inner.py").write_text(
        "import helper\ndef double(x): return helper.times(2, x)\n"
    )
    (tmp_path / "helper.py").write_text("def times(a, b): return a * b\n")
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            import numpy
            import package
            from computemanager import Job, payload
            names = [module.__name__ for module in payload.modules_beside_script()]
            assert sorted(names) == ["helper", "package", "package.inner"], names
            sys.stdout.buffer.write(payload.dumps_job(Job(lambda block: package.double(numpy.int64(block)))))
            """
        )
    )
    data = subprocess.run([sys.executable, script], check=True, capture_output=True, cwd="/").stdout
    elsewhere = "import sys; from computemanager import payload; " + (
        "job, _ = payload.loads_job(sys.stdin.buffer.read()); "
        "print(job.function(21)); assert 'helper' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", elsewhere], check=True, capture_output=True, input=data, cwd="/"
    )
    assert done.stdout.strip() == b"42"


def test_the_registry_of_cloudpickle_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cloudpickle

    before = set(cloudpickle.list_registry_pickle_by_value())
    payload.dumps_job(Job(abs))
    assert set(cloudpickle.list_registry_pickle_by_value()) == before
