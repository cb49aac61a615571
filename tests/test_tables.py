"""Tables, heads and other float weights in few bits: values, formats, files."""

from __future__ import annotations

import causal_lms
import keras
import numpy as np
import op_oracle
import pytest
import tf_keras

from tfmot_ternary import keras3, packing
from tfmot_ternary.conversion import convert
from tfmot_ternary.freezing import freeze
from tfmot_ternary.freezing_keras3 import FrozenModel
from tfmot_ternary.inspection import inspect
from tfmot_ternary.keras3_storage import FloatStorage, storage_configs
from tfmot_ternary.keras3_structure import clone, nested_layers
from tfmot_ternary.packed_layer import PackedLayer
from tfmot_ternary.runtime import make_interpreter
from tfmot_ternary.scheme import TernaryScheme
from tfmot_ternary.weight_storage import pack_rows, storage_of

VOCABULARY, WIDTH = 90, 76  # neither is a multiple of a block, a group or four
IDS = np.array([[0, 3, 89, 3, 41]], np.int32)
TOKENS = ["i8", "i8:32", "i4", "i4:channel", "t2", "t2:128", "t5", "t5:32", "b1"]
DEFAULT_GROUPS = {"i8": "channel", "i4": "32", "t2": "64", "t5": "64", "b1": "64"}
BASES = {"i8": (256, 1), "i4": (16, 2), "t2": (4, 4), "t5": (3, 5), "b1": (2, 8)}


def decode(packed: np.ndarray, k: int, weight_format: str) -> np.ndarray:
    """Codes of packed rows by the text of the format, byte for byte."""
    base, fields = BASES[weight_format]
    size = packed.shape[1]
    packed = packed.astype(np.int64)
    codes = np.zeros((len(packed), k), np.int64)
    for byte in range(size):
        block, j = divmod(byte, 64)
        block_bytes = min(64, size - 64 * block)
        for field in range(fields):
            column = block * 64 * fields + j + field * block_bytes
            if column < k:
                codes[:, column] = packed[:, byte] // base**field % base
    if weight_format == "b1":
        return 2 * codes - 1
    return codes - {"i8": 128, "i4": 8, "t2": 1, "t5": 1}[weight_format]


def dequantized(weights: packing.PackedWeights) -> np.ndarray:
    codes = decode(weights.packed, weights.k, weights.weight_format)
    return codes.astype(np.float32) * op_oracle.expand_scales(weights.scales, weights.n, weights.k)


def language_model(tied: bool = True, cap: float | None = None, **options) -> keras.Model:
    """Tokens, a middle of one Dense, and logits."""
    keras.utils.set_random_seed(4)
    ids = keras.Input((5,), dtype="int32")
    tokens = keras.layers.ReversibleEmbedding(
        VOCABULARY,
        WIDTH,
        tie_weights=tied,
        logit_soft_cap=cap,
        embeddings_initializer=keras.initializers.RandomNormal(stddev=1.0),
        name="tokens",
        **options,
    )
    x = keras.layers.Dense(WIDTH, name="middle")(tokens(ids))
    return keras.Model(ids, tokens(x, reverse=True))


def hidden() -> np.ndarray:
    return np.random.default_rng(8).standard_normal((2, 3, WIDTH)).astype(np.float32)


def packed_paths(model: keras.Model) -> dict[str, PackedLayer]:
    """By path; without the backbone's name, which Keras numbers."""
    return {
        path[path.find("backbone") :].partition("/")[2] if "backbone" in path else path: layer
        for path, layer in nested_layers(model)
        if isinstance(layer, PackedLayer)
    }


# Values.


@pytest.mark.parametrize("token", TOKENS)
def test_a_tied_table_is_one_matrix_for_lookup_and_logits(token):
    model = language_model()
    frozen = freeze(model, tables=token)
    assert list(packed_paths(frozen)) == ["tokens"]
    layer = frozen.get_layer("tokens")
    weight_format, _, size = token.partition(":")
    group_size = packing.group_size_of(size or DEFAULT_GROUPS[weight_format])
    weights = layer.packed_weights
    assert (weights.weight_format, weights.group_size) == (weight_format, group_size)
    assert [tuple(v.shape) for v in layer.weights] == [weights.packed.shape, weights.scales.shape]
    matrix = dequantized(weights)
    # One product of a code and a scale: the same in float32 everywhere.
    np.testing.assert_array_equal(layer(IDS), matrix[IDS])
    codes = decode(weights.packed, WIDTH, weight_format)
    expected = op_oracle.fully_connected(
        hidden(), codes, weights.scales, group_size=group_size or 0
    )
    # The product of integers is exact; groups are summed in a fixed order, the result is rounded
    # by one more multiplication: a last bit of the largest logit.
    found = np.asarray(layer(hidden(), reverse=True))
    np.testing.assert_allclose(found, expected, atol=2e-7 * np.abs(expected).max())


def test_eight_bits_are_the_nearest():
    """Each weight lies within half a step of its row; the largest of a row is a whole step."""
    model = language_model()
    table = np.array(model.get_layer("tokens").embeddings)
    weights = freeze(model, tables="i8").get_layer("tokens").packed_weights
    largest = np.abs(table).max(axis=1)
    np.testing.assert_allclose(weights.scales, largest / 127, rtol=1e-6)  # one division's rounding
    # Half a step, and the rounding of float32 on the way.
    assert (np.abs(dequantized(weights) - table) <= 0.5001 * weights.scales[:, None]).all()


def test_an_untied_head_is_a_second_table():
    model = language_model(tied=False)
    frozen = freeze(model, tables="i8")
    layer = frozen.get_layer("tokens")
    assert layer.reverse_embeddings is None
    assert sorted(v.name for v in layer.weights) == [
        "head_packed",
        "head_scales",
        "packed",
        "scales",
    ]
    head = np.array(model.get_layer("tokens").reverse_embeddings).T
    codes = decode(layer.head_weights.packed, WIDTH, "i8")
    scales = np.abs(head).max(axis=1) / 127
    np.testing.assert_array_equal(codes, np.rint(head / scales[:, None]))
    expected = op_oracle.fully_connected(hidden(), codes, layer.head_weights.scales)
    np.testing.assert_allclose(layer(hidden(), reverse=True), expected, rtol=1e-6)
    table = np.array(model.get_layer("tokens").embeddings)
    # Half a step of the row.
    np.testing.assert_allclose(layer(IDS), table[IDS], atol=np.abs(table).max() / 127 / 2 * 1.001)


def test_soft_cap():
    """tanh keeps the order: without the cap the same layer gives the argument of tanh."""
    capped = freeze(language_model(cap=3.0), tables="i4").get_layer("tokens")
    plain = freeze(language_model(), tables="i4").get_layer("tokens")
    logits = np.asarray(plain(hidden(), reverse=True))
    assert np.abs(logits).max() > 6  # the cap matters
    expected = 3 * np.tanh(logits / 3)
    # Two implementations of tanh in float32, times the cap.
    np.testing.assert_allclose(capped(hidden(), reverse=True), expected, atol=1e-6)


def test_float32_activations_are_not_rounded():
    model = language_model()
    layer = freeze(model, activations="float32", tables="t2").get_layer("tokens")
    expected = hidden() @ dequantized(layer.packed_weights).T
    # Sums of 76 terms in another order.
    np.testing.assert_allclose(layer(hidden(), reverse=True), expected, atol=1e-4)


def test_types_of_mixed_precision_are_kept():
    layers = {
        reverse: freeze(
            language_model(dtype="mixed_bfloat16", reverse_dtype=reverse), tables="i8"
        ).get_layer("tokens")
        for reverse in (None, "float32")
    }
    for reverse, layer in layers.items():
        assert layer.scales.dtype == "float32"
        assert layer(IDS).dtype == "bfloat16"
        assert layer(hidden(), reverse=True).dtype == (reverse or "bfloat16")
    full = freeze(language_model(), tables="i8").get_layer("tokens")
    np.testing.assert_array_equal(  # the head's product itself is in float32 under either policy
        layers["float32"](hidden(), reverse=True), full(hidden(), reverse=True)
    )


def test_fewer_bits_more_error():
    table = np.random.default_rng(2).standard_normal((64, 200)).astype(np.float32)
    errors = [
        np.square(dequantized(pack_rows(table, storage_of(token), "table")) - table).mean()
        for token in ("i8", "i4", "i4:channel", "t5:32", "t2", "t2:channel", "b1")
    ]
    assert errors == sorted(errors)
    # Steps of 1/127 and 1/7 of a maximum near 3 give steps squared over twelve.
    assert errors[0] < 1e-4 < errors[1] < 2e-2 < errors[3]


# Rows at a time.


@pytest.mark.parametrize("token", ["i8", "i4", "t2", "t5:channel"])
def test_rows_are_packed_as_they_pass(token, tmp_path):
    """A table of several chunks in half precision on the disk equals its rows packed one by one."""
    n, k = 2600, 1030
    table = np.random.default_rng(3).standard_normal((n, k)).astype(np.float16)
    path = tmp_path / "table.npy"
    np.save(path, table)
    weights = pack_rows(np.load(path, mmap_mode="r"), storage_of(token), "table")
    for row in (0, 1017, 1018, 1019, 2599):  # about the seams of chunks of 2**20 weights
        one = pack_rows(table[row : row + 1].astype(np.float32), storage_of(token), "row")
        np.testing.assert_array_equal(weights.packed[row], one.packed[0])
        np.testing.assert_array_equal(weights.scales[row], one.scales[0])


def test_a_skeleton_is_restructured_without_values():
    model = language_model(tied=False)
    storage = FloatStorage(model, "t2", "i8")
    configs = storage_configs(model, storage, [], "int8")
    frozen = freeze(model, tables="t2", others="i8")
    assert configs == frozen.structure.layers
    with keras.StatelessScope(initialize_variables=False):
        skeleton = clone(model)
        FrozenModel.restructure(skeleton, configs)
    shapes = [(v.path.split("/")[-1], v.shape, v.dtype) for v in frozen.weights]
    assert shapes == [(v.path.split("/")[-1], v.shape, v.dtype) for v in skeleton.weights]
    assert all(v._value is None for v in skeleton.weights)
    values = [(to, value.value) for to, value in zip(skeleton.weights, frozen.weights, strict=True)]
    with keras.StatelessScope(state_mapping=values):
        np.testing.assert_array_equal(skeleton(IDS), frozen(IDS))


# Which layers.


def test_others_are_what_the_scheme_left():
    # The feed-forward kernel [64, 80] has the shape of a head.
    model = causal_lms.pali_gemma(vocabulary_size=80)
    scheme = TernaryScheme(skip=("decoder_block_0/.*", ".*pali_gemma_vit.*"))
    frozen = freeze(keras3.quantize(model, scheme), "t5", tables="i4", others="i8")
    formats = {
        path: (layer.weight_format, layer.group_size)
        for path, layer in packed_paths(frozen).items()
    }
    assert formats.pop("token_embedding") == ("i4", 32)
    eight = {path for path in formats if formats[path] == ("i8", None)}
    assert {formats[path] for path in formats.keys() - eight} == {("t5", None)}
    assert {path.removeprefix("decoder_block_0/") for path in eight if "decoder" in path} == {
        *(f"attention/{name}" for name in ("query", "key", "value", "attention_output")),
        *("ffw_gating", "ffw_gating_2", "ffw_linear"),
    }
    vit = [path.split("/")[-1] for path in sorted(eight) if "vit" in path]
    projections = [f"{name}_proj" for name in ("key", "out", "query", "value")]
    encoder = ["embedding_conv", "position_embedding", "mlp_dense_1", "mlp_dense_2"]
    assert sorted(vit) == sorted([*encoder, *projections, "image_classifier"])


def test_tables_leave_others_and_others_leave_tables():
    model = causal_lms.pali_gemma()
    tables = packed_paths(freeze(model, tables="t2"))
    assert list(tables) == ["token_embedding"]
    others = packed_paths(freeze(model, others="i8"))
    assert "token_embedding" not in others
    assert {layer.weight_format for layer in others.values()} == {"i8"}


def test_a_dense_head_is_a_table():
    ids = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(VOCABULARY, WIDTH, name="tokens")(ids)
    x = keras.layers.Dense(WIDTH, name="middle")(x)
    model = keras.Model(ids, keras.layers.Dense(VOCABULARY, name="logits")(x))
    layers = packed_paths(freeze(model, tables="i4", others="i8"))
    assert {path: layer.weight_format for path, layer in layers.items()} == {
        "tokens": "i4",
        "middle": "i8",
        "logits": "i4",
    }


def test_a_trained_table_stays_trained():
    model = keras3.quantize(language_model(tied=False), TernaryScheme(embeddings=True))
    layer = freeze(model, tables="i8").get_layer("tokens")
    assert layer.weight_format == "t2"
    np.testing.assert_array_equal(
        layer.packed_weights.scales, np.array(model.get_layer("tokens").kernel_scale)
    )
    assert layer.head_format == "i8"  # no scheme trains that one


def test_float_layers_give_nearly_the_same():
    """All in eight bits: a rounding of 1/254 of the range in weights and inputs, layer by layer."""
    model = causal_lms.gemma()
    ids = np.arange(16, dtype=np.int32)[np.newaxis]
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    expected = np.asarray(model(inputs))
    found = np.asarray(freeze(model, tables="i8", others="i8")(inputs))
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


# Files.


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load(tied, tmp_path):
    frozen = freeze(language_model(tied), tables="i4:64", others="i8")
    frozen.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(IDS), frozen(IDS))
    assert type(loaded.get_layer("tokens")) is type(frozen.get_layer("tokens"))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("token", ["i8", "t2"])
def test_conversion_stores_each_table_once(tied, token, tmp_path):
    path = tmp_path / "model.tflite"
    convert(freeze(language_model(tied), tables=token, others="i8"), path=path)
    found = inspect(path)
    assert not found.float_copies()
    assert not found.misaligned()
    tables = [weight for weight in found.weights if weight.shape == [VOCABULARY, WIDTH]]
    assert [weight.uses for weight in tables] == ([2] if tied else [1, 1])
    assert {weight.format for weight in tables} == {token}
    assert {weight.format for weight in found.weights} == {token, "i8"}
    # Rows of 76 weights: 76 bytes and one scale, or 20 bytes (whole groups of four) and two scales.
    expected = {"i8": (8 * 76 + 32) / WIDTH, "t2": (8 * 20 + 2 * 32) / WIDTH}[token]
    assert tables[0].bits_per_weight_with_scales == pytest.approx(expected)


@pytest.mark.parametrize("token", ["i8", "i4", "t5"])
def test_a_file_computes_what_the_layers_compute(token):
    frozen = freeze(language_model(tied=False, cap=5.0), tables=token, others="i8")
    runner = make_interpreter(convert(frozen, batch_size=1)).get_signature_runner()
    (name,) = runner.get_input_details()
    (found,) = runner(**{name: IDS}).values()
    # Integers are the same; tanh and the rounding before the head are another library's. A code of
    # the head's input may so fall on the other side: 1/127 of its largest value, one term of 76.
    np.testing.assert_allclose(found, frozen(IDS), atol=0.02)


# Errors.


@pytest.mark.parametrize("token", ["i3", "i8:48", "i8:", "i4:tensor", "t2:0", "", 8, "int8", ":32"])
def test_bad_tokens_are_refused(token):
    with pytest.raises(ValueError, match="expected tables as <format> or <format>:<group size>"):
        freeze(language_model(), tables=token)


def test_bad_others_are_refused():
    with pytest.raises(ValueError, match="expected others None .* got \"?'?i4"):
        freeze(language_model(), others="i4")


def test_eight_bits_are_no_scheme():
    model = keras3.quantize(language_model(), TernaryScheme())
    with pytest.raises(ValueError, match="expected weight_format None or out of"):
        freeze(model, "i8")


def test_bad_values_are_refused():
    model = language_model()
    table = np.array(model.get_layer("tokens").embeddings)
    table[7, 5] = np.nan
    model.get_layer("tokens").embeddings.assign(table)
    for token in ("i8", "t2"):
        with pytest.raises(ValueError, match="finite weights in tokens, got nan at output 7, inp"):
            freeze(model, tables=token)


# tf_keras.


def tf_keras_model():
    layers = tf_keras.layers
    tf_keras.utils.set_random_seed(6)
    ids = layers.Input((5,), dtype="int32")
    x = layers.Embedding(VOCABULARY, WIDTH, embeddings_initializer="normal", name="tokens")(ids)
    x = layers.MultiHeadAttention(2, 20, name="attention")(x, x)
    x = layers.Conv1D(12, 3, padding="same", name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Dense(WIDTH, name="small")(x)  # 12 x 76 weights
    return tf_keras.Model(ids, layers.Dense(VOCABULARY, name="logits")(x))


def test_tf_keras(tmp_path):
    model = tf_keras_model()
    frozen = freeze(model, tables="i4", others="i8")
    formats = {
        layer.name: layer.weight_format
        for layer in frozen._flatten_layers()
        if isinstance(layer, PackedLayer)
    }
    attention = dict.fromkeys(("query", "key", "value", "attention_output"), "i8")
    assert formats == {"tokens": "i4", "logits": "i4", "conv": "i8", **attention}
    table = dequantized(frozen.get_layer("tokens").packed_weights)
    np.testing.assert_array_equal(frozen.get_layer("tokens")(IDS), table[IDS])
    expected = model(IDS).numpy()
    # Four bits in the first and the last product: half a step is 1/14 of a group's largest weight.
    np.testing.assert_allclose(frozen(IDS), expected, atol=0.15 * np.abs(expected).max())
    exact = freeze(model, activations="float32", others="i8")
    # Half a step of 1/127 in five layers, of random sign.
    np.testing.assert_allclose(exact(IDS), expected, atol=0.02 * np.abs(expected).max())
    frozen.save(tmp_path / "model.keras")
    loaded = tf_keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(IDS), frozen(IDS))
