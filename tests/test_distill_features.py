"""Feature matching of Distiller: held against NumPy and sub-models, for both Keras flavours."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from typing import Any

import causal_lms
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tfmot_ternary import apply, distill, distillation_loss, feature_matching, keras3_structure
from tfmot_ternary.scheme import TernaryScheme

FLAVOURS = ("keras", "tf_keras")
SEED = 23


@pytest.fixture(params=FLAVOURS)
def keras(request: pytest.FixtureRequest) -> Any:
    module = importlib.import_module(request.param)
    module.utils.set_random_seed(SEED)
    return module


def _classifier(keras: Any, hidden: int = 6) -> Any:
    """Functional: block_1, then a nested model with block_2 in it, then the head."""
    inner_input = keras.Input((hidden,))
    inner = keras.Model(
        inner_input,
        keras.layers.Dense(4, activation="tanh", name="block_2")(inner_input),
        name="inner",
    )
    inputs = keras.Input((8,))
    x = keras.layers.Dense(hidden, activation="tanh", name="block_1")(inputs)
    return keras.Model(inputs, keras.layers.Dense(5, name="head")(inner(x)))


def _middle(keras: Any, model: Any) -> Any:
    """A model of both blocks' outputs: the oracle, made without intercepting anything."""
    block_1 = model.get_layer("block_1").output
    return keras.Model(model.input, [block_1, model.get_layer("inner")(block_1)])


def _relative(teacher: np.ndarray, student: np.ndarray, weights: Any = None) -> float:
    teacher, student = teacher.astype(np.float64), student.astype(np.float64)
    if weights is None:
        weights = np.ones(teacher.shape[:-1])
    weights = np.broadcast_to(weights, teacher.shape[:-1])[..., np.newaxis]
    return ((student - teacher) ** 2 * weights).sum() / (teacher**2 * weights).sum()


def _data(count: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(SEED)
    return rng.normal(size=(count, 8)).astype(np.float32), rng.integers(0, 5, count)


def _evaluate(distiller: Any, x: Any, y: Any, weights: Any = None) -> dict[str, float]:
    return distiller.evaluate(
        x, y, sample_weight=weights, batch_size=len(y), verbose=0, return_dict=True
    )


def test_feature_loss_matches_numpy() -> None:
    rng = np.random.default_rng(SEED)
    teacher, student = rng.normal(size=(2, 3, 5, 7)).astype(np.float32) * 50
    weights = rng.uniform(0, 2, (3, 5)).astype(np.float32)
    for chosen in (None, weights, weights[:, :1]):
        ours = float(distillation_loss.feature_loss(teacher, student, chosen))
        # A quotient of two float32 sums of 105 terms.
        assert ours == pytest.approx(_relative(teacher, student, chosen), rel=1e-5)
        # Its size does not depend on the layer's: powers of two change no rounding.
        assert float(distillation_loss.feature_loss(teacher * 64, student * 64, chosen)) == ours
    assert float(distillation_loss.feature_loss(teacher, teacher)) == 0
    assert float(distillation_loss.feature_loss(teacher, student, np.zeros((3, 5), "f4"))) == 0


def test_weights_count_where_they_fit() -> None:
    shape = (None, 5)
    per_example = np.array([1.0, 2.0, 0.0], np.float32)
    mask = np.arange(5) < np.array([[5], [2], [3]])
    product = distillation_loss.position_weights(shape, [None, mask, per_example])
    np.testing.assert_array_equal(product, mask * per_example[:, np.newaxis])
    other_positions, per_channel = np.ones((3, 4)), np.ones((3, 5, 7))
    assert distillation_loss.position_weights(shape, [other_positions, per_channel, None]) is None
    column = distillation_loss.position_weights(shape, [per_example[:, np.newaxis]])
    np.testing.assert_array_equal(column, per_example[:, np.newaxis])


def test_step_matches_submodels(keras: Any) -> None:
    """Logs and gradients of one step, against a step written by hand on models of the layers."""
    x, y = _data()
    teacher, student = _classifier(keras), _classifier(keras)
    weights = np.random.default_rng(SEED + 1).uniform(0, 2, len(y)).astype(np.float32)
    distiller = distill.Distiller(
        student,
        teacher,
        temperature=1.0,
        alpha=0.25,
        features=("block_1", "inner/block_2"),
        feature_weight=3.0,
    )
    distiller.compile(
        keras.optimizers.SGD(0.1),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    before = student.get_weights()
    submodels = [_middle(keras, model) for model in (teacher, student)]
    features = [[np.asarray(f) for f in model(x)] for model in submodels]
    logits = [np.asarray(model(x)).astype(np.float64) for model in (teacher, student)]
    probabilities = [special.softmax(z, axis=-1) for z in logits]
    expected = {
        "distillation_loss": (special.rel_entr(*probabilities).sum(-1) * weights).mean(),
        "task_loss": -(np.log(probabilities[1][np.arange(len(y)), y]) * weights).mean(),
        "feature_loss": np.mean([_relative(a, b, weights) for a, b in zip(*features, strict=True)]),
    }
    expected["loss"] = (
        0.25 * expected["distillation_loss"]
        + 0.75 * expected["task_loss"]
        + 3 * expected["feature_loss"]
    )
    logs = _evaluate(distiller, x, y, weights)
    assert set(logs) == set(expected)
    for name, value in expected.items():
        assert logs[name] == pytest.approx(value, rel=1e-5)  # float32 sums of 16 terms of size 1

    w = tf.constant(weights)
    with tf.GradientTape() as tape:
        predictions = student(x, training=True)
        kl = tf.reduce_sum(
            probabilities[0].astype(np.float32)
            * (np.log(probabilities[0]).astype(np.float32) - tf.nn.log_softmax(predictions)),
            -1,
        )
        task = tf.nn.sparse_softmax_cross_entropy_with_logits(y, predictions)
        parts = []
        for theirs, ours in zip(features[0], submodels[1](x, training=True), strict=True):
            size = tf.reduce_sum(theirs**2 * w[:, tf.newaxis])
            parts.append(tf.reduce_sum((ours - theirs) ** 2 * w[:, tf.newaxis]) / size)
        total = tf.reduce_mean((0.25 * kl + 0.75 * task) * w) + 3 * tf.add_n(parts) / 2
    gradients = tape.gradient(total, student.trainable_variables)
    distiller.fit(x, y, sample_weight=weights, batch_size=16, verbose=0)
    for old, gradient, new in zip(before, gradients, student.get_weights(), strict=True):
        np.testing.assert_allclose(new, old - 0.1 * gradient, atol=1e-6)  # weights of size 1


@pytest.mark.parametrize("jit_compile", [False, True])
def test_student_comes_close_in_the_middle(keras: Any, jit_compile: bool) -> None:
    x, _ = _data(128)
    teacher, student = _classifier(keras), _classifier(keras)
    distiller = distill.Distiller(
        student, teacher, alpha=1.0, features={"block_1": "block_1"}, feature_weight=10.0
    )
    distiller.compile(keras.optimizers.Adam(2e-2), jit_compile=jit_compile)
    history = distiller.fit(x, np.zeros(128), epochs=8, batch_size=32, verbose=0).history
    assert history["feature_loss"][-1] < 0.3 * history["feature_loss"][0]


def test_models_stay_as_they_were(keras: Any) -> None:
    x, y = _data()
    teacher, student = _classifier(keras), _classifier(keras)
    classes = [
        [type(layer) for layer in feature_matching.layers_by_path(model).values()]
        for model in (teacher, student)
    ]
    distiller = distill.Distiller(student, teacher, alpha=1.0, features=("block_1",))
    distiller.compile("sgd")
    saved = student.get_weights()
    distiller.evaluate(x, y, verbose=0)
    capture = feature_matching.FeatureCapture(student, ["block_1", "inner"], "student")
    with pytest.raises(Exception, match="(?i)shape|incompatible"):
        capture(np.zeros((2, 9), np.float32))
    for model, expected in zip((teacher, student), classes, strict=True):
        layers = feature_matching.layers_by_path(model).values()
        assert [type(layer) for layer in layers] == expected
    for a, b in zip(saved, student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not feature_matching._interceptions


def test_paths_are_those_of_keras3_models() -> None:
    model = causal_lms.gemma()
    ours = feature_matching.layers_by_path(model)
    assert dict(keras3_structure.nested_layers(model)).items() <= ours.items()


def test_masks_and_sample_weights_leave_padding_out(keras: Any) -> None:
    def language_model() -> Any:
        tokens = keras.Input((6,), dtype="int32")
        x = keras.layers.Embedding(20, 8, mask_zero=True, name="embedding")(tokens)
        x = keras.layers.Dense(8, activation="tanh", name="block")(x)
        return keras.Model(tokens, keras.layers.Dense(20)(x))

    rng = np.random.default_rng(SEED)
    tokens = rng.integers(1, 20, (4, 6))
    tokens[:, 4:] = 0
    weight = rng.uniform(0.5, 2, (4, 6)).astype(np.float32)
    teacher, student = language_model(), language_model()
    distiller = distill.Distiller(student, teacher, alpha=1.0, features=("block",))
    distiller.compile("sgd", weighted_metrics=[])
    features = [
        np.asarray(keras.Model(m.input, m.get_layer("block").output)(tokens))
        for m in (teacher, student)
    ]
    mask = (tokens != 0).astype(np.float64)
    # Quotients of float32 sums of some hundred terms.
    logs = _evaluate(distiller, tokens, tokens)
    assert logs["feature_loss"] == pytest.approx(_relative(*features, mask), rel=1e-5)
    logs = _evaluate(distiller, tokens, tokens, weight)
    assert logs["feature_loss"] == pytest.approx(_relative(*features, mask * weight), rel=1e-5)


def test_shared_layer_is_compared_call_by_call(keras: Any) -> None:
    def model(calls: int) -> Any:
        inputs = keras.Input((8,))
        shared, x = keras.layers.Dense(8, activation="tanh", name="shared"), inputs
        for _ in range(calls):
            x = shared(x)
        return keras.Model(inputs, keras.layers.Dense(5)(x))

    x, y = _data()
    teacher, student = model(2), model(2)
    distiller = distill.Distiller(student, teacher, alpha=1.0, features=("shared",))
    distiller.compile("sgd")
    calls = []
    for m in (teacher, student):
        layer = m.get_layer("shared")
        first = layer(tf.constant(x))
        calls.append([np.asarray(first), np.asarray(layer(first))])
    expected = np.mean([_relative(a, b) for a, b in zip(*calls, strict=True)])
    assert _evaluate(distiller, x, y)["feature_loss"] == pytest.approx(expected, rel=1e-5)

    distiller = distill.Distiller(model(1), teacher, alpha=1.0, features=("shared",))
    distiller.compile("sgd")
    with pytest.raises(ValueError, match="called equally often, got 1 and 2 calls"):
        distiller.evaluate(x, y, verbose=0)


def test_subclassed_model(keras: Any) -> None:
    """Its layers are no nodes of a graph; the oracle calls them one by one."""

    class Block(keras.layers.Layer):
        def __init__(self, name: str):
            super().__init__(name=name)
            self.inner = keras.layers.Dense(8, activation="tanh", name="dense")

        def call(self, x: Any) -> Any:
            return x + self.inner(x)

    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Block("first"), Block("second")
            self.head = keras.layers.Dense(5, name="head")

        def call(self, x: Any) -> Any:
            return self.head(self.second(self.first(x)))

    x, y = _data()
    teacher, student = Model(), Model()
    distiller = distill.Distiller(student, teacher, alpha=1.0, features=("first", "second/dense"))
    distiller.compile("sgd")
    history = distiller.fit(x, y, batch_size=16, verbose=0)  # the student has no weights before
    assert history.history["feature_loss"][0] > 0
    values = []
    for m in (teacher, student):
        first = m.first(tf.constant(x))
        values.append([np.asarray(first), np.asarray(m.second.inner(first))])
    expected = np.mean([_relative(a, b) for a, b in zip(*values, strict=True)])
    assert _evaluate(distiller, x, y)["feature_loss"] == pytest.approx(expected, rel=1e-5)


def test_layers_wrapped_by_tfmot_keep_their_names() -> None:
    keras = importlib.import_module("tf_keras")
    keras.utils.set_random_seed(SEED)
    teacher = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(6, activation="tanh", name="block"),
            keras.layers.Dense(5, name="head"),
        ]
    )
    student = apply.quantize_apply(teacher, TernaryScheme())
    x, y = _data()
    for name in ("block", "quant_block"):
        distiller = distill.Distiller(student, teacher, alpha=1.0, features={name: "block"})
        distiller.compile("sgd")
        logs = _evaluate(distiller, x, y)
        wrapper = student.get_layer("quant_block")
        expected = _relative(np.asarray(teacher.layers[0](x)), np.asarray(wrapper(x)))
        assert logs["feature_loss"] == pytest.approx(expected, rel=1e-5)
        assert expected > 0.01  # the kernel is ternary


def _gemma() -> tuple[Any, Any, Any]:
    """A Gemma, its ternary student, and a batch (x, y, weights)."""
    teacher = causal_lms.gemma(SEED)
    student = apply.quantize_apply(teacher, TernaryScheme(group_size=32))
    return teacher, student, teacher.preprocessor(list(causal_lms.PROMPTS))


def test_blocks_of_a_kerashub_model() -> None:
    keras = importlib.import_module("keras")
    teacher, student, (x, y, weights) = _gemma()
    names = [f"{teacher.backbone.name}/decoder_block_{i}" for i in range(2)]
    distiller = distill.Distiller(student, teacher, alpha=1.0, from_logits=True, features=names)
    distiller.compile("sgd")
    logs = distiller.test_on_batch(x, y, sample_weight=weights, return_dict=True)
    blocks = [
        keras.Model(
            m.backbone.input, [m.backbone.get_layer(f"decoder_block_{i}").output for i in range(2)]
        )({k: x[k] for k in ("token_ids", "padding_mask")})
        for m in (teacher, student)
    ]
    expected = np.mean(
        [
            _relative(np.asarray(a), np.asarray(b), np.asarray(weights))
            for a, b in zip(*blocks, strict=True)
        ]
    )
    # Float32 through two blocks of width 64, in a graph and op by op.
    assert float(logs["feature_loss"]) == pytest.approx(expected, rel=1e-4)


def test_layers_inside_a_block_under_xla() -> None:
    keras = importlib.import_module("keras")
    teacher, student, (x, y, weights) = _gemma()
    path = f"{teacher.backbone.name}/decoder_block_1/attention"
    distiller = distill.Distiller(
        student, teacher, alpha=0.9, from_logits=True, features=(path,), feature_weight=5.0
    )
    distiller.compile(
        keras.optimizers.Adam(5e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    # The log of train_on_batch is the mean since the first step.
    losses = []
    for _ in range(5):
        logs = distiller.train_on_batch(x, y, sample_weight=weights, return_dict=True)
        losses.append(float(logs["feature_loss"]))
    assert losses[-1] < 0.9 * losses[0]


def test_wrong_features_are_named(keras: Any) -> None:
    x, y = _data()
    teacher, student = _classifier(keras), _classifier(keras, hidden=7)
    with pytest.raises(ValueError, match=r"layer of the student, got 'blok_1'; .*'block_1'"):
        distill.Distiller(student, teacher, features=("blok_1",))
    with pytest.raises(ValueError, match=r"of the teacher, got 'block_2'; .*\['inner/block_2'"):
        distill.Distiller(student, teacher, features={"inner": "block_2"})
    with pytest.raises(TypeError, match="names of layers, got 3"):
        distill.Distiller(student, teacher, features=[3])
    with pytest.raises(ValueError, match="finite feature_weight >= 0, got -1"):
        distill.Distiller(student, teacher, features=("inner",), feature_weight=-1)

    def run(features: Any, student: Any = student) -> None:
        distiller = distill.Distiller(student, teacher, alpha=1.0, features=features)
        distiller.compile("sgd")
        distiller.evaluate(x, y, verbose=0)

    with pytest.raises(ValueError, match=r"of one shape, got \(.*7\) and \(.*6\); name layers"):
        run("block_1")
    inputs = keras.Input((8,))
    hidden = keras.layers.Reshape((2, 4))(inputs)
    lstm = keras.layers.LSTM(4, name="lstm", return_state=True)
    odd = keras.Model(inputs, keras.layers.Dense(5)(lstm(hidden)[0]))
    odd.unused = keras.layers.Dense(4, name="unused")
    odd.unused.build((None, 4))
    with pytest.raises(
        ValueError, match="'lstm' of the student to give one tensor .* got (list|tu)"
    ):
        run({"lstm": "inner"}, odd)
    with pytest.raises(ValueError, match="'unused' of the student to be called .* was not called"):
        run({"unused": "inner"}, odd)

    class Loop(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.inner = keras.layers.Dense(8, name="looped")

        def build(self, shape: Any) -> None:
            self.inner.build(shape)
            self.built = True

        def call(self, x: Any) -> Any:
            body = lambda i, x: (i + 1, self.inner(x))  # noqa: E731
            return tf.while_loop(lambda i, x: i < 2, body, (0, x))[1]

    looped = keras.Sequential([keras.Input((8,)), Loop(), keras.layers.Dense(5)])
    path = next(p for p in feature_matching.layers_by_path(looped) if p.endswith("looped"))
    with pytest.raises(ValueError, match="runs inside a loop"):
        run({path: "inner"}, looped)


def test_replicas_make_the_same_step() -> None:
    """Two logical CPUs against one, in a process of its own: TensorFlow fixes its devices early."""
    code = """
        import importlib, contextlib, sys
        import numpy as np, tensorflow as tf
        device = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            device, [tf.config.LogicalDeviceConfiguration()] * 2)
        from tfmot_ternary import distill
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(32, 8)).astype("float32"), rng.integers(0, 5, 32)
        for name in ("keras", "tf_keras"):
            keras = importlib.import_module(name)
            results = []
            for strategy in (None, tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
                keras.utils.set_random_seed(0)
                with strategy.scope() if strategy else contextlib.nullcontext():
                    models = [keras.Sequential([keras.Input((8,)),
                        keras.layers.Dense(8, name="a"), keras.layers.BatchNormalization(),
                        keras.layers.Dense(5, name="b")]) for _ in range(2)]
                    models[0].layers[1].trainable = False
                    distiller = distill.Distiller(*models, alpha=0.5, features=("a",))
                    distiller.compile(keras.optimizers.SGD(0.1),
                        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
                # The same half in both replicas: a quotient of sums over 8 is that over 16.
                twice = np.concatenate([x[:8], x[:8]])
                logs = distiller.fit(twice, np.concatenate([y[:8], y[:8]]), batch_size=16,
                    epochs=2, shuffle=False, verbose=0).history
                results.append((logs, models[0].get_weights()))
            for key, values in results[0][0].items():
                np.testing.assert_allclose(results[1][0][key], values, rtol=1e-5)
            for a, b in zip(results[0][1], results[1][1]):
                np.testing.assert_allclose(a, b, atol=1e-6)
        print("the same")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert done.stdout.strip().endswith("the same"), done.stderr[-3000:]
