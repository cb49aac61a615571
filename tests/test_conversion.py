"""Conversion: what is in the file, and what both interpreters make of it."""

from __future__ import annotations

import keras
import keras3_models
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

import tfmot_ternary as tt
from tfmot_ternary import keras3, model_file, packing, runtime
from tfmot_ternary.conversion import align_packed_buffers, convert, convert_functions
from tfmot_ternary.freezing import freeze
from tfmot_ternary.keras3_structure import nested_layers
from tfmot_ternary.scheme import BinaryScheme, TernaryScheme

# The packed operators equal their TensorFlow bodies bit for bit; the float layers between them
# (softmax, GELU, normalization) differ in the last bits, which may move one int8 rounding.
TOLERANCE = 2e-3


def parsed(content):
    schema = model_file.schema()
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))


def operators(model):
    """Names of all operators: the custom ones by name, the builtin ones by number."""
    names = []
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            names.append(code.customCode.decode() if code.customCode else code.builtinCode)
    return names


def packed_inputs(model):
    """(packed bytes, scales bytes) of every operator of ours."""
    found = []
    for graph in model.subgraphs:
        for operator in graph.operators:
            if not model.operatorCodes[operator.opcodeIndex].customCode:
                continue
            tensors = [graph.tensors[i] for i in operator.inputs[1:3]]
            found.append(tuple(bytes(model.buffers[t.buffer].data) for t in tensors))
    return found


def constants(model):
    """(type, bytes) of every constant, each buffer once."""
    by_buffer = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if data is not None and len(data):
                by_buffer[tensor.buffer] = (tensor.type, bytes(data))
    return list(by_buffer.values())


def run(content, signature, **inputs):
    """Outputs of a signature, from both interpreters, which must agree to the last bit of ours."""
    results = []
    for backend in runtime.BACKENDS:
        interpreter = runtime.make_interpreter(content, backend=backend)
        results.append(interpreter.get_signature_runner(signature)(**inputs))
    return results


def check(content, inputs, expected, signature="serving_default"):
    runner = runtime.make_interpreter(content).get_signature_runner(signature)
    names = list(runner.get_input_details())
    for outputs in run(content, signature, **dict(zip(names, inputs, strict=True))):
        for got, want in zip(outputs.values(), expected, strict=True):
            np.testing.assert_allclose(got, want, atol=TOLERANCE * np.abs(want).max())


@pytest.fixture(scope="module")
def mixed():
    """A quantized Keras 3 model and its file."""
    model = keras3.quantize(keras3_models.mixed_model(), TernaryScheme())
    return model, convert(model)


def cnn():
    tf_keras.utils.set_random_seed(21)
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.Input((8, 8, 1), name="digit"),
            layers.Conv2D(8, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(10, activation="softmax", name="probability"),
        ]
    )


@pytest.mark.parametrize("scheme", [TernaryScheme(), TernaryScheme(32), BinaryScheme("tensor")])
def test_tf_keras_cnn_in_both_interpreters(scheme):
    annotated = tfmot.quantization.keras.quantize_annotate_model(cnn())
    model = tfmot.quantization.keras.quantize_apply(annotated, scheme)
    content = convert(model)
    x = np.random.default_rng(1).uniform(0, 1, (6, 8, 8, 1)).astype(np.float32)
    check(content, [x], [freeze(model).predict(x, verbose=0)])
    ours = [name for name in operators(parsed(content)) if isinstance(name, str)]
    assert sorted(ours) == ["tfmot_ternary.conv2d"] * 2 + ["tfmot_ternary.fully_connected"]


@pytest.mark.parametrize("scheme", [TernaryScheme(), TernaryScheme("tensor"), BinaryScheme(64)])
def test_keras3_mlp_in_both_interpreters(scheme):
    keras.utils.set_random_seed(22)
    model = keras.Sequential(
        [
            keras.Input((70,), name="features"),
            keras.layers.Dense(33, activation="relu"),
            keras.layers.LayerNormalization(),
            keras.layers.Dense(20, activation="gelu"),
            keras.layers.Dense(4, name="logits"),
        ]
    )
    model = keras3.quantize(model, scheme)
    x = np.random.default_rng(2).standard_normal((9, 70)).astype(np.float32)
    check(convert(model), [x], [np.asarray(freeze(model)(x))])


def test_every_kind_of_layer():
    model = freeze(keras3.quantize(keras3_models.mixed_model(), TernaryScheme(32)), "t5")
    x = keras3_models.mixed_inputs()
    check(convert(model), [x], [np.asarray(model(x))])


def test_no_float_copy_of_a_weight_is_left(mixed):
    model, content = mixed
    found = parsed(content)
    layers = [layer for _, layer in nested_layers(model) if keras3.is_quantized(layer)]
    expected = sorted(
        packing.pack(
            np.sign(np.round(matrix / (scales[:, None] * 1.0000001))).astype(np.int8), "t2"
        ).tobytes()
        for layer in layers
        for matrix in [layer.kernel_layout.to_matrix(np.array(layer.kernel))]
        for scales in [np.array(layer.kernel_scale.value)]
    )
    calls = packed_inputs(found)
    # The shared layer is stored once; of its three calls two are equal, and merged.
    assert len(calls) == len(layers) + 1
    assert sorted({packed for packed, _ in calls}) == expected
    float32 = model_file.schema().TensorType.FLOAT32
    floats = {data for kind, data in constants(found) if kind == float32}
    for layer in layers:
        layout = layer.kernel_layout
        for kernel in (np.array(layer.float_weights.value), np.array(layer.kernel)):
            for form in (kernel, layout.to_matrix(kernel), layout.to_matrix(kernel).T):
                assert form.tobytes() not in floats


def test_dynamic_range_quantization_leaves_packed_weights_alone():
    keras.utils.set_random_seed(23)
    n, k = 1500, 96  # scales and bias are above the 1024 elements at which the converter quantizes
    model = keras.Sequential(
        [
            keras.Input((k,)),
            keras.layers.Dense(n, activation="relu", name="ternary"),
            keras.layers.Dense(40, name="float"),
        ]
    )
    model = keras3.quantize(model, TernaryScheme(group_size=32, skip=["^float$"]))
    frozen = freeze(model)
    plain, small = convert(frozen), convert(frozen, [tf.lite.Optimize.DEFAULT])
    weights = frozen.get_layer("ternary").packed_weights
    for content in (plain, small):
        ((packed, scales),) = packed_inputs(parsed(content))
        assert packed == weights.packed.tobytes()
        assert scales == weights.scales.tobytes()
    assert len(plain) - len(small) > 2.9 * n * 40  # the float layer went from 4 bytes to 1
    x = np.random.default_rng(3).standard_normal((2, k)).astype(np.float32)
    for outputs in run(small, "serving_default", **{frozen.inputs[0].name: x}):
        # 8-bit weights and activations in the float layer: about 1 % of the range of its outputs.
        want = np.asarray(frozen(x))
        np.testing.assert_allclose(outputs["float"], want, atol=0.03 * np.abs(want).max())


@pytest.mark.parametrize("per_channel_dense", [True, False])
def test_a_tied_table_in_8_bits(per_channel_dense):
    keras.utils.set_random_seed(24)
    table = keras.layers.ReversibleEmbedding(400, 64)
    table.build()

    @tf.function(input_signature=[tf.TensorSpec([1, None], tf.int32, name="ids")])
    def function(ids):
        return {"logits": table(tf.nn.relu(table(ids)), reverse=True)}

    content = convert_functions(
        {"f": function}, [tf.lite.Optimize.DEFAULT], per_channel_dense=per_channel_dense
    )
    stored = [len(data) for _, data in constants(parsed(content)) if len(data) > 1000]
    # Scales per channel for the product and one for the lookup: two different tables.
    assert stored == [400 * 64] * (2 if per_channel_dense else 1)
    ids = np.arange(0, 400, 50, dtype=np.int32)[None]
    want = function(ids)["logits"]
    for outputs in run(content, "f", ids=ids):
        # 8-bit table, twice, and 8-bit activations: below a percent of the range each.
        np.testing.assert_allclose(outputs["logits"], want, atol=0.03 * np.abs(want).max())


def pali_gemma_functions(model):
    """prefill and decode of a PaliGemma, over one cache for each decoder block."""
    backbone = model.backbone
    cache_shape = [1, 2, 12, 1, backbone.head_dim]

    def blocks(x, caches, position, padding_mask):
        outputs = {}
        for i, (block, cache) in enumerate(zip(backbone.transformer_layers, caches, strict=True)):
            x, outputs[f"cache_{i}"] = block(
                x, cache=cache, cache_update_index=position, padding_mask=padding_mask
            )
        x = backbone.token_embedding(backbone.layer_norm(x), reverse=True)
        return {"logits": x, **outputs}

    @tf.function(
        input_signature=[
            tf.TensorSpec([1, 5], tf.int32, name="token_ids"),
            tf.TensorSpec([1, 16, 16, 3], name="image"),
        ]
    )
    def prefill(token_ids, image):
        x = tf.concat([backbone.vit_encoder(image), backbone.token_embedding(token_ids)], axis=1)
        return blocks(x, [tf.zeros(cache_shape)] * 2, 0, tf.ones([1, 5], tf.int32))

    @tf.function(
        input_signature=[
            tf.TensorSpec([1, 1], tf.int32, name="token_ids"),
            tf.TensorSpec([], tf.int32, name="position"),
            tf.TensorSpec(cache_shape, name="cache_0"),
            tf.TensorSpec(cache_shape, name="cache_1"),
        ]
    )
    def decode(token_ids, position, cache_0, cache_1):
        return blocks(backbone.token_embedding(token_ids), [cache_0, cache_1], position, None)

    return {"prefill": prefill, "decode": decode}


@pytest.mark.parametrize("scheme", [TernaryScheme(32), BinaryScheme(embeddings=True)])
def test_pali_gemma_with_two_signatures_shares_its_weights(scheme):
    model = freeze(keras3.quantize(keras3_models.pali_gemma(), scheme))
    functions = pali_gemma_functions(model)
    content = convert_functions(functions)
    found = parsed(content)
    keys = sorted(definition.signatureKey.decode() for definition in found.signatureDefs)
    assert keys == ["decode", "prefill"]
    decoder = [layer for path, layer in nested_layers(model) if "decoder_block" in path]
    matrices = [layer.packed_weights.packed for layer in decoder if hasattr(layer, "packed")]
    assert len(matrices) == 14
    packed = {matrix.tobytes() for matrix in matrices}
    uint8 = model_file.schema().TensorType.UINT8
    stored = [data for kind, data in constants(found) if kind == uint8]
    assert len(stored) == len(set(stored))
    assert packed <= set(stored)
    table = tf.convert_to_tensor(model.backbone.token_embedding.embeddings).numpy().tobytes()
    copies = [data for _, data in constants(found) if data == table]
    assert len(copies) == (0 if scheme.embeddings else 1)

    rng = np.random.default_rng(4)
    ids = rng.integers(0, keras3_models.VOCABULARY, (1, 5)).astype(np.int32)
    image = rng.uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    start = {key: value.numpy() for key, value in functions["prefill"](ids, image).items()}
    token = np.array([[7]], np.int32)
    position = np.array(9, np.int32)
    caches = {key: start[key] for key in ("cache_0", "cache_1")}
    step = functions["decode"](token, position, **caches)
    for prefill in run(content, "prefill", token_ids=ids, image=image):
        same(prefill, start)
    for decode in run(content, "decode", token_ids=token, position=position, **caches):
        same(decode, step)


def same(got, want):
    assert set(got) == set(want)
    for key, value in want.items():
        # An activation that rounds to the other int8 step moves an output by about 1/127.
        np.testing.assert_allclose(got[key], value, atol=0.02 * np.abs(value).max(), err_msg=key)


def test_no_variable_operators_and_only_ours(mixed):
    names = operators(parsed(mixed[1]))
    builtin = model_file.schema().BuiltinOperator
    assert not {builtin.READ_VARIABLE, builtin.VAR_HANDLE, builtin.ASSIGN_VARIABLE} & set(names)
    assert {name for name in names if isinstance(name, str)} == {
        "tfmot_ternary.conv2d",
        "tfmot_ternary.fully_connected",
    }


def test_signatures_carry_the_names_of_the_model():
    a, b = keras.Input((5,), name="left"), keras.Input((6,), name="right")
    x = keras.layers.Concatenate()([a, b])
    heads = [keras.layers.Dense(n, name=name)(x) for n, name in ((2, "two"), (3, "three"))]
    model = keras3.quantize(keras.Model({"left": a, "right": b}, heads), TernaryScheme())
    content = convert(model, signature="score")
    x = {name: np.ones((4, n), np.float32) for name, n in (("left", 5), ("right", 6))}
    for outputs in run(content, "score", **x):
        assert {name: value.shape for name, value in outputs.items()} == {
            "two": (4, 2),
            "three": (4, 3),
        }


def test_all_buffers_are_aligned(mixed):
    content = mixed[1]
    model = model_file.schema().Model.GetRootAs(content, 0)
    offsets = []
    for i in range(model.BuffersLength()):
        buffer = model.Buffers(i)
        field = buffer._tab.Offset(4)
        if field and buffer.DataLength():
            offsets.append(buffer._tab.Vector(field))
    assert len(offsets) > 20
    assert {offset % 64 for offset in offsets} == {0}
    packed, _ = packed_inputs(parsed(content))[0]
    assert content.find(packed) % 64 == 0


def test_alignment_is_idempotent_and_keeps_the_model(mixed):
    content = mixed[1]
    again = align_packed_buffers(content)
    assert operators(parsed(again)) == operators(parsed(content))
    assert sorted(constants(parsed(again))) == sorted(constants(parsed(content)))
    assert len(again) == len(content)


def test_equal_constants_of_two_functions_are_stored_once():
    table = np.random.default_rng(5).standard_normal((64, 32)).astype(np.float32)

    def make(sign):
        @tf.function(input_signature=[tf.TensorSpec([1, 64], name="x")])
        def function(x):
            return {"y": sign * tf.matmul(x, tf.constant(table))}

        return function

    content = convert_functions({"plus": make(1.0), "minus": make(-1.0)})
    stored = [data for _, data in constants(parsed(content))]
    assert stored.count(np.ascontiguousarray(table.T).tobytes()) == 1
    x = np.ones((1, 64), np.float32)
    (plus, _), (minus, _) = run(content, "plus", x=x), run(content, "minus", x=x)
    np.testing.assert_array_equal(plus["y"], -minus["y"])


def test_a_file_appears_only_when_it_is_whole(tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5)])
    model = keras3.quantize(model, TernaryScheme())
    path = tmp_path / "model.tflite"
    content = convert(model, path=path)
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["model.tflite"]

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="expected room for"):
        convert(model, path=tmp_path / "other.tflite")
    assert [p.name for p in tmp_path.iterdir()] == ["model.tflite"]


def test_the_public_names_are_functions_whatever_was_imported():
    assert tt.convert is convert
    assert tt.freeze is freeze


def test_what_cannot_be_converted():
    with pytest.raises(ValueError, match="in float: quantize it first"):
        convert(keras3_models.mixed_model())
    with pytest.raises(TypeError, match="expected a tf_keras or Keras 3 model"):
        convert("model.keras")
    with pytest.raises(ValueError, match="at least one function"):
        convert_functions({})
    with pytest.raises(ValueError, match="input_signature.*'f'"):
        convert_functions({"f": tf.function(lambda x: x)})

    @tf.function(input_signature=[tf.TensorSpec([4], name="x")])
    def unknown(x):
        return {"y": tf.math.bessel_i0(x)}

    with pytest.raises(ValueError, match="operations that TF Lite has, got BesselI0"):
        convert_functions({"f": unknown})
    recurrent = keras.Sequential(
        [keras.Input((5, 3)), keras.layers.GRU(4), keras.layers.Dense(2, name="head")]
    )
    with pytest.warns(UserWarning, match="left in float"):
        recurrent = freeze(keras3.quantize(recurrent, TernaryScheme()))
    with pytest.raises(ValueError, match=r"fix them \(batch_size\)"):
        convert(recurrent)
    x = np.random.default_rng(6).standard_normal((2, 5, 3)).astype(np.float32)
    check(convert(recurrent, batch_size=2), [x], [np.asarray(recurrent(x))])
    with pytest.raises(ValueError, match="bytes of a .tflite file"):
        align_packed_buffers(b"not a model at all")
