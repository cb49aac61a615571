"""The composites against the NumPy oracle, and as fused operators in both interpreters."""

from __future__ import annotations

import numpy as np
import op_oracle
import pytest
import tensorflow as tf
from flatbuffers import flexbuffers

from tfmot_ternary import model_file, op_arithmetic, ops, packing, runtime
from tfmot_ternary.conversion import convert_functions

FORMATS = ["t2", "t5", "b1", "i8", "i4"]
GROUP_SIZES = ["tensor", 0, 32, 256]


def rng_of(*key):
    seed = sum(map(ord, repr(key)))
    print(f"seed {seed}")  # shown when a test fails
    return np.random.default_rng(seed)


def activations(rng, shape):
    """Rows with heavy tails, ramps, constants, zeros, halves (ties) and the extremes of int8."""
    x = rng.standard_normal(shape).astype(np.float32) * 10.0 ** rng.uniform(-3, 3)
    rows = x.reshape(-1, shape[-1])
    k = shape[-1]
    special = [
        np.zeros(k),
        np.full(k, -2.5),
        np.linspace(-128, 127, k),
        rng.standard_cauchy(k) * 1e3,
        np.where(np.arange(k) % 2, 127.0, 0.5),
        np.full(k, 1e-38),
    ]
    for row, values in zip(rows, special, strict=False):
        row[:] = values
    return x


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("k", [1, 3, 63, 64, 65, 255, 256, 320, 512, 515, 777])
def test_unpack_is_codes_times_scales(weight_format, k):
    rng = rng_of(weight_format, k)
    codes = op_oracle.random_codes(rng, 5, k, weight_format)
    packed = packing.pack(codes, weight_format)
    for group_size in GROUP_SIZES:
        scales = op_oracle.random_scales(rng, 5, k, group_size)
        option = op_oracle.option_group_size(group_size)
        got = ops.unpack(packed, scales, k=k, weight_format=weight_format, group_size=option)
        expected = codes * op_oracle.expand_scales(scales, 5, k)
        np.testing.assert_array_equal(got.numpy(), expected)


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 65), (16, 256), (33, 515)])
def test_fully_connected_equals_the_oracle(weight_format, group_size, n, k):
    rng = rng_of(weight_format, group_size, n, k)
    codes = op_oracle.random_codes(rng, n, k, weight_format)
    scales = op_oracle.random_scales(rng, n, k, group_size)
    bias = rng.standard_normal(n).astype(np.float32)
    x = activations(rng, (2, 5, k))
    for activation in op_arithmetic.ACTIVATION_FUNCTIONS:
        got = ops.fully_connected(
            x,
            packing.pack(codes, weight_format),
            scales,
            bias,
            weight_format=weight_format,
            group_size=op_oracle.option_group_size(group_size),
            activation=activation,
        )
        expected = op_oracle.fully_connected(x, codes, scales, bias, group_size, activation)
        # Bit for bit, groups included: the loop over groups multiplies and adds apart.
        np.testing.assert_array_equal(got.numpy(), expected)


@pytest.mark.parametrize("group_size", ["tensor", 0, 64])
def test_float32_activations(group_size):
    rng = rng_of(group_size)
    codes = op_oracle.random_codes(rng, 9, 200, "t2")
    scales = op_oracle.random_scales(rng, 9, 200, group_size)
    x = rng.standard_normal((4, 200)).astype(np.float32)
    got = ops.fully_connected(
        x,
        packing.pack(codes, "t2"),
        scales,
        weight_format="t2",
        group_size=op_oracle.option_group_size(group_size),
        activations="float32",
    )
    weights = codes * op_oracle.expand_scales(scales, 9, 200).astype(np.float64)
    # 200 float32 products of size up to 2 * 4: rounding below 200 * 2^-24 * 8 = 1e-4.
    np.testing.assert_allclose(got.numpy(), x @ weights.T, atol=1e-4)


def test_rows_that_are_not_finite_give_nan():
    rng = rng_of("nan")
    codes = op_oracle.random_codes(rng, 4, 40, "t2")
    scales = op_oracle.random_scales(rng, 4, 40, 0)
    x = rng.standard_normal((4, 40)).astype(np.float32)
    x[1, 3], x[2, 0], x[3, 39] = np.nan, np.inf, -np.inf
    got = ops.fully_connected(
        x, packing.pack(codes, "t2"), scales, weight_format="t2", activation="relu"
    ).numpy()
    expected = op_oracle.fully_connected(x, codes, scales, activation="relu")
    assert np.isnan(got[1:]).all()
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("weight_format", "code"), [("t2", 1), ("i8", -128), ("i4", -8)])
def test_sums_beyond_the_exact_range_of_float32(weight_format, code):
    k = 2 * op_arithmetic.max_exact_k(weight_format) + 3
    codes = np.full((2, k), code, np.int8)
    codes[1, -1] = -1
    x = np.full((1, k), 5.0, np.float32)  # every q is 127: the sum is above 2^24
    scales = np.ones(2, np.float32)
    packed = packing.pack(codes, weight_format)
    got = ops.fully_connected(x, packed, scales, weight_format=weight_format)
    np.testing.assert_array_equal(got.numpy(), op_oracle.fully_connected(x, codes, scales))


@pytest.mark.parametrize("group_size", ["tensor", 0, 32])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [((1, 1), (1, 1), (1, 1)), ((3, 3), (2, 1), (1, 1)), ((2, 5), (1, 1), (2, 1))],
)
def test_conv2d_equals_the_oracle(group_size, padding, kernel, stride, dilation):
    rng = rng_of(group_size, padding, kernel, stride, dilation)
    n, c = 5, 7
    k = kernel[0] * kernel[1] * c
    codes = op_oracle.random_codes(rng, n, k, "t5")
    scales = op_oracle.random_scales(rng, n, k, group_size)
    bias = rng.standard_normal(n).astype(np.float32)
    x = rng.standard_normal((3, 8, 9, c)).astype(np.float32)
    x[1] *= 100  # each image has its own scale
    x[2, 4, 4, 2] = np.nan
    got = ops.conv2d(
        x,
        packing.pack(codes, "t5"),
        scales,
        bias,
        weight_format="t5",
        kernel_size=kernel,
        strides=stride,
        dilations=dilation,
        padding=padding,
        group_size=op_oracle.option_group_size(group_size),
        activation="relu6",
    )
    expected = op_oracle.conv2d(
        x,
        codes,
        scales,
        bias,
        group_size,
        "relu6",
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        padding=padding,
    )
    np.testing.assert_array_equal(got.numpy(), expected)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_embedding_lookup_takes_rows_of_unpack(group_size):
    rng = rng_of(group_size)
    codes = op_oracle.random_codes(rng, 11, 70, "b1")
    scales = op_oracle.random_scales(rng, 11, 70, group_size)
    ids = np.array([[0, 10, 3], [3, 5, 0]], np.int32)
    got = ops.embedding_lookup(
        ids,
        packing.pack(codes, "b1"),
        scales,
        k=70,
        weight_format="b1",
        group_size=op_oracle.option_group_size(group_size),
    )
    table = codes * op_oracle.expand_scales(scales, 11, 70)
    np.testing.assert_array_equal(got.numpy(), table[ids])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_format": "t3"}, "weight_format to be one of t2, t5, b1, i8, i4, got 't3'"),
        ({"activation": "gelu"}, "activation to be one of none, relu, relu6, got 'gelu'"),
        ({"activations": "int4"}, "activations to be one of int8, float32, got 'int4'"),
        ({"x": np.zeros((2, 60), np.float32)}, r"packed weights uint8 \[n, 16\] for k = 60"),
        ({"scales": np.ones(3, np.float32)}, r"scales float32 \[1\] or \[4\] for n = 4, k = 40"),
        ({"group_size": 32}, r"scales float32 \[4, 2\]"),
        ({"bias": np.ones(5, np.float32)}, r"bias float32 \[4\], got \(5,\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {
        "x": np.zeros((2, 40), np.float32),
        "packed": packing.pack(np.ones((4, 40), np.int8), "t2"),
        "scales": np.ones(4, np.float32),
        "weight_format": "t2",
    }
    with pytest.raises(ValueError, match=message):
        ops.fully_connected(**{**arguments, **change})


def test_an_unknown_inner_dimension_is_refused():
    @tf.function(input_signature=[tf.TensorSpec([None, None])])
    def function(x):
        packed = packing.pack(np.ones((4, 40), np.int8), "t2")
        return ops.fully_connected(x, packed, np.ones(4, np.float32), weight_format="t2")

    with pytest.raises(ValueError, match="x with a known last dimension"):
        function.get_concrete_function()


def custom_operators(content):
    """(name, options, input shapes, constant bytes of input 1) of every custom operator."""
    schema = model_file.schema()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    found = []
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            if code.customCode is None:
                found.append((int(code.builtinCode), None, None, None))
                continue
            constant = model.buffers[graph.tensors[operator.inputs[1]].buffer].data
            shapes = [tuple(graph.tensors[i].shape) for i in operator.inputs]
            options = flexbuffers.Loads(bytes(operator.customOptions))
            found.append((code.customCode.decode(), options, shapes, bytes(constant)))
    return found


def test_a_composite_becomes_one_operator_with_its_options():
    rng = rng_of("fused")
    codes = op_oracle.random_codes(rng, 6, 150, "t5")
    packed = packing.pack(codes, "t5")
    scales = op_oracle.random_scales(rng, 6, 150, 64)
    bias = rng.standard_normal(6).astype(np.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, 3, 150], name="x")])
    def function(x):
        y = ops.fully_connected(
            x, packed, scales, bias, weight_format="t5", group_size=64, activation="relu"
        )
        return {"y": y}

    content = convert_functions({"f": function})
    ((name, options, shapes, constant),) = custom_operators(content)
    assert name == "tfmot_ternary.fully_connected"
    assert options == {
        "weight_format": "t5",
        "group_size": 64,
        "activation": "relu",
        "activations": "int8",
    }
    assert shapes == [(1, 3, 150), packed.shape, scales.shape, bias.shape]
    assert constant == packed.tobytes()
    x = activations(rng, (4, 3, 150))
    expected = op_oracle.fully_connected(x, codes, scales, bias, 64, "relu")
    for backend in runtime.BACKENDS:
        run = runtime.make_interpreter(content, backend=backend).get_signature_runner("f")
        np.testing.assert_array_equal(run(x=x)["y"], expected)


def test_the_other_operators_in_both_interpreters():
    rng = rng_of("others")
    codes = op_oracle.random_codes(rng, 9, 3 * 3 * 4, "t2")
    table = op_oracle.random_codes(rng, 20, 36, "b1")
    packed, packed_table = packing.pack(codes, "t2"), packing.pack(table, "b1")
    scales, table_scales = (op_oracle.random_scales(rng, n, 36, 0) for n in (9, 20))

    @tf.function(
        input_signature=[
            tf.TensorSpec([2, 5, 6, 4], name="x"),
            tf.TensorSpec([None], tf.int32, name="ids"),
        ]
    )
    def function(x, ids):
        options = {"weight_format": "t2"}
        return {
            "conv": ops.conv2d(
                x, packed, scales, kernel_size=(3, 3), strides=(1, 2), padding="SAME", **options
            ),
            "rows": ops.embedding_lookup(ids, packed_table, table_scales, k=36, weight_format="b1"),
            "matrix": ops.unpack(packed, scales, k=36, **options),
        }

    content = convert_functions({"f": function})
    names = {name for name, *_ in custom_operators(content)}
    assert names == {f"tfmot_ternary.{op}" for op in ("conv2d", "embedding_lookup", "unpack")}
    x = rng.standard_normal((2, 5, 6, 4)).astype(np.float32)
    ids = np.array([3, 19, 0, 3], np.int32)
    expected = {key: value.numpy() for key, value in function(x, ids).items()}
    for backend in runtime.BACKENDS:
        run = runtime.make_interpreter(content, backend=backend).get_signature_runner("f")
        got = run(x=x, ids=ids)
        for key, value in expected.items():
            np.testing.assert_array_equal(got[key], value, err_msg=f"{backend} {key}")
