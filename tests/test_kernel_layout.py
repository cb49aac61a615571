"""Kernel layouts against einsum and explicit loops."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ternary.kernel_layout import KernelLayout

SEED = 5

# (equation, input shape, kernel shape): Dense-like, attention in and out, several k and n axes,
# kernel axes in another order than the activations', ellipsis, no free axes but the batch.
EINSUMS = [
    ("ab,bc->ac", (3, 4), (4, 5)),
    ("abc,cd->abd", (2, 3, 4), (4, 5)),
    ("abc,cde->abde", (2, 3, 4), (4, 5, 6)),
    ("abcd,cde->abe", (2, 3, 4, 5), (4, 5, 6)),
    ("abc,dce->abde", (2, 3, 4), (5, 4, 6)),
    ("abc,ecd->abde", (2, 3, 4), (6, 4, 5)),
    ("abcd,dce->abe", (2, 3, 4, 5), (5, 4, 6)),
    ("abcd,bce->aed", (2, 3, 4, 5), (3, 4, 6)),
    ("btd,ndh->btnh", (2, 3, 4), (5, 4, 6)),
    ("btnh,nhd->btd", (2, 3, 4, 5), (4, 5, 6)),
    ("...x,xy->...y", (2, 3, 7, 4), (4, 5)),
    ("...x,xyz->...yz", (3, 4), (4, 5, 2)),
    ("ab...,bc->ac...", (2, 3, 4, 5), (3, 6)),
    ("ab,bcde->adec", (3, 4), (4, 2, 5, 3)),
]


def arrays(*shapes):
    generator = np.random.default_rng(SEED)
    return [generator.standard_normal(shape) for shape in shapes]


@pytest.mark.parametrize(("equation", "x_shape", "w_shape"), EINSUMS)
def test_einsum_is_a_matrix_product(equation, x_shape, w_shape):
    x, w = arrays(x_shape, w_shape)
    layout = KernelLayout.einsum(equation, w_shape, len(x_shape))
    matrix = layout.to_matrix(w)
    assert matrix.shape == (layout.n, layout.k)
    assert layout.n * layout.k == w.size
    np.testing.assert_array_equal(layout.from_matrix(matrix), w)
    got = layout.rows_to_output(layout.input_to_rows(x) @ matrix.T)
    # float64; another order of summation.
    np.testing.assert_allclose(got, np.einsum(equation, x, w), rtol=1e-12, atol=1e-12)
    # The same on tensors, eager and with an unknown batch.
    as_tensor = layout.to_matrix(tf.constant(w))
    np.testing.assert_array_equal(as_tensor.numpy(), matrix)
    np.testing.assert_array_equal(layout.from_matrix(as_tensor).numpy(), w)

    @tf.function(input_signature=[tf.TensorSpec([None, *x_shape[1:]], tf.float64)])
    def product(x):
        rows = layout.input_to_rows(x)
        return layout.rows_to_output(tf.linalg.matmul(rows, as_tensor, transpose_b=True))

    np.testing.assert_allclose(product(x).numpy(), got, rtol=1e-12, atol=1e-12)


def test_attention_projections_need_no_transposed_activations():
    query = KernelLayout.einsum("abc,cde->abde", (4, 5, 6), 3)
    assert query.input_permutation == (0, 1, 2)
    assert query.output_permutation == (0, 1, 2, 3)
    output = KernelLayout.einsum("abcd,cde->abe", (5, 6, 4), 4)
    assert output.input_permutation == (0, 1, 2, 3)
    assert output.output_permutation == (0, 1, 2)


@pytest.mark.parametrize(
    ("equation", "kernel_shape", "bias_shape"),
    [
        ("abc,cde->abde", (4, 5, 6), (5, 6)),
        ("abc,cde->abde", (4, 5, 6), (6,)),
        ("abc,ced->abde", (4, 6, 5), (5, 1)),
        ("abcd,bce->aed", (3, 4, 6), (6, 1)),
        ("...x,xy->...y", (4, 5), (5,)),
    ],
)
def test_bias(equation, kernel_shape, bias_shape):
    x_shape = {"abc": (2, 3, 4), "abcd": (2, 3, 4, 5), "...x": (2, 3, 4)}[equation.split(",")[0]]
    (bias,) = arrays(bias_shape)
    layout = KernelLayout.einsum(equation, kernel_shape, len(x_shape))
    vector = layout.bias_to_vector(bias)
    assert vector.shape == (layout.n,)
    output = np.einsum(equation, np.zeros(x_shape), np.zeros(kernel_shape))
    rows = layout.input_to_rows(np.zeros(x_shape)) @ np.zeros((layout.k, layout.n))
    np.testing.assert_array_equal(layout.rows_to_output(rows + vector), output + bias)


def test_bias_along_a_free_axis_is_refused():
    layout = KernelLayout.einsum("abc,cd->abd", (4, 5), 3)
    with pytest.raises(ValueError, match=r"expected a bias .*got shape \(3, 5\)"):
        layout.bias_to_vector(np.zeros((3, 5)))
    np.testing.assert_array_equal(KernelLayout.dense((4, 5)).bias_to_vector(np.arange(5)), range(5))


def test_dense_conv_and_embedding():
    (w,) = arrays((4, 5))
    np.testing.assert_array_equal(KernelLayout.dense(w.shape).to_matrix(w), w.T)
    np.testing.assert_array_equal(KernelLayout.embedding(w.shape).to_matrix(w), w)
    for shape in [(3, 4, 5), (2, 3, 4, 5), (2, 2, 3, 4, 5)]:
        (w,) = arrays(shape)
        layout = KernelLayout.conv(shape)
        assert (layout.n, layout.k) == (5, w.size // 5)
        matrix = layout.to_matrix(w)
        for channel in range(5):
            np.testing.assert_array_equal(matrix[channel], w[..., channel].ravel())
        np.testing.assert_array_equal(layout.from_matrix(matrix), w)


def test_conv_transpose():
    (w,) = arrays((2, 3, 4, 5))  # window 2 x 3, 4 outputs, 5 inputs
    layout = KernelLayout.conv_transpose(w.shape)
    matrix = layout.to_matrix(w)
    assert matrix.shape == (4, 30)
    np.testing.assert_array_equal(matrix[2], w[:, :, 2, :].ravel())
    np.testing.assert_array_equal(layout.from_matrix(matrix), w)


def test_conv_rows_are_patches():
    """k runs over (kh, kw, c_in): the product of image patches with W is TensorFlow's conv2d."""
    x, w = arrays((1, 5, 6, 3), (2, 3, 3, 4))
    matrix = KernelLayout.conv(w.shape).to_matrix(w)
    want = tf.nn.conv2d(x, w, strides=1, padding="VALID").numpy()
    for row in range(4):
        for column in range(4):
            patch = x[0, row : row + 2, column : column + 3].ravel()
            np.testing.assert_allclose(matrix @ patch, want[0, row, column], rtol=1e-12)


def test_config_round_trip():
    for layout in (KernelLayout.dense((3, 4)), KernelLayout.einsum("abc,cd->abd", (4, 5), 3)):
        assert KernelLayout.from_config(layout.get_config()) == layout


@pytest.mark.parametrize(
    ("equation", "kernel_shape", "rank", "message"),
    [
        ("abc,acd->abd", (2, 4, 5), 3, "batch axis.*'a'"),
        ("abc,cdx->abd", (4, 5, 2), 3, "'x' in one only"),
        ("abc,cd->ad", (4, 5), 3, "'b' in one only"),
        ("abc,cd->abde", (4, 5), 3, "'e' in one only"),
        ("abc,cc->abc", (4, 4), 3, "distinct letter"),
        ("abc,cd->abd", (4, 5), 2, "rank 2"),
        ("ab,cd->abcd", (4, 5), 2, "sum over an axis"),
        ("abc->abd", (4, 5), 3, 'expected an einsum equation "input,kernel->output"'),
        ("...x,xy->y", (4, 5), 3, "in both input and output"),
        ("a...x,xy->a...y", (4, 5), 1, "rank 2 or more"),
    ],
)
def test_einsums_that_are_no_matrix_product(equation, kernel_shape, rank, message):
    with pytest.raises(ValueError, match=message):
        KernelLayout.einsum(equation, kernel_shape, rank)


def test_wrong_shapes():
    with pytest.raises(ValueError, match="Dense kernel"):
        KernelLayout.dense((3, 4, 5))
    with pytest.raises(ValueError, match="known dimensions"):
        KernelLayout.conv((3, None, 5))
    with pytest.raises(ValueError, match=r"expected a kernel of shape \(3, 4\), got \(4, 3\)"):
        KernelLayout.dense((3, 4)).to_matrix(np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"expected a matrix of shape \(4, 3\)"):
        KernelLayout.dense((3, 4)).from_matrix(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="at least 1"):
        KernelLayout.dense((0, 4))
    with pytest.raises(ValueError, match="name each axis"):
        KernelLayout((3, 4), n_axes=(0,), k_axes=(0,))
