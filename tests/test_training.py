"""Training of quantized models: fit and custom loops, XLA clusters, devices, resuming, clipping,
and the gradual way from float to quantized."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tfmot_ternary as tt
from tfmot_ternary import quantizers, straight_through
from tfmot_ternary.kernel_layout import KernelLayout
from tfmot_ternary.packing import expand_scales, scale_shape

FLAVOURS = ("tf_keras", "keras")
SEED = 23
RATE = 0.05
# Its kernel is above the size from which the straight-through estimator becomes XLA clusters.
WIDTH = 256
assert WIDTH * WIDTH >= straight_through._SMALLEST_FUSED


@pytest.fixture(params=FLAVOURS)
def keras(request: pytest.FixtureRequest) -> Any:
    module = importlib.import_module(request.param)
    module.utils.set_random_seed(SEED)
    return module


def float_model(keras: Any, width: int = WIDTH) -> Any:
    return keras.Sequential(
        [
            keras.Input((width,)),
            keras.layers.Dense(width, activation="tanh", name="hidden"),
            keras.layers.Dense(3, name="head"),
        ]
    )


def data(width: int = WIDTH, rows: int = 32) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(SEED)
    x = generator.standard_normal((rows, width)).astype(np.float32)
    return x, x[:, :3] * 0.5


def kernels_and_scales(model: Any) -> list[tuple[Any, Any]]:
    """Variables (kernel, scales) of each quantized layer."""
    pairs = []
    for layer in model.layers:
        if hasattr(layer, "kernel_scales"):  # tf_keras
            pairs += [(layer.kernel_named(key), var) for key, var in layer.kernel_scales.items()]
        elif hasattr(layer, "kernel_scale"):
            pairs.append((layer.float_weights, layer.kernel_scale))
    return pairs


def codes_of(kernel: np.ndarray, scales: np.ndarray, group_size: Any) -> tuple[Any, Any]:
    """Codes and scales of every weight of a ternary Dense kernel, in its own order."""
    full = np.broadcast_to(
        expand_scales(scales, kernel.shape[1], kernel.shape[0], group_size), kernel.T.shape
    ).T
    return np.sign(kernel) * (np.abs(kernel) > full / 2), full


def sum_per_scale(product: np.ndarray, group_size: Any) -> np.ndarray:
    """Sums of a [k, n] array over the weights that share a scale."""
    k, n = product.shape
    if group_size == "tensor":
        return product.sum(keepdims=True).reshape(1)
    if group_size is None:
        return product.sum(axis=0)
    starts = range(0, k, group_size)
    return np.stack([product[s : s + group_size].sum(axis=0) for s in starts], axis=1).reshape(
        n, len(starts)
    )


def float_gradients(model: Any, kernels: list[np.ndarray], x: Any, y: Any) -> list[np.ndarray]:
    """Gradients of the mean squared error to the kernels of a float model that has `kernels`."""
    layers = [layer for layer in model.layers if layer.weights]
    for layer, kernel in zip(layers, kernels, strict=True):
        layer.kernel.assign(kernel)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x) - y))
    return [np.asarray(g) for g in tape.gradient(loss, [tensor(v.kernel) for v in layers])]


def tensor(variable: Any) -> Any:
    """The tf.Variable inside a Keras 3 variable; a tf.Variable itself."""
    return variable if isinstance(variable, tf.Variable) else variable.value


# -- one step, and loops of them


@pytest.mark.parametrize(
    ("group_size", "width"), [(None, WIDTH), ("tensor", WIDTH), (64, WIDTH), (128, 320)]
)
def test_a_step_of_fit_is_the_rule(keras: Any, group_size: Any, width: int) -> None:
    """Against the float model with replaced weights, whose gradient stock TensorFlow computes."""
    original, (x, y) = float_model(keras, width), data(width)
    model = tt.quantize_apply(original, tt.TernaryScheme(group_size))
    before = [(k.numpy(), s.numpy()) for k, s in kernels_and_scales(model)]
    coded = [codes_of(kernel, scales, group_size) for kernel, scales in before]
    gradients = float_gradients(original, [codes * full for codes, full in coded], x, y)
    model.compile(keras.optimizers.SGD(RATE), "mse")
    model.fit(x, y, batch_size=len(x), verbose=0)
    for (kernel, scales), (old, old_scales), (codes, _), dw in zip(
        kernels_and_scales(model), before, coded, gradients, strict=True
    ):
        # Sums of at most 320 float32 products near 0.01, in another order; a step of 0.05 times it.
        np.testing.assert_allclose(kernel.numpy(), old - RATE * dw, atol=1e-6)
        da = sum_per_scale(dw.astype(np.float64) * codes, group_size)
        # Sums of up to 65536 of those.
        np.testing.assert_allclose(scales.numpy(), np.maximum(old_scales - RATE * da, 0), atol=2e-5)


def test_a_custom_loop_trains_as_fit_does(keras: Any) -> None:
    original, (x, y) = float_model(keras), data()
    scheme = tt.TernaryScheme(64)
    fitted, looped = (tt.quantize_apply(original, scheme) for _ in range(2))
    fitted.compile(keras.optimizers.Adam(1e-3), "mse")
    history = fitted.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0).history["loss"]
    optimizer, loss = keras.optimizers.Adam(1e-3), keras.losses.MeanSquaredError()

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            value = loss(y, looped(x, training=True))
        gradients = tape.gradient(value, looped.trainable_weights)
        optimizer.apply_gradients(zip(gradients, looped.trainable_weights, strict=True))
        return value

    losses = [[float(step(x[i : i + 16], y[i : i + 16])) for i in (0, 16)] for _ in range(3)]
    # Adam divides by gradients; XLA and stock operations round them in another way.
    np.testing.assert_allclose(np.mean(losses, axis=1), history, rtol=1e-4)
    assert history[-1] < history[0]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(keras: Any, policy: str) -> None:
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = tt.quantize_apply(float_model(keras), tt.TernaryScheme(64))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    x, y = data()
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    losses = model.fit(x, y, batch_size=16, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]
    assert all(scales.dtype == "float32" for _, scales in kernels_and_scales(model))


def test_keras_compiles_the_whole_step(keras: Any) -> None:
    """jit_compile=True: our clusters are inlined into Keras' own. False: they stand alone."""
    original, (x, y) = float_model(keras), data()
    losses = []
    for jit in (True, False):
        model = tt.quantize_apply(original, tt.TernaryScheme(64))
        model.compile(keras.optimizers.SGD(RATE), "mse", jit_compile=jit)
        losses.append(model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0).history)
    # The same float32 arithmetic in another order.
    np.testing.assert_allclose(losses[0]["loss"], losses[1]["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    "clipping", [{"clipnorm": 0.01}, {"global_clipnorm": 0.01}, {"clipvalue": 1e-3}]
)
def test_gradient_clipping_counts_the_scales(keras: Any, clipping: dict[str, float]) -> None:
    model, (x, y) = tt.quantize_apply(float_model(keras), tt.TernaryScheme()), data()
    weights = model.trainable_weights
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
    gradients = [
        np.asarray(gradient, np.float64)
        for gradient in tape.gradient(loss, [tensor(weight) for weight in weights])
    ]
    limit = next(iter(clipping.values()))
    norms = [np.sqrt((gradient**2).sum()) for gradient in gradients]
    if "clipvalue" in clipping:
        clipped = [np.clip(gradient, -limit, limit) for gradient in gradients]
    else:
        if "global_clipnorm" in clipping:
            norms = [np.sqrt(sum(norm**2 for norm in norms))] * len(norms)
        clipped = [g * min(1, limit / norm) for g, norm in zip(gradients, norms, strict=True)]
    scales = {id(variable) for _, variable in kernels_and_scales(model)}
    changed = [
        not np.allclose(g, c)
        for w, g, c in zip(weights, gradients, clipped, strict=True)
        if id(w) in scales
    ]
    assert any(changed)  # else the scales would show nothing
    before = [w.numpy() for w in weights]
    model.compile(keras.optimizers.SGD(1.0, **clipping), "mse")
    model.fit(x, y, batch_size=len(x), verbose=0)
    for weight, old, gradient in zip(weights, before, clipped, strict=True):
        want = old - gradient
        if id(weight) in scales:
            want = np.maximum(want, 0)
        # Steps of up to 0.01 whose gradients are float32 sums in another order.
        np.testing.assert_allclose(weight.numpy(), want, atol=1e-5)


# -- the clusters


LAYOUTS = [
    KernelLayout.dense((WIDTH, 260)),
    KernelLayout.dense((WIDTH + 5, 260)),  # the last group is short
    KernelLayout.dense((20, 4000)),  # shorter than a group
    KernelLayout.conv((3, 3, 64, 120)),
    KernelLayout.einsum("btd,ndh->btnh", (4, 250, 70), 3),  # n and k interleaved
]


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("group_size", [None, "tensor", 32])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: str(layout.kernel_shape))
def test_clusters_compute_what_operations_compute(
    layout: KernelLayout, group_size: Any, levels: int
) -> None:
    generator = np.random.default_rng(SEED)
    shape = layout.kernel_shape
    kernel = tf.Variable(
        generator.standard_normal(shape).astype(np.float32) * (generator.random(shape) > 0.2)
    )
    scales = tf.Variable(
        generator.uniform(0.3, 2, scale_shape(layout.n, layout.k, group_size)).astype(np.float32)
    )
    dy = tf.constant(generator.standard_normal(shape).astype(np.float32))
    for settings in ({}, {"clip": 1.0, "preserve_zeros": levels == 3, "fraction": 0.25}):

        def run(settings: Any = settings) -> Any:
            with tf.GradientTape() as tape:
                value = quantizers.quantize_kernel(
                    kernel, scales, layout, levels, group_size, **settings
                )
                loss = tf.reduce_sum(value * dy)
            return value, *tape.gradient(loss, [kernel, scales])

        step = tf.function(run)
        for eager, fused, what in zip(run(), step(), ("value", "dw", "da"), strict=True):
            # The value of a quantized kernel and a copied gradient do not round; a blend of two
            # products may be fused; sums of up to 70000 terms near 1 have another order.
            tolerance = (
                {"value": 1e-6, "dw": 1e-6, "da": 1e-2}[what] if settings or what == "da" else 0
            )
            np.testing.assert_allclose(fused, eager, rtol=0, atol=tolerance)
        graph = step.get_concrete_function()
        assert clusters(graph) == (4 if settings else 2) - bool(settings)
        # oneDNN's transpose of the scales takes as long as a pass over the kernel.
        transposes = [op.name for op in graph.graph.get_operations() if op.type == "Transpose"]
        assert not transposes or layout.n_axes[0] < layout.k_axes[-1], transposes


def clusters(function: Any) -> int:
    """Number of functions that XLA must compile, among those that a concrete function calls."""
    graph = function.graph.as_graph_def()
    library = {f.signature.name: f for f in graph.library.function}
    called: set[str] = set()
    nodes = list(graph.node)
    while nodes:
        names = {attr.func.name for attr in nodes.pop().attr.values()} & set(library) - called
        called |= names
        nodes += [node for name in names for node in library[name].node_def]
    return sum(library[name].attr["_XlaMustCompile"].b for name in called)


def test_graphs_without_gradients_hold_no_clusters(keras: Any, tmp_path: Any) -> None:
    """Exports run where XLA is not, and converters need not know about it."""
    model, (x, y) = tt.quantize_apply(float_model(keras), tt.TernaryScheme(64)), data()
    model.compile(keras.optimizers.SGD(RATE), "mse", jit_compile=False)
    model.fit(x, y, verbose=0)
    inference = tf.function(lambda x: model(x)).get_concrete_function(tf.TensorSpec(x.shape))
    assert clusters(inference) == 0
    export = getattr(model, "export", None) or (lambda path: tf.saved_model.save(model, path))
    export(str(tmp_path / "saved"))
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    serve = loaded.signatures["serving_default"]
    assert clusters(serve) == 0
    (result,) = serve(tf.constant(x)).values()
    tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved")).convert()  # or it raises
    # The same operations on the same machine; Keras' predict may take other batches.
    np.testing.assert_allclose(result, model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


# -- distribution


def test_two_devices_train_as_one() -> None:
    """In a process of its own: logical devices have to be there before TensorFlow starts."""
    script = textwrap.dedent(
        """
        import json
        import numpy as np
        import tensorflow as tf
        import tf_keras

        cpu = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
        import tfmot_ternary as tt

        x = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
        y = x[:, :3] * 0.5

        def losses(strategy, **settings):
            with strategy.scope():
                tf_keras.utils.set_random_seed(1)
                model = tf_keras.Sequential([
                    tf_keras.Input((256,)),
                    tf_keras.layers.Dense(256, activation="tanh"),
                    tf_keras.layers.Dense(3),
                ])
                model = tt.quantize_apply(model, tt.TernaryScheme(64))
                model.compile(tf_keras.optimizers.Adam(1e-3), "mse")
            callbacks = [tt.GradualQuantization(**settings)] if settings else []
            fit = model.fit(x, y, batch_size=32, epochs=4, shuffle=False, verbose=0,
                            callbacks=callbacks)
            scales = [w.numpy().tolist() for w in model.weights if "kernel_scale" in w.name]
            return fit.history["loss"], scales

        one, two = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        result = {"replicas": two.num_replicas_in_sync}
        result["plain"] = losses(one), losses(two)
        result["gradual"] = losses(one, steps=6), losses(two, steps=6)
        print(json.dumps(result))
        """
    )
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert output.returncode == 0, output.stderr[-3000:]
    result = json.loads(output.stdout.splitlines()[-1])
    assert result["replicas"] == 2
    for kind in ("plain", "gradual"):
        (losses, scales), (mirrored, mirrored_scales) = result[kind]
        # Gradients are sums of two halves; Adam divides by them, and a weight at a threshold may
        # take another code for it.
        np.testing.assert_allclose(mirrored, losses, rtol=1e-3)
        assert losses[-1] < losses[0]
        assert len(scales) == 2
        for a, b in zip(scales, mirrored_scales, strict=True):
            np.testing.assert_allclose(b, a, atol=1e-3)
    assert result["plain"][0][0][0] != pytest.approx(result["gradual"][0][0][0], rel=1e-2)


# -- checkpoints and resuming


def compiled(keras: Any, original: Any) -> Any:
    model = tt.quantize_apply(original, tt.TernaryScheme(64))
    model.compile(keras.optimizers.Adam(1e-3, clipnorm=1.0), "mse")
    return model


def train(model: Any, begin: int, end: int, *callbacks: Any) -> list[float]:
    """Losses of epochs `begin` to `end`, four steps each, with f at 1 from the tenth step on."""
    x, y = data()
    return model.fit(
        x,
        y,
        batch_size=8,
        initial_epoch=begin,
        epochs=end,
        shuffle=False,
        verbose=0,
        callbacks=[tt.GradualQuantization(8, begin=2), *callbacks],
    ).history["loss"]


def test_resumed_training_has_the_same_losses(keras: Any, tmp_path: Any) -> None:
    original = float_model(keras)
    want = train(compiled(keras, original), 0, 4)
    assert len(want) == 4

    # Keras' own file, with the state of the optimizer.
    model = compiled(keras, original)
    first = train(model, 0, 2)
    model.save(tmp_path / "model.keras")
    with tt.quantize_scope():
        loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded is not model
    # The very same operations on the same values.
    np.testing.assert_allclose([*first, *train(loaded, 2, 4)], want, rtol=1e-6)

    # TensorFlow's checkpoint, into a model with other weights.
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    path = checkpoint.save(str(tmp_path / "checkpoint"))
    other = compiled(keras, float_model(keras))
    other.optimizer.build(other.trainable_variables)
    tf.train.Checkpoint(model=other, optimizer=other.optimizer).restore(path)
    np.testing.assert_allclose(train(other, 2, 4), want[2:], rtol=1e-6)


def test_backup_and_restore_after_a_crash(keras: Any, tmp_path: Any) -> None:
    original, (x, y) = float_model(keras), data()
    want = train(compiled(keras, original), 0, 4)

    class Crash(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise RuntimeError("the power fails")

    def backup() -> Any:
        return keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))

    broken = compiled(keras, original)
    with pytest.raises(RuntimeError, match="power fails"):
        train(broken, 0, 4, backup(), Crash())
    resumed = compiled(keras, float_model(keras))
    np.testing.assert_allclose(train(resumed, 0, 4, backup()), want[2:], rtol=1e-6)
    # The crash kept on_train_end from running: training goes on, quantized, without the callback.
    assert fraction_seen(lambda: broken.train_on_batch(x, y)) == {None}


# -- from float to quantized, gradually


def holders(model: Any) -> list[Any]:
    """Where the callback puts f."""
    return [
        layer._weight_vars[0][1] if hasattr(layer, "_weight_vars") else layer
        for layer in model.layers
        if hasattr(layer, "kernel_scales") or hasattr(layer, "kernel_scale")
    ]


def fraction_seen(action: Any) -> set[Any]:
    """What `quantize_kernel` is given for f while something is traced or run eagerly."""
    seen = set()
    real = quantizers.quantize_kernel

    def spy(*args: Any, **kwargs: Any) -> Any:
        given = kwargs.get("fraction", args[7] if len(args) > 7 else None)
        seen.add(None if given is None else "f")
        return real(*args, **kwargs)

    quantizers.quantize_kernel = spy
    try:
        action()
    finally:
        quantizers.quantize_kernel = real
    return seen


@pytest.mark.parametrize("f", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("levels", [2, 3])
def test_blend_against_numpy(levels: int, f: float) -> None:
    generator = np.random.default_rng(SEED)
    w = generator.standard_normal((9, 40)).astype(np.float32)
    w[0, 0] = 0
    a = generator.uniform(0.5, 1.5, (9, 2)).astype(np.float32)
    dy = generator.standard_normal(w.shape).astype(np.float32)
    layout = KernelLayout((9, 40), n_axes=(0,), k_axes=(1,))
    full = np.repeat(a, 32, axis=1)[:, :40]
    codes = np.where(w >= 0, 1, -1) if levels == 2 else np.sign(w) * (np.abs(w) > full / 2)
    variables = tf.Variable(w), tf.Variable(a)
    with tf.GradientTape() as tape:
        value = quantizers.quantize_kernel(
            *variables, layout, levels, 32, fraction=tf.Variable(f, trainable=False)
        )
        loss = tf.reduce_sum(value * dy)
    dw, da = tape.gradient(loss, variables)
    # Products and sums by 0 and 1 are exact; else two float32 products and their sum near 1.
    np.testing.assert_allclose(value, (1 - f) * w + f * codes * full, atol=0 if f != 0.5 else 3e-7)
    np.testing.assert_array_equal(dw, dy)
    product = (dy * codes).astype(np.float64)
    want = f * np.stack([product[:, :32].sum(1), product[:, 32:].sum(1)], axis=1)
    np.testing.assert_allclose(da, want, atol=1e-5)  # sums of 32 terms near 1
    # What is clipped is the gradient through the quantizer only; zeros stay where they are.
    with tf.GradientTape() as tape:
        value = quantizers.quantize_kernel(
            *variables, layout, levels, 32, clip=1.0, preserve_zeros=True, fraction=f
        )
        loss = tf.reduce_sum(value * dy)
    want = np.where(np.abs(w) <= 1, dy, (1 - f) * dy) * (w != 0)
    np.testing.assert_allclose(tape.gradient(loss, variables[0]), want, rtol=1e-6)


def test_gradual_training_sees_the_blend(keras: Any) -> None:
    """Each step's loss, taken before the update, is that of a float model with blended kernels."""
    original, (x, y) = float_model(keras), data()
    model = tt.quantize_apply(original, tt.TernaryScheme(64))
    model.compile(keras.optimizers.SGD(RATE), "mse")
    callback = tt.GradualQuantization(4, begin=2)
    assert isinstance(callback, keras.callbacks.Callback)
    losses, expected, validated, quantized, fractions = [], [], [], [], []

    def loss_of(kernels: list[np.ndarray]) -> float:
        hidden, head = (kernel.astype(np.float64) for kernel in kernels)
        biases = [w.numpy() for w in model.weights if "bias" in w.name]
        return float(((np.tanh(x @ hidden + biases[0]) @ head + biases[1] - y) ** 2).mean())

    def kernels(f: float) -> list[np.ndarray]:
        found = []
        for kernel, scales in kernels_and_scales(model):
            codes, full = codes_of(kernel.numpy(), scales.numpy(), 64)
            found.append((1 - f) * kernel.numpy() + f * codes * full)
        return found

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            fractions.append(float(callback.fraction))
            expected.append(loss_of(kernels(fractions[-1])))

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            losses.append(logs["loss"])
            validated.append(logs["val_loss"])
            quantized.append(loss_of(kernels(1)))
            assert all(holder.quantized_fraction is None for holder in holders(model))

    model.fit(
        x,
        y,
        batch_size=32,
        epochs=8,
        verbose=0,
        validation_data=(x, y),
        callbacks=[callback, Watch()],
    )
    assert fractions == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    # float32 sums of 256 products.
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_allclose(validated, quantized, rtol=1e-4)  # validation is of q(w)
    assert abs(losses[0] - quantized[0]) > 1e-2 * losses[0]


def test_the_model_is_quantized_after_training(keras: Any) -> None:
    model, (x, y) = tt.quantize_apply(float_model(keras), tt.TernaryScheme()), data()
    model.compile(keras.optimizers.SGD(RATE), "mse")
    model.fit(x, y, verbose=0)  # traced before without f
    variables = [w.name for w in model.weights]

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = True

    early = tt.GradualQuantization(100)
    seen = fraction_seen(
        lambda: model.fit(x, y, batch_size=4, verbose=0, callbacks=[early, Stop()])
    )
    assert seen == {"f"}
    assert float(early.fraction) == pytest.approx(0.01)  # one step came before; f stopped there
    assert [w.name for w in model.weights] == variables
    assert fraction_seen(lambda: model.fit(x, y, verbose=0)) == {None}
    for layer, (kernel, scales) in zip(model.layers[-2:], kernels_and_scales(model), strict=True):
        codes, full = codes_of(kernel.numpy(), scales.numpy(), None)
        rows = np.eye(WIDTH, dtype=np.float32)
        inner = getattr(layer, "layer", layer)
        if inner.name == "head":  # no activation: the layer's output on unit vectors is its kernel
            np.testing.assert_allclose(layer(rows) - inner.bias, codes * full, atol=1e-6)


def test_an_exception_in_a_step_leaves_the_model_quantized(keras: Any) -> None:
    model, (x, y) = tt.quantize_apply(float_model(keras, 8), tt.TernaryScheme()), data(8)
    model.compile(keras.optimizers.SGD(RATE), "mse")

    class Crash(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            raise KeyboardInterrupt

    for _ in range(2):  # the second time over what the first left
        with pytest.raises(KeyboardInterrupt):
            model.fit(x, y, verbose=0, callbacks=[tt.GradualQuantization(10), Crash()])
        assert all(holder.quantized_fraction is None for holder in holders(model))
    assert fraction_seen(lambda: model.train_on_batch(x, y)) == {None}


def test_gradual_in_a_distiller(keras: Any) -> None:
    teacher, (x, _) = float_model(keras), data()
    student = tt.quantize_apply(teacher, tt.TernaryScheme())
    distiller = tt.Distiller(student, teacher, alpha=1.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    callback = tt.GradualQuantization(4)
    losses = distiller.fit(
        x, np.zeros(len(x)), batch_size=len(x), epochs=6, verbose=0, callbacks=[callback]
    ).history["loss"]
    # Nothing is learned at rate 0: at f = 0 the student is its teacher, then it leaves it.
    assert losses[0] == pytest.approx(0, abs=1e-6)
    assert losses[0] < losses[1] < losses[4]
    assert losses[4] == pytest.approx(losses[5], rel=1e-6)
    quantized = distiller.evaluate(x, np.zeros(len(x)), verbose=0, return_dict=True)["loss"]
    assert losses[5] == pytest.approx(quantized, rel=1e-4)


def test_gradual_in_a_custom_loop(keras: Any) -> None:
    model, (x, y) = tt.quantize_apply(float_model(keras), tt.TernaryScheme()), data()
    optimizer = keras.optimizers.SGD(0.0)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(tf.square(model(x, training=True) - y))
        gradients = tape.gradient(value, model.trainable_weights)
        optimizer.apply_gradients(zip(gradients, model.trainable_weights, strict=True))
        return value

    callback = tt.GradualQuantization(2)
    blended = callback.blended(step, model, optimizer)
    losses = [float(blended(x, y)) for _ in range(4)]
    quantized = float(tf.reduce_mean(tf.square(model(x) - y)))
    assert len({round(loss, 5) for loss in losses[:3]}) == 3
    assert losses[2] == losses[3] == pytest.approx(quantized, rel=1e-5)
    assert float(callback.fraction) == 1


def test_gradual_errors(keras: Any) -> None:
    for arguments in ({"steps": 0}, {"steps": 3, "begin": -1}):
        with pytest.raises(ValueError, match="steps >= 1 and begin >= 0, got"):
            tt.GradualQuantization(**arguments)
    model, (x, y) = float_model(keras, 8), data(8)
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="quantize_apply"):
        model.fit(x, y, verbose=0, callbacks=[tt.GradualQuantization(10)])


@pytest.mark.parametrize("levels", [3, 2])
@pytest.mark.parametrize("k", [12, 70_000])  # 70,000 weights: the fused form
def test_gradients_of_a_blend(levels: int, k: int) -> None:
    """(1 - f) w + f q(w): all of the gradient goes to w, the share f of it to the scale."""
    rng = np.random.default_rng(SEED)
    w = rng.standard_normal((1, k)).astype(np.float32)
    dy = rng.standard_normal((1, k)).astype(np.float32)
    scale, fraction = np.full((1, 1), 0.8, np.float32), np.float32(0.25)
    magnitude = np.abs(w) > 0.4
    code = np.where(w >= 0, 1, -1) if levels == 2 else np.sign(w) * magnitude

    @tf.function
    def run() -> Any:
        w_, scale_ = tf.constant(w), tf.constant(scale)
        with tf.GradientTape() as tape:
            tape.watch([w_, scale_])
            value = straight_through.straight_through(w_, scale_, levels, fraction=fraction)
        return value, *tape.gradient(value, [w_, scale_], tf.constant(dy))

    value, dw, da = (x.numpy() for x in run())
    np.testing.assert_allclose(value, 0.75 * w + 0.25 * code * scale, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(dw, dy)
    # A float32 sum of up to 70,000 terms of size 1 in another order.
    np.testing.assert_allclose(da, [[0.25 * (dy * code).sum(dtype=np.float64)]], atol=1e-2)
