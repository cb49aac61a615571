"""Tests of tfmot_ternary.packing against the golden vectors and the words of g3doc/packing.md."""

from __future__ import annotations

import pathlib
import re
import runpy

import numpy as np
import pytest

from tfmot_ternary import packing

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
SIGNS = {"-": -1, "0": 0, "+": 1}
FORMATS = ("t2", "t5", "b1", "i8", "i4")
VALUES = {
    "t2": (-1, 0, 1),
    "t5": (-1, 0, 1),
    "b1": (-1, 1),
    "i8": range(-128, 128),
    "i4": range(-8, 8),
}
# Around blocks (256, 320, 512), short blocks and groups.
EDGES = (128, 256, 320, 512, 640, 1024, 2048)
LENGTHS = (*range(1, 70), *(k + step for k in EDGES for step in (-1, 0, 1)))


def random_codes(n: int, k: int, weight_format: str, seed: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.choice(np.array(VALUES[weight_format], np.int8), (n, k))


def golden_rows() -> list[tuple[str, np.ndarray, np.ndarray]]:
    rows = []
    for line in (GOLDEN / "packing.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        weight_format, _, signs, digits = line.split()
        integers = weight_format in packing.INTEGER_FORMATS
        values = map(int, signs.split(",")) if integers else (SIGNS[sign] for sign in signs)
        codes = np.array([list(values)], np.int8)
        rows.append((weight_format, codes, np.frombuffer(bytes.fromhex(digits), np.uint8)[None]))
    return rows


def test_golden_files_are_what_their_writer_writes():
    contents = runpy.run_path(str(GOLDEN / "write_golden.py"))["contents"]()
    for name, text in contents.items():
        assert (GOLDEN / name).read_text() == text, name


def test_golden_vectors():
    rows = golden_rows()
    assert len(rows) == 95
    for weight_format, codes, packed in rows:
        k = codes.shape[1]
        np.testing.assert_array_equal(packing.pack(codes, weight_format), packed)
        np.testing.assert_array_equal(packing.unpack(packed, k, weight_format), codes)


def test_example_of_the_document():
    text = (ROOT / "g3doc" / "packing.md").read_text()
    digits = re.findall(r"= 0x([0-9a-f]{2}) \|", text)
    codes = np.array([[1, 0, -1, 1, 1, -1, 0]])
    assert packing.pack(codes, "t2").tobytes() == bytes.fromhex("".join(digits))
    t5 = re.search(r"is padding: ([0-9, ]+)\.", text)
    assert t5 is not None
    assert packing.pack(codes, "t5").tolist() == [[int(byte) for byte in t5[1].split(",")]]
    b1 = re.search(r"in `b1` is ([0-9a-fx, ]+)\.", text)
    assert b1 is not None
    expected = [[int(byte, 16) for byte in b1[1].split(",")]]
    assert packing.pack(np.array([[1, -1, -1, 1, 1, -1, 1]]), "b1").tolist() == expected


def test_integer_example_of_the_document():
    text = " ".join((ROOT / "g3doc" / "packing.md").read_text().split())
    row = re.search(r"The row ([-0-9, ]+) \(k = 5\) in `i4`.*= (\d+); .*padding: ([\d, ]+)\.", text)
    assert row is not None
    codes = np.array([[int(code) for code in row[1].split(",")]])
    i4 = [int(row[2]), *map(int, row[3].split(","))]
    assert packing.pack(codes, "i4").tolist() == [i4]
    i8 = re.search(r"In `i8` it is ([\d, ]+) and three bytes of padding, (\d+)\.", text)
    assert i8 is not None
    expected = [int(byte) for byte in i8[1].split(",")] + 3 * [int(i8[2])]
    assert packing.pack(codes, "i8").tolist() == [expected]


def test_bits_per_weight_of_the_document():
    text = (ROOT / "g3doc" / "packing.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) == 4
    for k, *bits in rows:
        for weight_format, stated in zip(FORMATS[:3], bits, strict=True):
            assert round(packing.bits_per_weight(int(k), weight_format), 3) == float(stated)


def test_bits_per_weight_bounds_and_groups():
    for k in range(256, 8193, 256):
        assert packing.bits_per_weight(k, "t5") <= 1.7
    # Codes, and one float32 scale for every 128 weights.
    assert packing.bits_per_weight(2048, "t2", 128) == 2 + 32 / 128
    assert packing.bits_per_weight(2048, "b1", "tensor") == 1


@pytest.mark.parametrize("weight_format", FORMATS)
def test_round_trip(weight_format: str):
    for k in LENGTHS:
        codes = random_codes(3, k, weight_format, seed=k)
        packed = packing.pack(codes, weight_format)
        assert packed.dtype == np.uint8
        assert packed.shape == (3, packing.row_bytes(k, weight_format))
        unpacked = packing.unpack(packed, k, weight_format)
        assert unpacked.dtype == np.int8
        np.testing.assert_array_equal(unpacked, codes, err_msg=f"k={k}")


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("code", [-1, 0, 1])
def test_constant_rows(weight_format: str, code: int):
    codes = np.full((2, 700), code, np.int8)
    if weight_format == "b1" and code == 0:
        with pytest.raises(ValueError, match=r"expected b1 codes of -1, \+1, got 0 at row 0"):
            packing.pack(codes, weight_format)
        return
    packed = packing.pack(codes, weight_format)
    np.testing.assert_array_equal(packing.unpack(packed, 700, weight_format), codes)


def test_rows_are_packed_alone():
    codes = random_codes(4, 333, "t5")
    packed = packing.pack(codes, "t5")
    for row in range(4):
        np.testing.assert_array_equal(packing.pack(codes[row : row + 1], "t5")[0], packed[row])


@pytest.mark.parametrize(
    ("codes", "weight_format", "message"),
    [
        (np.zeros((2, 0), np.int8), "t2", r"expected codes of shape \[n, k\]"),
        (np.zeros((0, 2), np.int8), "t2", r"expected codes of shape \[n, k\]"),
        (np.zeros(4, np.int8), "t2", r"expected codes of shape \[n, k\]"),
        (np.zeros((2, 2), np.float32), "t2", "expected integer codes, got float32"),
        (np.array([[0, 1], [2, 0]]), "t5", "got 2 at row 1, column 0"),
        (np.array([[0, -128]], np.int8), "t2", "got -128 at row 0, column 1"),
        (np.array([[0, 3]], np.uint8), "b1", r"expected b1 codes of -1, \+1, got 0 at row 0"),
        (np.array([[127, 128]]), "i8", "expected i8 codes of -128 to 127, got 128 at row 0"),
        (
            np.array([[7], [-8], [-9]]),
            "i4",
            "expected i4 codes of -8 to 7, got -9 at row 2",
        ),
        (np.zeros((1, 1), np.int8), "t3", "expected a weight format of"),
    ],
)
def test_pack_refuses(codes: np.ndarray, weight_format: str, message: str):
    with pytest.raises(ValueError, match=message):
        packing.pack(codes, weight_format)


@pytest.mark.parametrize(
    ("packed", "k", "weight_format", "message"),
    [
        (np.zeros((1, 64), np.int8), 256, "t2", "expected packed weights of type uint8, got int8"),
        (np.zeros((1, 63), np.uint8), 256, "t2", r"shape \[n, 64\] for k = 256, got \(1, 63\)"),
        (np.zeros(64, np.uint8), 256, "t2", r"shape \[n, 64\]"),
        (np.zeros((0, 64), np.uint8), 256, "t2", r"shape \[n, 64\]"),
        (np.zeros((1, 64), np.uint8), 0, "t2", "expected k >= 1"),
        (np.full((1, 4), 0x0C, np.uint8), 5, "t2", "got 12 in row 0, byte 0"),
        (np.array([[0, 242, 243, 0]], np.uint8), 5, "t5", "got 243 in row 0, byte 2"),
    ],
)
def test_unpack_refuses(packed: np.ndarray, k: int, weight_format: str, message: str):
    with pytest.raises(ValueError, match=message):
        packing.unpack(packed, k, weight_format)


def test_every_invalid_t2_byte_is_refused():
    for value in range(256):
        pairs = [(value >> shift) & 3 for shift in (0, 2, 4, 6)]
        packed = np.array([[value, 0, 0, 0]], np.uint8)
        if 3 in pairs:
            with pytest.raises(ValueError, match=f"got {value} in row 0, byte 0"):
                packing.unpack(packed, 16, "t2")
        else:
            codes = packing.unpack(packed, 16, "t2")
            assert codes[0, ::4].tolist() == [pair - 1 for pair in pairs]


@pytest.mark.parametrize(("weight_format", "offset"), [("i8", 128), ("i4", 8)])
def test_integer_digits(weight_format: str, offset: int):
    # Every byte is valid: digit = code + offset, the first weight in the low digit.
    packed = np.arange(256, dtype=np.uint8)[:, None] * np.ones(4, np.uint8)
    k = 4 * packing.FORMATS[weight_format].fields
    codes = packing.unpack(packed, k, weight_format)
    digits = codes.astype(int) + offset
    assert (digits[:, :4] + 2 * offset * (digits[:, 4:] if k > 4 else 0) == packed).all()
    np.testing.assert_array_equal(packing.pack(codes, weight_format), packed)


def test_pieces_of_rows_are_one_matrix(monkeypatch):
    codes = random_codes(7, 130, "t5")
    whole = packing.pack(codes, "t5")
    monkeypatch.setattr(packing, "_PIECE_WEIGHTS", 300)
    np.testing.assert_array_equal(packing.pack(codes, "t5"), whole)
    np.testing.assert_array_equal(packing.unpack(whole, 130, "t5"), codes)
    codes[5, 3] = 2
    with pytest.raises(ValueError, match="got 2 at row 5, column 3"):
        packing.pack(codes, "t5")


def test_scale_shapes():
    assert packing.scale_shape(5, 100, "tensor") == (1,)
    assert packing.scale_shape(5, 100, None) == (5,)
    assert packing.scale_shape(5, 100, 32) == (5, 4)
    assert packing.scale_shape(5, 256, 256) == (5, 1)
    for wrong in (0, 1, 48, -32, "channel", True, 64.5):
        with pytest.raises(ValueError, match="expected group_size"):
            packing.scale_shape(5, 100, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("group_size", [None, "tensor", 32, 64, 128, 256])
def test_dequantize(group_size: packing.GroupSize):
    n, k = 4, 333
    rng = np.random.default_rng(0)
    codes = random_codes(n, k, "t2")
    scales = rng.uniform(0, 1, packing.scale_shape(n, k, group_size)).astype(np.float32)
    weights = packing.PackedWeights.from_codes(codes, scales, "t2", group_size)
    assert (weights.n, weights.k) == (n, k)
    dequantized = weights.dequantize()
    assert dequantized.dtype == np.float32
    for i in range(n):
        for j in range(k):
            if group_size == "tensor":
                scale = scales[0]
            elif group_size is None:
                scale = scales[i]
            else:
                scale = scales[i, j // group_size]
            assert dequantized[i, j] == np.float32(codes[i, j]) * scale
    assert weights.nbytes == n * packing.row_bytes(k, "t2") + 4 * scales.size


def test_packed_weights_refuse():
    codes = random_codes(3, 70, "t2")
    ones = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"expected scales of shape \(3,\)"):
        packing.PackedWeights.from_codes(codes, np.ones(4), "t2")
    for bad in (np.nan, np.inf, -1.0):
        with pytest.raises(ValueError, match=r"expected finite scales >= 0, got .* at \(1,\)"):
            packing.PackedWeights.from_codes(codes, [1.0, bad, 1.0], "t2")
    packed = packing.pack(codes, "t2")
    with pytest.raises(ValueError, match="expected scales of type float32, got float64"):
        packing.PackedWeights(packed, ones.astype(np.float64), 70, "t2")
    with pytest.raises(ValueError, match="for k = 200"):
        packing.PackedWeights(packed, ones, 200, "t2")


def test_group_sizes_of_command_lines():
    expected = {"channel": None, "tensor": "tensor", "32": 32, "64": 64, "128": 128, "256": 256}
    assert {t: packing.group_size_of(t) for t in packing.GROUP_SIZE_TOKENS} == expected
    for token in ("", "33", "None", "group"):
        with pytest.raises(ValueError, match="expected a group size"):
            packing.group_size_of(token)
