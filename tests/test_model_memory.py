"""Memory that conversion and inference of a large file take, in processes of their own."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

from tfmot_ternary import runtime

HERE = pathlib.Path(__file__).parent
LAYERS, ROWS = 3, 73_728  # 453 MB of packed weights

MEASURE = """
import json, sys, time

def resident():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {n: int(fields[n].split()[0]) * 1024 for n in ("VmRSS", "VmHWM", "RssAnon")}
"""

CONVERT = """
import big_model
folder = sys.argv[1]
big_model.convert_big(folder, 1, big_model.WIDTH)  # TensorFlow's own memory is not the question
open("/proc/self/clear_refs", "w").write("5")  # sets VmHWM back
before = resident()
path, size = big_model.convert_big(folder, int(sys.argv[2]), int(sys.argv[3]))
print(json.dumps({"path": path, "size": size, "growth": resident()["VmHWM"] - before["VmRSS"]}))
"""

RUN = """
import numpy as np
path, backend = sys.argv[1:]
if backend == "tf":
    from tensorflow.lite.python import interpreter
else:
    from ai_edge_litert import interpreter
from tfmot_ternary import runtime
before, start = resident(), time.process_time()
runner = runtime.make_interpreter(path, 1, backend).get_signature_runner("one")
y = runner(x=np.ones((1, 8192), np.float32))["y"]
seconds, after = time.process_time() - start, resident()
assert (y == -1).all(), y
print(json.dumps({"seconds": seconds, **{n: after[n] - before[n] for n in after}}))
"""


def measured(code, *arguments):
    result = subprocess.run(
        [sys.executable, "-c", MEASURE + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=HERE,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    found = measured(CONVERT, tmp_path_factory.mktemp("big"), LAYERS, ROWS)
    with open(found["path"], "rb") as file:  # warm: into the page cache
        while file.read(1 << 24):
            pass
    return found


def test_conversion_takes_memory_for_the_graph_only(converted):
    assert converted["size"] > 450e6
    # Measured 13 MB; the weights would be 453.
    assert converted["growth"] < 150e6


@pytest.mark.parametrize("backend", runtime.BACKENDS)
def test_a_file_is_mapped_and_ready_soon(converted, backend):
    size = pathlib.Path(converted["path"]).stat().st_size
    found = measured(RUN, converted["path"], backend)
    # The goal: the file and 150 MB. Nothing of the file is copied: measured 0.5 MB.
    assert found["VmHWM"] < size + 150e6
    assert found["RssAnon"] < 50e6
    # The goal is 2 s to the first result, with one thread here. Time of the
    # processor, because other processes may take it away; measured 0.2 s.
    assert found["seconds"] < 2
