"""The custom ops inside stock interpreters, against NumPy and against TF Lite's builtin ops.

The models are made directly as FlatBuffers (model_builder.py), so nothing here depends on the
converter or on tfmot_ternary.ops.
"""

from __future__ import annotations

import itertools

import numpy as np
import op_oracle as oracle
import pytest
from ai_edge_litert import schema_py_generated as schema
from model_builder import ModelBuilder, flexbuffer

from tfmot_ternary import packing, runtime

FORMATS = ("t2", "t5", "b1", "i8", "i4")
GROUP_SIZES = ("tensor", 0, 32, 64, 128, 256)
WAYS = (("litert", "delegate"), ("tf", "delegate"), ("tf", "resolver"))

# Around the sizes of vectors, words and blocks: a t2 block holds 256 weights, t5 320, b1 512.
WIDTHS = (
    1,
    2,
    3,
    5,
    15,
    16,
    17,
    31,
    33,
    63,
    64,
    65,
    127,
    129,
    255,
    256,
    257,
    319,
    320,
    321,
    511,
    512,
    513,
    641,
    1025,
)


def same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal in value everywhere, NaN where NaN is expected; 0 equals -0."""
    np.testing.assert_array_equal(actual, expected)
    assert actual.dtype == expected.dtype == np.float32


def make(model: bytes, way=("litert", "delegate"), num_threads: int = 1):
    return runtime.make_interpreter(model, num_threads, backend=way[0], registration=way[1])


# ---- fully_connected ----


@pytest.mark.parametrize("weight_format", FORMATS)
def test_fully_connected_equals_the_specification(weight_format):
    rng = np.random.default_rng(11)
    turns = itertools.cycle(
        itertools.product(GROUP_SIZES, (None, "bias"), ("none", "relu", "relu6"))
    )
    for i, k in enumerate(WIDTHS):
        group_size, with_bias, activation = next(turns)
        n, m = int(rng.integers(1, 70)), (1, 2, 3, 5, 9, 33)[i % 6]
        codes = oracle.random_codes(rng, n, k, weight_format)
        scales = oracle.random_scales(rng, n, k, group_size)
        bias = rng.standard_normal(n).astype(np.float32) if with_bias else None
        x = (rng.standard_normal((m, k)) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
        model = oracle.packed_fully_connected(
            [-1, k],
            codes,
            scales,
            bias,
            weight_format=weight_format,
            group_size=group_size,
            activation=activation,
            activations="int8",
        )
        y = oracle.run(make(model), x)
        expected = oracle.fully_connected(x, codes, scales, bias, group_size, activation)
        same_bits(y, expected)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("weight_format", FORMATS)
def test_every_way_in_gives_the_same_bits(weight_format, group_size):
    rng = np.random.default_rng(12)
    n, k = 77, 700
    codes = oracle.random_codes(rng, n, k, weight_format)
    scales = oracle.random_scales(rng, n, k, group_size)
    bias = rng.standard_normal(n).astype(np.float32)
    model = oracle.packed_fully_connected(
        [-1, k], codes, scales, bias, weight_format=weight_format, group_size=group_size
    )
    for m in (1, 40):
        x = rng.standard_normal((m, k)).astype(np.float32)
        expected = oracle.fully_connected(x, codes, scales, bias, group_size)
        for way in WAYS:
            for num_threads in (1, 2, 3):
                same_bits(oracle.run(make(model, way, num_threads), x), expected)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("weight_format", FORMATS)
def test_float32_activations(weight_format, group_size):
    rng = np.random.default_rng(13)
    n, k, m = 33, 531, 6
    codes = oracle.random_codes(rng, n, k, weight_format)
    scales = oracle.random_scales(rng, n, k, group_size)
    x = rng.standard_normal((m, k)).astype(np.float32)
    model = oracle.packed_fully_connected(
        [-1, k],
        codes,
        scales,
        weight_format=weight_format,
        group_size=group_size,
        activations="float32",
    )
    weights = codes * oracle.expand_scales(scales, n, k).astype(np.float64)
    expected = x.astype(np.float64) @ weights.T
    # A float32 sum of k terms in any order errs by at most k * 2^-24 of the sum of magnitudes.
    bound = k * 2.0**-24 * (np.abs(x).astype(np.float64) @ np.abs(weights).T)
    for way in WAYS:
        y = oracle.run(make(model, way, 2), x)
        assert (np.abs(y - expected) <= bound).all()


@pytest.mark.parametrize("weight_format", FORMATS)
def test_fully_connected_against_the_builtin(weight_format):
    """Ours and TF Lite's float FULLY_CONNECTED on the dequantized weights, in one graph."""
    rng = np.random.default_rng(14)
    n, k, m = 64, 384, 5
    codes = oracle.random_codes(rng, n, k, weight_format)
    scales = oracle.random_scales(rng, n, k, 128)
    weights = (codes * oracle.expand_scales(scales, n, k)).astype(np.float32)
    builder = ModelBuilder()
    graph = builder.graph()
    x = graph.input([m, k])
    ours, builtin = graph.output([m, n]), graph.output([m, n])
    graph.custom(
        "tfmot_ternary.fully_connected",
        [x, graph.constant(packing.pack(codes, weight_format)), graph.constant(scales)],
        [ours],
        {"weight_format": weight_format, "group_size": 128},
    )
    graph.dense(x, weights, builtin)
    interpreter = make(builder.build())
    value = rng.standard_normal((m, k)).astype(np.float32)
    interpreter.allocate_tensors()
    interpreter.set_tensor(x, value)
    interpreter.invoke()
    # Each x is off by at most half a step of its row's scale; 1e-3 of that for float32 rounding.
    half_step = np.abs(value).max(axis=1, keepdims=True) / 127 / 2
    bound = 1.001 * half_step * np.abs(weights).sum(axis=1)[None, :]
    error = np.abs(interpreter.get_tensor(ours) - interpreter.get_tensor(builtin))
    assert (error <= bound).all()


@pytest.mark.parametrize(
    "shape", [(40,), (2, 40), (2, 3, 40), (2, 1, 3, 40), (1, 2, 2, 2, 40), (2, 1, 2, 1, 2, 40)]
)
def test_ranks(shape):
    rng = np.random.default_rng(15)
    codes = oracle.random_codes(rng, 9, 40, "t2")
    scales = oracle.random_scales(rng, 9, 40, 0)
    model = oracle.packed_fully_connected(shape, codes, scales, weight_format="t2")
    x = rng.standard_normal(shape).astype(np.float32)
    for way in WAYS:
        y = oracle.run(make(model, way), x)
        assert y.shape == (*shape[:-1], 9)
        same_bits(y, oracle.fully_connected(x, codes, scales))


@pytest.mark.parametrize("way", WAYS)
def test_resized_inputs(way):
    """One interpreter through many batch sizes, up, down and none."""
    rng = np.random.default_rng(16)
    codes = oracle.random_codes(rng, 50, 300, "t5")
    scales = oracle.random_scales(rng, 50, 300, 64)
    model = oracle.packed_fully_connected(
        [-1, 300], codes, scales, weight_format="t5", group_size=64
    )
    interpreter = make(model, way, 2)
    for m in (1, 7, 0, 200, 1, 0, 3):
        x = rng.standard_normal((m, 300)).astype(np.float32)
        y = oracle.run(interpreter, x)
        assert y.shape == (m, 50)
        same_bits(y, oracle.fully_connected(x, codes, scales, group_size=64))


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_are_no_constants(way):
    rng = np.random.default_rng(17)
    n, k, m = 20, 130, 3
    codes = oracle.random_codes(rng, n, k, "t2")
    packed = packing.pack(codes, "t2")
    scales = oracle.random_scales(rng, n, k, 32)
    bias = rng.standard_normal(n).astype(np.float32)
    x = rng.standard_normal((m, k)).astype(np.float32)
    model = oracle.op_model(
        "fully_connected",
        [("input", v.shape, v.dtype) for v in (x, packed, scales, bias)],
        [m, n],
        {"weight_format": "t2", "group_size": 32},
    )
    interpreter = make(model, way)
    same_bits(
        oracle.run(interpreter, x, packed, scales, bias),
        oracle.fully_connected(x, codes, scales, bias, 32),
    )
    same_bits(  # other weights, same interpreter
        oracle.run(interpreter, x, packing.pack(-codes, "t2"), scales * 2, bias),
        oracle.fully_connected(x, -codes, scales * 2, bias, 32),
    )


def test_unfit_numbers():
    """Rows with NaN or infinity give rows of NaN; the others stay; zeros and tiny rows are fine."""
    rng = np.random.default_rng(18)
    codes = oracle.random_codes(rng, 12, 100, "t2")
    scales = oracle.random_scales(rng, 12, 100, 0)
    x = rng.standard_normal((7, 100)).astype(np.float32)
    x[0, 3], x[1, 99], x[2, 0] = np.nan, np.inf, -np.inf
    x[3], x[4], x[5, 7] = 0, 1e-38, 3e38
    model = oracle.packed_fully_connected([7, 100], codes, scales, weight_format="t2")
    y = oracle.run(make(model), x)
    assert np.isnan(y[:3]).all()
    assert np.isfinite(y[3:5]).all()
    with np.errstate(over="ignore"):
        same_bits(y, oracle.fully_connected(x, codes, scales))


def test_zero_scales():
    codes = np.ones((4, 64), np.int8)
    model = oracle.packed_fully_connected(
        [1, 64], codes, np.zeros(4, np.float32), weight_format="t2"
    )
    assert (oracle.run(make(model), np.ones((1, 64), np.float32)) == 0).all()


# ---- conv2d ----

CONVOLUTIONS = [
    # h, w, c, n, kernel, stride, dilation, padding
    (8, 8, 3, 16, (3, 3), (1, 1), (1, 1), "SAME"),
    (9, 7, 16, 5, (3, 3), (2, 2), (1, 1), "SAME"),
    (9, 7, 5, 33, (3, 2), (1, 2), (2, 1), "VALID"),
    (5, 5, 64, 7, (1, 1), (1, 1), (1, 1), "VALID"),
    (1, 1, 300, 3, (1, 1), (1, 1), (1, 1), "SAME"),
    (6, 6, 20, 9, (5, 5), (3, 1), (1, 1), "SAME"),
    (10, 4, 1, 2, (4, 4), (2, 2), (1, 1), "SAME"),
]


def conv_options(kernel, stride, dilation, padding, **more) -> dict:
    names = ("kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h", "dilation_w")
    sizes = dict(zip(names, (*kernel, *stride, *dilation), strict=True))
    return {**sizes, "padding": padding, **more}


@pytest.mark.parametrize("geometry", CONVOLUTIONS)
@pytest.mark.parametrize("weight_format", FORMATS)
def test_conv2d_equals_the_specification(weight_format, geometry):
    h, w, c, n, kernel, stride, dilation, padding = geometry
    rng = np.random.default_rng(19)
    k = kernel[0] * kernel[1] * c
    codes = oracle.random_codes(rng, n, k, weight_format)
    bias = rng.standard_normal(n).astype(np.float32)
    x = rng.standard_normal((3, h, w, c)).astype(np.float32)
    x[1] *= 100  # each image has its own scale
    where = {"kernel": kernel, "stride": stride, "dilation": dilation, "padding": padding}
    for group_size, activation in (("tensor", "none"), (0, "relu"), (32, "relu6")):
        scales = oracle.random_scales(rng, n, k, group_size)
        options = conv_options(
            **where,
            weight_format=weight_format,
            activation=activation,
            group_size=oracle.option_group_size(group_size),
        )
        inputs = [("input", [-1, h, w, c], np.float32), packing.pack(codes, weight_format), scales]
        model = oracle.op_model("conv2d", [*inputs, bias], [1, 1, 1, n], options)
        expected = oracle.conv2d(x, codes, scales, bias, group_size, activation, **where)
        for way, num_threads in zip(WAYS, (1, 2, 3), strict=True):
            same_bits(oracle.run(make(model, way, num_threads), x), expected)


@pytest.mark.parametrize("activations", ["int8", "float32"])
def test_conv2d_against_the_builtin(activations):
    """CONV_2D on the dequantized weights."""
    rng = np.random.default_rng(20)
    codes = oracle.random_codes(rng, 8, 3 * 3 * 10, "t2")
    scales = oracle.random_scales(rng, 8, 90, 0)
    weights = (codes * scales[:, None]).astype(np.float32)
    builder = ModelBuilder()
    graph = builder.graph()
    x = graph.input([2, 11, 9, 10])
    ours, builtin = graph.output([2, 6, 5, 8]), graph.output([2, 6, 5, 8])
    options = conv_options((3, 3), (2, 2), (1, 1), "SAME")
    graph.custom(
        "tfmot_ternary.conv2d",
        [x, graph.constant(packing.pack(codes, "t2")), graph.constant(scales)],
        [ours],
        {**options, "weight_format": "t2", "activations": activations},
    )
    conv = schema.Conv2DOptionsT()
    conv.padding, conv.strideH, conv.strideW = schema.Padding.SAME, 2, 2
    zeros = graph.constant(np.zeros(8, np.float32))
    graph.builtin(
        schema.BuiltinOperator.CONV_2D,
        [x, graph.constant(weights.reshape(8, 3, 3, 10)), zeros],
        [builtin],
        schema.BuiltinOptions.Conv2DOptions,
        conv,
    )
    interpreter = make(builder.build())
    value = rng.standard_normal((2, 11, 9, 10)).astype(np.float32)
    interpreter.allocate_tensors()
    interpreter.set_tensor(x, value)
    interpreter.invoke()
    error = np.abs(interpreter.get_tensor(ours) - interpreter.get_tensor(builtin))
    total = np.abs(weights).sum(axis=1)
    amax = np.abs(value).max(axis=(1, 2, 3), keepdims=True)
    # int8: half a step of the image's scale for each input; float32: two sums of 90 terms, each off
    # by at most 90 * 2^-24 of the magnitudes.
    step = amax / 127 / 2 * 1.001 if activations == "int8" else amax * 2 * 90 * 2.0**-24
    assert (error <= step * total).all()


def test_conv2d_of_no_images_and_unfit_images():
    rng = np.random.default_rng(21)
    codes = oracle.random_codes(rng, 4, 12, "t2")
    scales = oracle.random_scales(rng, 4, 12, 0)
    options = conv_options((2, 2), (1, 1), (1, 1), "VALID", weight_format="t2")
    model = oracle.op_model(
        "conv2d",
        [("input", [-1, 5, 5, 3], np.float32), packing.pack(codes, "t2"), scales],
        [1, 4, 4, 4],
        options,
    )
    interpreter = make(model)
    assert oracle.run(interpreter, np.zeros((0, 5, 5, 3), np.float32)).shape == (0, 4, 4, 4)
    x = rng.standard_normal((3, 5, 5, 3)).astype(np.float32)
    x[1, 2, 2, 2] = np.nan
    where = {"kernel": (2, 2), "stride": (1, 1), "dilation": (1, 1), "padding": "VALID"}
    y = oracle.run(interpreter, x)
    assert np.isnan(y[1]).all()
    same_bits(y, oracle.conv2d(x, codes, scales, **where))


# ---- embedding_lookup, unpack ----


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("weight_format", FORMATS)
def test_embedding_lookup_and_unpack(weight_format, group_size):
    rng = np.random.default_rng(22)
    for n, k in ((1, 1), (40, 65), (10, 513), (9, 320)):
        codes = oracle.random_codes(rng, n, k, weight_format)
        scales = oracle.random_scales(rng, n, k, group_size)
        table = (codes * oracle.expand_scales(scales, n, k)).astype(np.float32)
        packed = packing.pack(codes, weight_format)
        options = {
            "weight_format": weight_format,
            "group_size": oracle.option_group_size(group_size),
            "k": k,
        }
        lookup = oracle.op_model(
            "embedding_lookup", [("input", [2, 3], np.int32), packed, scales], [2, 3, k], options
        )
        unpack = oracle.op_model(
            "unpack", [("input", packed.shape, np.uint8), scales], [n, k], options
        )
        ids = rng.integers(0, n, (2, 3)).astype(np.int32)
        for way, num_threads in zip(WAYS, (1, 2, 3), strict=True):
            same_bits(oracle.run(make(lookup, way, num_threads), ids), table[ids])
            same_bits(oracle.run(make(unpack, way, num_threads), packed), table)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 1, 2)])
def test_embedding_lookup_ranks(shape):
    rng = np.random.default_rng(23)
    codes = oracle.random_codes(rng, 6, 33, "t2")
    scales = oracle.random_scales(rng, 6, 33, 0)
    model = oracle.op_model(
        "embedding_lookup",
        [("input", shape, np.int32), packing.pack(codes, "t2"), scales],
        [*shape, 33],
        {"weight_format": "t2", "k": 33},
    )
    ids = rng.integers(0, 6, shape).astype(np.int32)
    y = oracle.run(make(model), ids)
    assert y.shape == (*shape, 33)
    same_bits(y, (codes * scales[:, None])[ids])


@pytest.mark.parametrize("bad", [-1, 6, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("way", WAYS)
def test_ids_outside_of_the_table(way, bad):
    packed = packing.pack(np.ones((6, 8), np.int8), "t2")
    model = oracle.op_model(
        "embedding_lookup",
        [("input", [3], np.int32), packed, np.ones(6, np.float32)],
        [3, 8],
        {"weight_format": "t2", "k": 8},
    )
    interpreter = make(model, way)
    with pytest.raises(RuntimeError, match=rf"expected ids in \[0, 6\), got {bad} at position 1"):
        oracle.run(interpreter, np.array([0, bad, 5], np.int32))
    assert oracle.run(interpreter, np.array([0, 1, 5], np.int32)).shape == (3, 8)


# ---- models that do not fit: every one an error of Prepare, with words ----

PACKED = packing.pack(np.ones((4, 40), np.int8), "t2")  # [4, 12]
SCALES = np.ones(4, np.float32)
X = ("input", [2, 40], np.float32)
T2 = {"weight_format": "t2"}
CONV = {**conv_options((2, 2), (1, 1), (1, 1), "SAME"), **T2}
CONV_X = ("input", [1, 5, 5, 10], np.float32)


def with_byte(value: int, fmt: str = "t2") -> np.ndarray:
    packed = packing.pack(np.ones((4, 40), np.int8), fmt)
    packed[2, 5] = value
    return packed


def with_scale(value: float, shape=(4,)) -> np.ndarray:
    scales = np.ones(shape, np.float32)
    scales.flat[-2] = value
    return scales


BAD_MODELS = {
    # name: op, inputs, options, words
    "no options": ("fully_connected", [X, PACKED, SCALES], b"", "got no bytes"),
    "garbage options": ("fully_connected", [X, PACKED, SCALES], b"\x07" * 9, "FlexBuffer"),
    "truncated options": (
        "fully_connected", [X, PACKED, SCALES], flexbuffer(T2)[3:], "FlexBuffer"),
    "options of another type": (
        "fully_connected", [X, PACKED, SCALES], b"\x05\x04\x01", "expected a FlexBuffer map"),
    "no weight_format": ("fully_connected", [X, PACKED, SCALES], {}, "option weight_format"),
    "unknown weight_format": (
        "fully_connected", [X, PACKED, SCALES], {"weight_format": "t3"},
        'expected option weight_format to be "t2", "t5" or "b1", got "t3"'),
    "weight_format of another type": (
        "fully_connected", [X, PACKED, SCALES], {"weight_format": 2}, "got the integer 2"),
    "unknown option": (
        "fully_connected", [X, PACKED, SCALES], {**T2, "sparsity": 1}, 'got "sparsity"'),
    "option of another op": (
        "fully_connected", [X, PACKED, SCALES], {**T2, "padding": "SAME"}, 'got "padding"'),
    "group_size 48": (
        "fully_connected", [X, PACKED, SCALES], {**T2, "group_size": 48},
        "expected option group_size to be 0, 32, 64, 128 or 256, got the integer 48"),
    "group_size -32": (
        "fully_connected", [X, PACKED, SCALES], {**T2, "group_size": -32}, "got the integer -32"),
    "group_size as text": (
        "fully_connected", [X, PACKED, SCALES], {**T2, "group_size": "64"}, 'got "64"'),
    "activation": (
        "fully_connected", [X, PACKED, SCALES], {**T2, "activation": "tanh"}, 'got "tanh"'),
    "activations": (
        "fully_connected", [X, PACKED, SCALES], {**T2, "activations": "int4"},
        'expected option activations to be "int8" or "float32", got "int4"'),
    "k differs": (
        "fully_connected", [X, PACKED, SCALES], {**T2, "k": 39},
        r"expected x of shape [..., 39], got [2, 40]"),
    "two inputs": ("fully_connected", [X, PACKED], T2, "expected 3 to 4 inputs, got 2"),
    "no x": ("fully_connected", [None, PACKED, SCALES], T2, "expected input x, got none"),
    "no packed": ("fully_connected", [X, None, SCALES], T2, "expected input packed, got none"),
    "no scales": ("fully_connected", [X, PACKED, None], T2, "expected input scales, got none"),
    "x int8": (
        "fully_connected", [("input", [2, 40], np.int8), PACKED, SCALES], T2,
        "expected x of type float32, got int8"),
    "x of rank 0": (
        "fully_connected", [("input", [], np.float32), PACKED, SCALES], T2,
        "expected x of shape [..., k], got []"),
    "x of no columns": (
        "fully_connected", [("input", [2, 0], np.float32), PACKED, SCALES], T2, "expected k from"),
    "packed int8": (
        "fully_connected", [X, PACKED.astype(np.int8), SCALES], T2,
        "expected packed of type uint8, got int8"),
    "packed of rank 1": (
        "fully_connected", [X, PACKED[0], SCALES], T2, "expected packed of rank 2, got shape [12]"),
    "packed too wide": (
        "fully_connected", [X, np.zeros((4, 64), np.uint8), SCALES], T2,
        "expected packed of shape [n, 12] (t2, k 40), got [4, 64]"),
    "packed of another format": (
        "fully_connected", [X, PACKED, SCALES], {"weight_format": "b1"},
        "expected packed of shape [n, 8] (b1, k 40), got [4, 12]"),
    "k mismatch": (
        "fully_connected", [("input", [2, 80], np.float32), PACKED, SCALES], T2,
        "expected packed of shape [n, 20] (t2, k 80), got [4, 12]"),
    "scales per channel of 3": (
        "fully_connected", [X, PACKED, SCALES[:3]], T2,
        "expected scales of shape [1] or [4] (group_size 0), got [3]"),
    "scales float64 as int32": (
        "fully_connected", [X, PACKED, SCALES.astype(np.int32)], T2,
        "expected scales of type float32, got int32"),
    "scales of rank 2 without groups": (
        "fully_connected", [X, PACKED, SCALES[:, None]], T2, "got [4, 1]"),
    "groups too few": (
        "fully_connected", [X, PACKED, SCALES[:, None]], {**T2, "group_size": 32},
        "expected scales of shape [4, 2] (group_size 32, k 40), got [4, 1]"),
    "scales per channel with groups": (
        "fully_connected", [X, PACKED, SCALES], {**T2, "group_size": 32}, "got [4]"),
    "bias of another size": (
        "fully_connected", [X, PACKED, SCALES, np.ones(5, np.float32)], T2,
        "expected bias of shape [4], got [5]"),
    "bias of rank 2": (
        "fully_connected", [X, PACKED, SCALES, np.ones((1, 4), np.float32)], T2,
        "expected bias of rank 1"),
    "bias int32": (
        "fully_connected", [X, PACKED, SCALES, np.ones(4, np.int32)], T2,
        "expected bias of type float32, got int32"),
    "invalid t2 code": (
        "fully_connected", [X, with_byte(0x31), SCALES], T2,
        "expected valid t2 codes, got byte 49 at row 2, byte 5"),
    "invalid t5 code": (
        "fully_connected", [X, with_byte(243, "t5"), SCALES], {"weight_format": "t5"},
        "expected valid t5 codes, got byte 243 at row 2, byte 5"),
    "scale nan": (
        "fully_connected", [X, PACKED, with_scale(np.nan)], T2,
        "expected finite scales >= 0, got nan at row 2, group 0"),
    "scale infinite": (
        "fully_connected", [X, PACKED, with_scale(np.inf)], T2, "got inf at row 2"),
    "scale negative": (
        "fully_connected", [X, PACKED, with_scale(-0.5, (4, 2))], {**T2, "group_size": 32},
        "got -0.5 at row 3, group 0"),
    "conv2d: x of rank 3": (
        "conv2d", [("input", [5, 5, 10], np.float32), PACKED, SCALES], CONV,
        "expected x of rank 4, got shape [5, 5, 10]"),
    "conv2d: channels": (
        "conv2d", [("input", [1, 5, 5, 21], np.float32), PACKED, SCALES], CONV,
        "expected packed of shape [n, 24] (t2, k 84), got [4, 12]"),
    "conv2d: kernel larger than the image": (
        "conv2d", [("input", [1, 1, 1, 10], np.float32), PACKED, SCALES],
        {**CONV, "padding": "VALID"}, "a kernel of 2 x 2"),
    "conv2d: padding": (
        "conv2d", [CONV_X, PACKED, SCALES], {**CONV, "padding": "FULL"}, '"SAME" or "VALID"'),
    "conv2d: no padding": (
        "conv2d", [CONV_X, PACKED, SCALES], {k: v for k, v in CONV.items() if k != "padding"},
        "expected option padding"),
    "conv2d: stride 0": (
        "conv2d", [CONV_X, PACKED, SCALES], {**CONV, "stride_w": 0},
        "expected option stride_w to be an integer from 1 to 65536, got the integer 0"),
    "conv2d: kernel_h huge": (
        "conv2d", [CONV_X, PACKED, SCALES], {**CONV, "kernel_h": 2**40}, "option kernel_h"),
    "conv2d: kernel of 2^32 weights": (
        "conv2d", [CONV_X, PACKED, SCALES], {**CONV, "kernel_h": 65536, "kernel_w": 65536},
        "expected k from 1 to"),
    "embedding_lookup: no k": (
        "embedding_lookup", [("input", [3], np.int32), PACKED, SCALES], T2, "expected option k"),
    "embedding_lookup: float ids": (
        "embedding_lookup", [("input", [3], np.float32), PACKED, SCALES], {**T2, "k": 40},
        "expected ids of type int32, got float32"),
    "embedding_lookup: k": (
        "embedding_lookup", [("input", [3], np.int32), PACKED, SCALES], {**T2, "k": 400},
        "(t2, k 400), got [4, 12]"),
    "unpack: three inputs": (
        "unpack", [("input", [4, 12], np.uint8), SCALES, SCALES], {**T2, "k": 40},
        "expected 2 inputs, got 3"),
    "unpack: k 0": (
        "unpack", [("input", [4, 12], np.uint8), SCALES], {**T2, "k": 0}, "option k to be an int"),
    "unpack: empty": (
        "unpack", [("input", [0, 12], np.uint8), SCALES], {**T2, "k": 40}, "got [0, 12]"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MODELS)
@pytest.mark.parametrize("way", WAYS)
def test_bad_model(way, case):
    name, inputs, options, words = BAD_MODELS[case]
    model = oracle.op_model(name, inputs, [1, 1], options)
    with pytest.raises(RuntimeError) as raised:
        make(model, way).allocate_tensors()
    assert words in str(raised.value)
    assert f"tfmot_ternary.{name}: " in str(raised.value)


@pytest.mark.parametrize("way", WAYS)
def test_two_ops_that_write_one_tensor(way):
    """The second op's Prepare shrinks what the first is about to fill: an error, no overflow."""
    builder = ModelBuilder()
    graph = builder.graph()
    large, small = graph.input([5000, 40]), graph.input([1, 40])
    y = graph.output([1, 4])
    packed, scales = graph.constant(PACKED), graph.constant(SCALES)
    for x in (large, small):
        graph.custom("tfmot_ternary.fully_connected", [x, packed, scales], [y], T2)
    interpreter = make(builder.build(), way)
    interpreter.allocate_tensors()
    with pytest.raises(RuntimeError, match=r"expected tensor 3 to keep its shape .* got \[1, 4\]"):
        interpreter.invoke()


def test_damaged_options_never_crash():
    """Every truncation and every changed byte: an error with words, or options that still read."""
    options = flexbuffer({**CONV, "group_size": 0, "activation": "relu", "activations": "int8"})
    damaged = [options[:i] for i in range(len(options))] + [options[i:] for i in range(1, 20)]
    rng = np.random.default_rng(24)
    for i in range(len(options)):
        changed = bytearray(options)
        changed[i] = int(rng.integers(256))
        damaged.append(bytes(changed))
    for data in damaged:
        model = oracle.op_model("conv2d", [CONV_X, PACKED, SCALES], [1, 1, 1, 1], data)
        try:
            make(model).allocate_tensors()
        except RuntimeError as error:
            assert "expected" in str(error)  # noqa: PT017
