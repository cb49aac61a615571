"""The three float models of the quality study, with their data.

All are small enough for two cores, really trained, and judged on data that training never saw: a
CNN on handwritten digits, the demo's vision-language model, and a GPT-2 on English text.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import pathlib
from typing import Any

import keras
import numpy as np

from benchmarks.study import text
from benchmarks.study.trainer import Phase, Trainer
from tfmot_ternary.checkpoint import Checkpoint
from tfmot_ternary.demo import batches, questions, scenes
from tfmot_ternary.demo import model as demo_model

__all__ = ["SUBJECTS", "Data", "Subject"]


@dataclasses.dataclass(frozen=True)
class Data:
    """Inputs and targets of n examples.

    Attributes:
      inputs: what the model takes: an array or a dict of arrays, first axis n.
      labels: int32 [n] or [n, positions].
      weights: float32 of the labels' shape: 0 where a label does not count.
      counted: bool [n]: the examples that the task accuracy is over; None: every label by itself.
    """

    inputs: Any
    labels: np.ndarray
    weights: np.ndarray
    counted: np.ndarray | None = None


class Subject(abc.ABC):
    """A pre-trained float model and its data.

    Attributes:
      name: short, for tables and file names.
      title: for headings.
      batch_size: examples of a recovery's training step.
      phase: settings of a ternary recovery, `steps` apart.
      binary_rate: the learning rate of a binary one.
    """

    name: str
    title: str
    batch_size: int
    phase = Phase(steps=1000)
    binary_rate = 2e-3

    def __init__(self, folder: pathlib.Path) -> None:
        """Makes the subject; `folder` keeps what was trained or prepared once."""
        self.folder = folder

    @functools.cached_property
    @abc.abstractmethod
    def model(self) -> keras.Model:
        """The float model, trained."""

    @abc.abstractmethod
    def batch(self, seed: int, step: int, size: int | None = None) -> Data:
        """Training examples, `batch_size` or `size`: a pure function of its arguments."""

    @abc.abstractmethod
    def held_out(self, split: str) -> Data:
        """ "validation" (what choices are made on) or "test" (what is reported of them)."""

    def _pretrained(self, model: keras.Model, phase: Phase, size: int) -> keras.Model:
        """Trains `model` on batches of `size`, once: the result is kept in the folder."""
        settings = {"phase": dataclasses.asdict(phase), "model": model.get_config(), "size": size}
        path = self.folder / f"{self.name}_float.npz"
        checkpoint = Checkpoint(path, {"settings": repr(settings)})
        if checkpoint.load(model.variables)[0] < phase.steps:
            # Other examples than those that the quantized models will see.
            Trainer(model).run(
                lambda step: self.batch(1_000_003, step, size),
                phase,
                description=f"{self.name}: float model",
            )
            checkpoint.save(phase.steps, model.variables, [])
        return model


class DigitsCNN(Subject):
    """A CNN on scikit-learn's 8 x 8 handwritten digits."""

    name = "cnn"
    title = "CNN on handwritten digits"
    batch_size = 64

    @functools.cached_property
    def model(self) -> keras.Model:
        keras.utils.set_random_seed(0)
        layers = keras.layers
        model = keras.Sequential(
            [
                layers.Input((8, 8, 1)),
                layers.Conv2D(64, 3, padding="same"),
                # A short training: Keras' default momentum of 0.99 would lag behind it.
                layers.BatchNormalization(momentum=0.9),
                layers.ReLU(),
                layers.MaxPooling2D(),
                layers.Conv2D(64, 3, padding="same"),
                layers.BatchNormalization(momentum=0.9),
                layers.ReLU(),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(64, activation="relu"),
                layers.Dense(10),
            ]
        )
        return self._pretrained(model, Phase(steps=600, rate=3e-3, distill=0.0), 64)

    def batch(self, seed: int, step: int, size: int | None = None) -> Data:
        digits = scenes.digits("train")
        rng = np.random.default_rng([seed, step])
        return self._data(digits, rng.integers(0, len(digits.labels), size or self.batch_size))

    def held_out(self, split: str) -> Data:
        digits = scenes.digits(split)
        return self._data(digits, np.arange(len(digits.labels)))

    def _data(self, digits: scenes.Digits, chosen: np.ndarray) -> Data:
        labels = digits.labels[chosen].astype(np.int32)
        return Data(digits.images[chosen][..., None], labels, np.ones(labels.shape, np.float32))


class ScenesVLM(Subject):
    """The demo's PaliGemma, as it comes with the package."""

    name = "vlm"
    title = "Vision-language model on digit scenes"
    batch_size = 32
    captions = 0.2

    @functools.cached_property
    def model(self) -> keras.Model:
        return demo_model.load_preset()

    @functools.cached_property
    def _encoder(self) -> batches.TextEncoder:
        return batches.TextEncoder(self.model.preprocessor.tokenizer)

    def batch(self, seed: int, step: int, size: int | None = None) -> Data:
        # Pretraining has seen the scenes of small seeds.
        made = batches.training_batch(
            self._encoder, size or self.batch_size, seed + 2_000_003, step, self.captions
        )
        return Data(made.inputs, made.labels, made.weights)

    def held_out(self, split: str) -> Data:
        # Not seed 0, which the demo reports on.
        samples = questions.split(split, 1000, seed=1, caption_share=self.captions)
        made = batches.held_out(self._encoder, samples)
        counted = np.array([sample.kind != "caption" for sample in samples])
        return Data(made.inputs, made.labels, made.weights, counted)


class TextLM(Subject):
    """KerasHub's GPT-2 architecture, small, on the English text that comes with CPython."""

    name = "lm"
    title = "GPT-2 on English text"
    batch_size = 8
    length = 64
    held_out_windows = 280

    @functools.cached_property
    def text(self) -> text.Text:
        return text.load(self.folder)

    @functools.cached_property
    def model(self) -> keras.Model:
        import keras_hub

        keras.utils.set_random_seed(0)
        backbone = keras_hub.models.GPT2Backbone(
            vocabulary_size=text.VOCABULARY_SIZE,
            num_layers=2,
            num_heads=4,
            hidden_dim=192,
            intermediate_dim=768,
            dropout=0.0,
            max_sequence_length=self.length,
        )
        model = keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=None)
        # Near its end: a model that could still learn much would profit from any training.
        phase = Phase(steps=3000, rate=3e-3, warmup=200, distill=0.0)
        return self._pretrained(model, phase, 24)

    @functools.cached_property
    def _tokens(self) -> np.ndarray:
        return self.text.splits["train"]

    def batch(self, seed: int, step: int, size: int | None = None) -> Data:
        rng = np.random.default_rng([seed, step])
        starts = rng.integers(0, len(self._tokens) - self.length - 1, size or self.batch_size)
        return self._data(self._tokens[starts[:, None] + np.arange(self.length + 1)])

    def held_out(self, split: str) -> Data:
        return self._data(self.text.windows(split, self.length)[: self.held_out_windows])

    def _data(self, windows: np.ndarray) -> Data:
        inputs = {
            "token_ids": windows[:, :-1],
            "padding_mask": np.ones(windows[:, :-1].shape, np.int32),
        }
        labels = windows[:, 1:].astype(np.int32)
        return Data(inputs, labels, np.ones(labels.shape, np.float32))


SUBJECTS: dict[str, type[Subject]] = {cls.name: cls for cls in (TextLM, ScenesVLM, DigitsCNN)}
