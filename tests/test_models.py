"""Models that people bring, each all the way: quantize, train, save, load, freeze, convert, run.

The float32-frozen model is held against the quantized model (folding, packing and loading change
nothing), and both interpreters against the int8-frozen model.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
import tf_keras_models as models

import tfmot_ternary as tt
from tfmot_ternary import inspection
from tfmot_ternary.keras3 import quantized_layers
from tfmot_ternary.layer_kernels import kernel_attributes
from tfmot_ternary.packed_layer import PackedLayer
from tfmot_ternary.quantize_config import BinaryQuantizeConfig, TernaryQuantizeConfig
from tfmot_ternary.quantize_wrapper import KernelQuantizeWrapper

SEED = 31
CLASSES = 4
BATCH = 4
layers = tf_keras.layers
tfmot_keras = tfmot.quantization.keras
# Depthwise layers stay in float with one warning, in several of these models.
pytestmark = pytest.mark.filterwarnings("ignore:depthwise layers keep their float weights")


# The models.


def application(name, **arguments):
    """A network of tf_keras.applications that reacts to its inputs.

    BatchNormalization without momentum takes its statistics from the training step; with those of
    an untrained model the signal would die on its way.
    """
    model = getattr(tf_keras.applications, name)(
        weights=None,
        classes=CLASSES,
        input_shape=(32, 32, 3),
        classifier_activation=None,
        **arguments,
    )
    generator = np.random.default_rng(SEED)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
            layer.gamma.assign(generator.uniform(0.7, 1.3, layer.gamma.shape))
            layer.beta.assign(generator.normal(0, 0.2, layer.beta.shape))
    return model


def mobilenet():
    return application("MobileNetV2", alpha=0.35)


def resnet():
    return application("ResNet50")


def efficientnet():
    return application("EfficientNetB0")


@tf_keras.utils.register_keras_serializable("test_models")
class Positions(layers.Layer):
    """Adds a learned vector to each position: a user's own layer."""

    def build(self, input_shape):
        self.table = self.add_weight(name="table", shape=input_shape[1:])

    def call(self, inputs):
        return inputs + self.table


def vit():
    """A vision transformer: patches, positions, two blocks of attention and MLP."""
    image = layers.Input((16, 16, 3))
    x = layers.Conv2D(24, 4, strides=4, name="patches")(image)
    x = Positions()(layers.Reshape((16, 24))(x))
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        y = layers.MultiHeadAttention(3, 8)(y, y)
        x = layers.Add()([x, y])
        y = layers.LayerNormalization()(x)
        y = layers.Dense(24)(layers.Dense(48, activation="gelu")(y))
        x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return tf_keras.Model(image, layers.Dense(CLASSES, name="head")(x))


def recurrent(kind):
    ids = layers.Input((7,), dtype="int32")
    x = layers.Embedding(20, 12)(ids)
    x = kind(10, return_sequences=True)(x)
    return tf_keras.Model(ids, layers.Dense(CLASSES)(kind(9)(x)))


def lstm():
    return recurrent(layers.LSTM)


def gru():
    return recurrent(layers.GRU)


def separable():
    return tf_keras.Sequential(
        [
            layers.Input((9, 9, 3)),
            layers.SeparableConv2D(8, 3, activation="relu"),
            layers.DepthwiseConv2D(3),
            layers.BatchNormalization(momentum=0.0),
            layers.ReLU(6.0),
            layers.Conv2D(8, 1),
            layers.GlobalMaxPooling2D(),
            layers.Dense(CLASSES),
        ]
    )


def transposed():
    return tf_keras.Sequential(
        [
            layers.Input((6, 5, 3)),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2DTranspose(6, 3, strides=2, padding="same"),
            layers.BatchNormalization(momentum=0.0),
            layers.ReLU(),
            layers.Conv2DTranspose(2, 2),
        ]
    )


def nested():
    """A model in a model in a model; the inner one is used twice."""
    core = tf_keras.Sequential([layers.Input((8,)), layers.Dense(8, name="core_dense")], "core")
    inner = layers.Input((8,))
    middle = tf_keras.Model(
        inner, layers.Add()([core(inner), layers.Dense(8, name="middle_dense")(inner)]), name="mid"
    )
    x = layers.Input((8,))
    y = layers.ReLU()(middle(layers.Dense(8, name="first")(x)))
    return tf_keras.Model(x, layers.Dense(CLASSES, name="last")(middle(y)))


def shared():
    """Two inputs through one layer; two outputs, one of them in the middle."""
    left, right = layers.Input((12,), name="left"), layers.Input((12,), name="right")
    tower = layers.Dense(10, activation="relu", name="tower")
    x = layers.Concatenate()([tower(left), tower(right)])
    middle = layers.Dense(6, activation="tanh", name="middle")(x)
    return tf_keras.Model([left, right], [middle, layers.Dense(CLASSES, name="end")(middle)])


def mixed():
    return tf_keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(8, 3),
            layers.BatchNormalization(momentum=0.0),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dense(CLASSES, dtype="float32"),
        ]
    )


# The way.


def quantize_with_tfmot(model, scheme):
    return tfmot_keras.quantize_apply(tfmot_keras.quantize_annotate_model(model), scheme)


def kernels_in(model):
    """Number of kernels that are quantized."""
    return sum(
        len(kernel_attributes(layer.layer))
        for layer in model._flatten_layers()
        if isinstance(layer, KernelQuantizeWrapper)
    )


def packed_in(model):
    return sum(isinstance(layer, PackedLayer) for layer in model._flatten_layers())


def train_one_step(model, inputs):
    """One step; clipped, for the gradients of a deep untrained network are of any size."""
    targets = [np.ones((BATCH, *output.shape[1:]), np.float32) for output in model.outputs]
    model.compile(tf_keras.optimizers.SGD(0.01, clipnorm=1.0), "mse")
    before = [weight.numpy() for weight in model.trainable_weights]
    model.fit(inputs, targets, batch_size=BATCH, verbose=0)
    after = [weight.numpy() for weight in model.trainable_weights]
    assert sum(np.any(a != b) for a, b in zip(after, before, strict=True)) > len(after) / 2


def outputs_of(model, inputs):
    # Not `predict`, which traces a function for each model: half of this file's time.
    given = inputs if len(inputs) > 1 else inputs[0]
    return [np.asarray(y) for y in tf.nest.flatten(model(given, training=False))]


def run(content, inputs, backend):
    """The outputs of the file's signature by name, as the interpreter has them."""
    interpreter = tt.runtime.make_interpreter(content, num_threads=1, backend=backend)
    names = interpreter.get_signature_list()["serving_default"]["inputs"]
    return interpreter.get_signature_runner()(**dict(zip(names, inputs, strict=True)))


def assert_close(got, want, relative):
    for a, b in zip(got, want, strict=True):
        assert np.isfinite(b).all()
        np.testing.assert_allclose(
            a.astype(np.float32), b.astype(np.float32), atol=relative * np.abs(b).max(), rtol=0
        )


# (model, whether tfmot takes it, how it is saved, quantized kernels, precision, of file's results)
#
# Precision of the arithmetic around the packed layers: float32 sums in another order through the
# depth of the network; 2 ** -8 or 2 ** -11 for half types, of which a few add up. Results of files:
# operators agree with the frozen model bit for bit, and so do most float layers. Where the last
# bit of a float differs (softmax, tanh, gelu), an activation at a rounding tie moves by one of 127
# steps in one input of a layer: less than a hundredth of the outputs. Untrained deep networks
# (None) amplify such a tie without bound, but ties are rare and each is in one image, whereas a
# wrong operator, layout or fold is wrong in all: half of the images must agree like float sums.
WAYS = {
    "mobilenet": (mobilenet, True, "m.keras", 36, 1e-4, None),
    # tf_keras needs a minute to find 94 MB of weights in a .keras file; HDF5 takes a second.
    "resnet": (resnet, True, "m.h5", 54, 1e-4, None),
    "efficientnet": (efficientnet, True, "m.h5", 66, 1e-4, None),
    "vit": (vit, False, "m.keras", 14, 1e-5, 1e-2),
    "lstm": (lstm, True, "m.keras", 5, 1e-5, 1e-2),
    "gru": (gru, True, "m.keras", 5, 1e-5, 1e-2),
    "separable": (separable, True, "m.keras", 3, 1e-5, 1e-5),
    "transposed": (transposed, True, "m.keras", 3, 1e-5, 1e-5),
    "nested": (nested, False, "m.keras", 4, 1e-5, 1e-5),
    "shared": (shared, True, "m.keras", 3, 1e-5, 1e-2),
    "mixed_bfloat16": (mixed, True, "m.keras", 3, 4 / 2**8, 4 / 2**8),
    "mixed_float16": (mixed, True, "m.keras", 3, 4 / 2**11, 4 / 2**11),
}


@pytest.fixture
def policy(name):
    """Sets the precision policy that a name of WAYS stands for."""
    tf_keras.mixed_precision.set_global_policy(name if name.startswith("mixed") else "float32")
    yield
    tf_keras.mixed_precision.set_global_policy("float32")


@pytest.mark.usefixtures("policy")
@pytest.mark.filterwarnings(r"ignore:layer 'positions' \(Positions\) is left in float")
@pytest.mark.parametrize("name", WAYS)
def test_the_whole_way(name, tmp_path):
    make, tfmot_takes_it, file_name, kernels, precision, of_file = WAYS[name]
    tf_keras.utils.set_random_seed(SEED)
    model = make()
    inputs = [
        x.astype(tensor.dtype.as_numpy_dtype)
        for x, tensor in zip(models.inputs_of(model, BATCH), model.inputs, strict=True)
    ]
    quantize = quantize_with_tfmot if tfmot_takes_it else tt.quantize_apply
    quantized = quantize(model, tt.TernaryScheme())
    assert kernels_in(quantized) == kernels
    train_one_step(quantized, inputs)
    quantized.save(tmp_path / file_name)
    with tt.quantize_scope():
        again = tf_keras.models.load_model(tmp_path / file_name)
    want = outputs_of(quantized, inputs)
    for a, b in zip(outputs_of(again, inputs), want, strict=True):
        np.testing.assert_array_equal(a, b)
    # An output that does not depend on the input would agree with anything.
    assert max(y.astype(np.float32).std(axis=0).max() for y in want) > 1e-3
    exact = tt.freeze(again, activations="float32")
    assert packed_in(exact) == kernels
    assert_close(outputs_of(exact, inputs), want, precision)
    frozen = tt.freeze(again)
    want = outputs_of(frozen, inputs)
    content = tt.convert(frozen, batch_size=BATCH, path=tmp_path / "m.tflite")
    found = inspection.inspect(tmp_path / "m.tflite")
    assert [w.format for w in found.weights if w.packed] == ["t2"] * kernels
    assert not found.float_copies()
    for backend in ("litert", "tf"):
        by_name = run(content, inputs, backend)
        got = [by_name[key] for key in frozen.output_names]
        if of_file is None:
            errors = np.abs(got[0] - want[0]).max(axis=1) / np.abs(want[0]).max()
            assert (errors < precision).mean() >= 0.5, errors
        else:
            assert_close(got, want, of_file)


def test_the_policy_of_a_layer_counts_not_the_global_one():
    """Half precision in one layer, by its dtype; tfmot's annotations take no such model."""
    layer = layers.Dense(8, dtype="mixed_bfloat16", name="half")
    model = models.randomize(tf_keras.Sequential([layers.Input((40,)), layer]))
    inputs = models.inputs_of(model)
    quantized = tt.quantize_apply(model, tt.TernaryScheme())
    got = quantized.get_layer("quant_half")(inputs[0])
    assert got.dtype == tf.bfloat16
    wrapper = quantized.get_layer("quant_half")
    scales, kernel = wrapper.scales.numpy(), layer.kernel.numpy()
    values = np.where(np.abs(kernel) > scales / 2, np.sign(kernel) * scales, 0)
    # Codes from the float32 kernel; then the arithmetic is that of the layer, bit for bit.
    layer.kernel.assign(values)
    np.testing.assert_array_equal(got, layer(inputs[0]))


# What tfmot refuses.


def attention():
    x = layers.Input((5, 8))
    return tf_keras.Model(x, layers.MultiHeadAttention(2, 4)(x, x))


def normalization():
    return tf_keras.Sequential([layers.Input((8,)), layers.Dense(8), layers.LayerNormalization()])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (nested, ValueError, "inside another"),  # issues 638, 957
        (attention, RuntimeError, "MultiHeadAttention.* is not supported"),  # issues 661, 718
        (normalization, RuntimeError, "LayerNormalization.* is not supported"),  # issue 942
    ],
)
def test_tfmots_own_scheme_refuses_them(make, error, message):
    """The contrast to `test_the_whole_way`."""
    with pytest.raises(error, match=message):
        tfmot_keras.quantize_apply(tfmot_keras.quantize_annotate_model(make()))


# Pruned and clustered models.


def small():
    return models.randomize(
        tf_keras.Sequential(
            [
                layers.Input((12,)),
                layers.Dense(16, activation="relu", name="first"),
                layers.Dense(CLASSES, name="last"),
            ]
        )
    )


def pruned():
    schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
    model = tfmot.sparsity.keras.prune_low_magnitude(small(), pruning_schedule=schedule)
    model.compile("sgd", "mse")
    (x,) = models.inputs_of(model)
    callback = tfmot.sparsity.keras.UpdatePruningStep()
    model.fit(x, np.zeros((6, CLASSES)), callbacks=[callback], epochs=2, verbose=0)
    return model, tfmot.sparsity.keras.strip_pruning(model), "sparsity.keras.strip_pruning"


def clustered():
    initial = tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS
    model = tfmot.clustering.keras.cluster_weights(small(), 4, initial)
    return (
        model,
        tfmot.clustering.keras.strip_clustering(model),
        "clustering.keras.strip_clustering",
    )


@pytest.mark.parametrize("make", [pruned, clustered])
def test_pruning_or_clustering_first(make):
    wrapped, stripped, way_out = make()
    with pytest.raises(ValueError, match=f"wrapped for .*{way_out}"):
        tt.quantize_apply(wrapped, tt.TernaryScheme())
    with pytest.raises(ValueError, match=f"wrapped for .*{way_out}"), tt.quantize_scope():
        quantize_with_tfmot(wrapped, tt.TernaryScheme())
    scheme = tt.TernaryScheme(preserve_zeros=make is pruned)
    quantized = quantize_with_tfmot(stripped, scheme)
    kernel = stripped.get_layer("first").kernel.numpy()
    wrapper = quantized.get_layer("quant_first")
    np.testing.assert_array_equal(wrapper.layer.kernel, kernel)
    values = np.unique(np.abs(tt.freeze(quantized).layers[0].kernel.numpy()[:, 0]))
    scale = wrapper.scales.numpy()[0]
    assert set(values) <= {np.float32(0), scale}
    # Trained on and in a file, pruned weights are still zeros.
    inputs = models.inputs_of(quantized, BATCH)
    train_one_step(quantized, inputs)
    frozen = tt.freeze(quantized)
    if make is pruned:
        assert (kernel == 0).mean() == 0.5
        after = wrapper.layer.kernel.numpy()
        assert np.any(after != kernel)
        assert not after[kernel == 0].any()
        assert not frozen.layers[0].packed_weights.codes()[kernel.T == 0].any()
    content = tt.convert(frozen)
    for backend in ("litert", "tf"):
        # Float32 sums of 16 terms in another order.
        assert_close(run(content, inputs, backend).values(), outputs_of(frozen, inputs), 1e-5)


# Both ends in float.


def quantized_names(model):
    return [
        layer.layer.name
        for layer in model._flatten_layers()
        if isinstance(layer, KernelQuantizeWrapper)
    ]


def test_keep_ends_counts_layers_in_nested_models():
    assert quantized_names(tt.quantize_apply(nested(), tt.TernaryScheme(keep_ends=True))) == [
        "core_dense",
        "middle_dense",
    ]
    # What is skipped is no end.
    scheme = tt.BinaryScheme(skip="^first$", keep_ends=True)
    assert quantized_names(tt.quantize_apply(nested(), scheme)) == ["middle_dense"]


def chain(*annotated):
    """Five Dense layers, a to e; `annotated` maps a name to a config or None."""
    annotations = dict(annotated)
    model = [layers.Input((40,))]
    for name in "abcde":
        layer = layers.Dense(40, activation="relu", name=name)
        if name in annotations:
            layer = tfmot_keras.quantize_annotate_layer(layer, annotations[name])
        model.append(layer)
    return models.randomize(tf_keras.Sequential(model))


def test_keep_ends_through_tfmot():
    scheme = tt.TernaryScheme(keep_ends=True)
    assert quantized_names(quantize_with_tfmot(chain(), scheme)) == ["b", "c", "d"]
    # A layer with a config of its own is the user's choice, wherever it is.
    model = chain(("a", BinaryQuantizeConfig()), ("b", None), ("c", None), ("d", None))
    assert quantized_names(tfmot_keras.quantize_apply(model, scheme)) == ["a", "c"]


def test_keep_ends_leaves_nothing():
    with pytest.raises(ValueError, match=r"more than two layers.*keep_ends=True, got 2"):
        tt.quantize_apply(small(), tt.TernaryScheme(keep_ends=True))


def test_keep_ends_of_keras_3():
    inputs = keras.Input((8,))
    inner = keras.Sequential([keras.layers.Dense(8, name=name) for name in "bc"], name="inner")
    x = inner(keras.layers.Dense(8, name="a")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, name="d")(x))
    quantized = tt.quantize_apply(model, tt.TernaryScheme(keep_ends=True))
    paths = [layer.path for layer in quantized_layers(quantized)]
    assert paths == ["inner/b", "inner/c"]


def test_a_quantized_keras_3_sequential_is_cloned_by_its_config():
    """`clone_model` rebuilds layer by layer, which the quantized model does not allow."""
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5), keras.layers.Dense(3)])
    quantized = tt.quantize_apply(model, tt.TernaryScheme(group_size=32))
    with pytest.raises(ValueError, match=r"type\(model\).from_config\(model.get_config"):
        keras.models.clone_model(quantized)
    clone = type(quantized).from_config(quantized.get_config())
    clone.set_weights(quantized.get_weights())
    x = np.random.default_rng(SEED).standard_normal((6, 8)).astype(np.float32)
    np.testing.assert_array_equal(clone(x), quantized(x))


# A choice for each layer.


def test_every_layer_its_own_config(tmp_path):
    """Some ternary, some binary, some in groups, some in float."""
    configs = {
        "b": TernaryQuantizeConfig(group_size=32),
        "c": BinaryQuantizeConfig("tensor"),
        "d": None,
    }
    model = chain(*configs.items())
    quantized = tfmot_keras.quantize_apply(model, tt.BinaryScheme(group_size=64))
    assert quantized_names(quantized) == ["b", "c", "d"]
    (x,) = inputs = models.inputs_of(quantized, BATCH)
    train_one_step(quantized, inputs)
    quantized.save(tmp_path / "m.keras")
    with tt.quantize_scope():
        again = tf_keras.models.load_model(tmp_path / "m.keras")
    # Oracle: NumPy, with each kernel replaced by codes times scales.
    y = x
    for layer in quantized.layers:
        inner = getattr(layer, "layer", layer)
        matrix = inner.kernel.numpy().T
        if layer is not inner:
            config = layer.quantize_config
            size = 40 if config.group_size in (None, "tensor") else config.group_size
            groups = -(-40 // size)
            scales = np.broadcast_to(layer.scales.numpy().reshape(-1, groups), (40, groups))
            full = np.repeat(scales, size, axis=1)[:, :40]
            matrix = np.where(matrix < 0, -full, full) * (
                np.abs(matrix) > full / 2 if config.levels == 3 else 1
            )
        y = np.maximum(y @ matrix.T + inner.bias.numpy(), 0)
    # Float32 sums of 40 terms in another order, five times.
    assert_close(outputs_of(again, inputs), [y], 1e-5)
    frozen = tt.freeze(again, "t5")
    packed = [layer for layer in frozen.layers if isinstance(layer, PackedLayer)]
    assert [(layer.name, layer.weight_format, layer.group_size) for layer in packed] == [
        ("b", "t5", 32),
        ("c", "b1", "tensor"),
        ("d", "b1", 64),
    ]
    want = outputs_of(frozen, inputs)
    content = tt.convert(frozen, batch_size=BATCH)
    for backend in ("litert", "tf"):
        # The last float layer's sums of 40 terms in another order.
        assert_close(run(content, inputs, backend).values(), want, 1e-5)
