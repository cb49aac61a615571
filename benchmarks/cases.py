"""What is measured: a case is one product, convolution or look-up, at one place of its weights."""

from __future__ import annotations

import dataclasses
import enum


class Kind(str, enum.Enum):
    """Of what a case measures the time."""

    PRODUCT = "product"  # x[m, k] W[n, k]^T, the same weights again and again: in cache
    WALK = "walk"  # the same on many matrices in turn, so that each comes from memory
    CONV2D = "conv2d"
    EMBEDDING = "embedding"  # m rows of a table [n, k]
    EMPTY = "empty"  # an operator that copies k floats: the cost of a call


@dataclasses.dataclass(frozen=True)
class Case:
    """One measured piece of work.

    Attributes:
      kind: see Kind.
      m, n, k: rows of x, outputs, inputs of an output (conv2d: image points, channels out, and
        kernel points times channels in).
      image: height and width of a conv2d's square image; padding SAME, stride 1.
      kernel: height and width of a conv2d's kernel.
      walk_bytes: packed weights that a walk reads before it meets the same ones again.
    """

    kind: Kind
    m: int
    n: int
    k: int
    image: int = 0
    kernel: int = 0
    walk_bytes: int = 0

    @property
    def name(self) -> str:
        """What tables and JSON call the case."""
        if self.kind is Kind.CONV2D:
            size = f"{self.image}x{self.image}x{self.channels_in}"
            return f"conv2d {self.kernel}x{self.kernel} {size} to {self.n}"
        size = f"{self.m}x{self.n}x{self.k}"
        return size if self.kind is Kind.PRODUCT else f"{self.kind.value} {size}"

    @property
    def channels_in(self) -> int:
        """Of a conv2d."""
        return self.k // (self.kernel * self.kernel)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run; a look-up has none."""
        return 0 if self.kind in (Kind.EMBEDDING, Kind.EMPTY) else self.m * self.n * self.k

    def to_json(self) -> dict:
        return {**dataclasses.asdict(self), "kind": self.kind.value}

    @classmethod
    def from_json(cls, record: dict) -> Case:
        return cls(**{**record, "kind": Kind(record["kind"])})


def product(m: int, n: int, k: int) -> Case:
    return Case(Kind.PRODUCT, m, n, k)


def conv2d(image: int, channels_in: int, channels_out: int, kernel: int) -> Case:
    k = kernel * kernel * channels_in
    return Case(Kind.CONV2D, image * image, channels_out, k, image, kernel)


DECODE = (product(1, 2048, 2048), product(1, 8192, 2048))
PREFILL = tuple(product(m, 2048, 2048) for m in (16, 128, 512))
CONVOLUTIONS = (
    conv2d(56, 64, 64, 3),
    conv2d(14, 256, 256, 3),
    conv2d(56, 64, 64, 1),
    conv2d(14, 256, 256, 1),
)
EMBEDDING = Case(Kind.EMBEDDING, 16, 51200, 2048)
EMPTY = Case(Kind.EMPTY, 1, 64, 64)
SMALL = product(1, 64, 64)


def walk(walk_bytes: int) -> Case:
    return Case(Kind.WALK, 1, 2048, 2048, walk_bytes=walk_bytes)


@dataclasses.dataclass(frozen=True)
class Contender:
    """One format of one peer; "t2 g128" is the format t2 with a scale for each 128 inputs."""

    peer: str
    variant: str

    @property
    def name(self) -> str:
        return f"{PEER_NAMES[self.peer]} {self.variant}"


PEER_NAMES = {"ours": "ours", "litert": "LiteRT", "llama_cpp": "llama.cpp"}
OUR_FORMATS = ("t2", "t5", "b1")
_OUR_GROUPS = ("t2 g64", "t2 g128", "t2 g256", "t5 g128", "b1 g128")
_LITERT = ("float32", "int8", "int4", "int4 b32", "int2")
_LLAMA_CPP = ("TQ1_0", "TQ2_0", "Q4_0", "Q8_0")


def _contenders(ours: tuple[str, ...], litert: tuple[str, ...], llama: tuple[str, ...]) -> tuple:
    named = {"ours": ours, "litert": litert, "llama_cpp": llama}
    return tuple(Contender(peer, v) for peer, variants in named.items() for v in variants)


def contenders(case: Case) -> tuple[Contender, ...]:
    """Who runs the case."""
    if case.kind is Kind.EMPTY:
        return (Contender("ours", "empty"),)
    if case.kind is Kind.CONV2D:
        return _contenders(OUR_FORMATS, ("float32", "int8"), ())
    if case.kind is Kind.EMBEDDING:
        return _contenders(OUR_FORMATS, ("int8",), ())
    if case.kind is Kind.WALK:
        # float32 would walk over the same bytes at the same speed, and tell nothing.
        return _contenders(("t2", "t2 g128", "t5", "b1"), _LITERT[1:], _LLAMA_CPP)
    if case in (*DECODE, *PREFILL):
        return _contenders(OUR_FORMATS + _OUR_GROUPS, _LITERT, _LLAMA_CPP)
    if case == SMALL:
        return _contenders(OUR_FORMATS, ("float32", "int8"), ())
    return _contenders(OUR_FORMATS + ("t2 g128",), ("int8", "int4", "int2"), ("TQ2_0", "Q4_0"))
