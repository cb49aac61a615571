"""Times of the custom ops."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import op_oracle as oracle
import pytest

from tfmot_ternary import runtime
from tfmot_ternary.op_times import op_times

NAME = "tfmot_ternary.fully_connected"


@pytest.fixture(scope="module")
def interpreter():
    rng = np.random.default_rng(42)
    n, k = 512, 4096
    model = oracle.packed_fully_connected(
        [-1, k],
        oracle.random_codes(rng, n, k, "t2"),
        oracle.random_scales(rng, n, k, 0),
        weight_format="t2",
    )
    interpreter = runtime.make_interpreter(model)
    interpreter.allocate_tensors()
    interpreter.invoke()
    return interpreter


def test_calls_and_their_time_are_counted(interpreter):
    start = time.perf_counter()
    with op_times() as times:
        assert times == []
        for _ in range(5):
            interpreter.invoke()
    elapsed = time.perf_counter() - start
    (record,) = [record for record in times if record.name == NAME]
    assert record.calls == 5
    assert 0 < record.seconds <= elapsed
    assert [t.seconds for t in times] == sorted((t.seconds for t in times), reverse=True)


def test_nothing_is_counted_before_behind_and_twice(interpreter):
    with op_times() as first:
        interpreter.invoke()
    interpreter.invoke()
    with op_times() as second:
        pass
    assert [record.calls for record in first if record.name == NAME] == [1]
    assert [record.name for record in second] == []


def test_an_error_ends_the_counting(interpreter):
    def fail(times):
        with op_times() as own:
            interpreter.invoke()
            times.append(own)
            raise KeyError

    counted = []
    with pytest.raises(KeyError):
        fail(counted)
    interpreter.invoke()
    assert [record.calls for record in counted[0]] == [1]


def test_it_needs_no_tensorflow():
    code = "import sys, tfmot_ternary.op_times; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
