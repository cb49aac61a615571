"""Op times: how long each kind of custom op takes, for a profile of an inference.

Stands alone like `runtime`: NumPy, an interpreter and the library of custom ops are enough.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from collections.abc import Iterator

from tfmot_ternary import runtime

__all__ = ["OpTime", "op_times"]


@dataclasses.dataclass(frozen=True)
class OpTime:
    """What the calls of one op took together.

    Attributes:
      name: of the op, such as "tfmot_ternary.fully_connected".
      seconds: wall time of all calls.
      calls: how many.
    """

    name: str
    seconds: float
    calls: int


@contextlib.contextmanager
def op_times() -> Iterator[list[OpTime]]:
    """Counts the time of the custom ops while active, in all interpreters of the process.

    Yields:
      A list that is empty at first and, when the context ends, has a record for each op that ran,
      the longest first. Other operators of TF Lite are not in it: they are what remains of the
      time that was measured around.

    Raises:
      FileNotFoundError, OSError: no library of custom ops, or one that does not load.
    """
    library = ctypes.CDLL(str(runtime.ops_library()))
    read = library.TfmotTernaryReadOpTimes
    read.argtypes = [
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_char_p),
        ctypes.POINTER(ctypes.c_double),
        ctypes.POINTER(ctypes.c_int64),
    ]
    times: list[OpTime] = []
    library.TfmotTernaryStartOpTimes()
    try:
        yield times
    finally:
        library.TfmotTernaryStopOpTimes()
        name, seconds, calls = ctypes.c_char_p(), ctypes.c_double(), ctypes.c_int64()
        index = 0
        while read(index, ctypes.byref(name), ctypes.byref(seconds), ctypes.byref(calls)):
            if calls.value and name.value is not None:
                times.append(OpTime(name.value.decode(), seconds.value, calls.value))
            index += 1
        times.sort(key=lambda time: -time.seconds)
