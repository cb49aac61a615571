"""Packed recurrent layers of tf_keras: LSTM, GRU and SimpleRNN with packed products.

The product with the inputs is one `fully_connected` over all time steps; the product with the state
is one per step. Everything else (gates, masks, order and layout of time) is float and does what the
layers of tf_keras do, in operations that TF Lite has.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow_model_optimization.python.core.keras.compat import keras

from tfmot_ternary.packed_tf_keras import packed_keras_class

__all__ = ["PRODUCTS", "PackedGRU", "PackedLSTM", "PackedSimpleRNN", "packed_rnn_class"]

# An unrolled loop runs up to twice as fast, but each step takes about 3 KB of the file.
MAX_UNROLLED_STEPS = 16
# Names of the packed Dense layers inside; the last one only in a GRU with reset_after=False, whose
# candidate is multiplied with another state than its gates.
PRODUCTS = ("input", "recurrent", "candidate")


class _PackedRecurrent:
    """Mixed into a recurrent layer: packed Dense layers in place of the cell's kernels.

    Attributes:
      products: the packed Dense layers, by their name in PRODUCTS.
    """

    cell: Any
    states: Any
    stateful: bool
    time_major: bool
    go_backwards: bool
    unroll: bool
    return_sequences: bool
    return_state: bool
    zero_output_for_mask: bool
    compute_dtype: str

    def __init__(self, *args: Any, packing: dict[str, dict[str, Any]] | None = None, **kwargs: Any):
        """Makes the layer.

        Args:
          *args, **kwargs: as the layer's base class.
          packing: for each product its argument `packing` of a packed Dense layer.
        """
        super().__init__(*args, **kwargs)
        if packing is None:
            raise ValueError(
                f"expected the argument `packing` of {type(self).__name__}, which tells layouts "
                "and formats, got None; packed layers are made by tfmot_ternary.freeze"
            )
        # A tuple: Keras would track a dict.
        self._packing = tuple((name, packing[name]) for name in PRODUCTS if name in packing)
        # The cell serves as the holder of sizes and activations; it gets no weights.
        self.cell.built = True
        dense = packed_keras_class(keras.layers.Dense)
        for name, product in self._packing:
            units = product["kernel_layout"]["kernel_shape"][-1]
            biased = product["bias_shape"] is not None
            # float32 also under a mixed precision policy: the operators compute in it.
            layer = dense(units, use_bias=biased, dtype="float32", name=name, packing=product)
            setattr(self, f"{name}_product", layer)

    @property
    def products(self) -> dict[str, Any]:
        return {name: getattr(self, f"{name}_product") for name, _ in self._packing}

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)  # type: ignore[misc]
        for name, product in self.products.items():
            if not product.built:
                with tf.name_scope(name):
                    product.build(None)

    def get_config(self) -> dict[str, Any]:
        """The base layer's config and `packing`."""
        packing = {name: dict(product) for name, product in self._packing}
        return {**super().get_config(), "packing": packing}  # type: ignore[misc]

    def _step(self, z: tf.Tensor, states: list[tf.Tensor]) -> list[tf.Tensor]:
        """New states from the products of one step's input and the old states; first the output."""
        raise NotImplementedError

    def call(
        self, inputs: Any, mask: Any = None, training: Any = None, initial_state: Any = None
    ) -> Any:
        # Apart, for Bidirectional reads this signature and a decorator would hide it.
        del training  # a packed layer is for inference: no dropout
        return self._run(inputs, mask, initial_state)

    @tf.autograph.experimental.do_not_convert
    def _run(self, inputs: Any, mask: Any, initial_state: Any) -> Any:
        if isinstance(tf.nest.flatten(inputs, expand_composites=False)[0], tf.RaggedTensor):
            raise ValueError(
                f"expected dense inputs of the packed layer {self.name!r}, got a ragged tensor; "  # type: ignore[attr-defined]
                "pad it and pass a mask (to_tensor, Masking)"
            )
        inputs, initial_state, _ = self._process_inputs(inputs, initial_state, None)  # type: ignore[attr-defined]
        mask = mask[0] if isinstance(mask, (list, tuple)) else mask
        z = self.products["input"].call(inputs)
        if not self.time_major:
            z = tf.transpose(z, [1, 0, 2])
            mask = None if mask is None else tf.transpose(mask)
        if self.go_backwards:
            z = tf.reverse(z, [0])
            mask = None if mask is None else tf.reverse(mask, [0])
        states = [tf.cast(state, tf.float32) for state in initial_state]
        outputs, states = self._scan(z, mask, states)
        if self.stateful:
            for variable, state in zip(tf.nest.flatten(self.states), states, strict=True):
                variable.assign(tf.cast(state, variable.dtype))
        if self.return_sequences and not self.time_major:
            outputs = tf.transpose(outputs, [1, 0, 2])
        outputs = tf.cast(outputs, self.compute_dtype)
        if not self.return_state:
            return outputs
        return [outputs, *(tf.cast(state, self.compute_dtype) for state in states)]

    def _scan(
        self, z: tf.Tensor, mask: tf.Tensor | None, states: list[tf.Tensor]
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Runs all steps.

        Args:
          z: float32 [steps, batch, n], the products of the inputs.
          mask: bool [steps, batch] or None; a step that is not in it leaves the states as they are.
          states: float32 [batch, units] each.

        Returns:
          (float32 [steps, batch, units] if the layer returns sequences, else the last output
          [batch, units]; last states).
        """
        steps = z.shape[0]
        output = tf.zeros_like(states[0])
        if steps is not None and (steps <= MAX_UNROLLED_STEPS or self.unroll):
            outputs = []
            for step in range(steps):
                output, states = self._masked_step(
                    z[step], None if mask is None else mask[step], output, states
                )
                outputs.append(output)
            return (tf.stack(outputs) if self.return_sequences else output), states
        count = tf.shape(z)[0]

        def body(step: tf.Tensor, *loop: tf.Tensor) -> tuple[tf.Tensor, ...]:
            output, *states = loop[: 1 + len(initial)]
            output, states = self._masked_step(
                tf.gather(z, step), None if mask is None else tf.gather(mask, step), output, states
            )
            if not self.return_sequences:
                return (step + 1, output, *states)
            at = tf.reshape(step, [1, 1])
            outputs = tf.tensor_scatter_nd_update(loop[-1], at, output[tf.newaxis])
            return (step + 1, output, *states, outputs)

        initial = list(states)
        loop: list[tf.Tensor] = [tf.constant(0), output, *states]
        if self.return_sequences:
            # Every step is overwritten; zeros of a known shape would be stored in the file.
            loop.append(z[:, :, : self.cell.units])
        shapes = [tensor.shape for tensor in loop]
        loop = tf.while_loop(
            lambda step, *_: step < count,
            body,
            loop,
            shape_invariants=shapes,
            maximum_iterations=None,
        )
        last = 2 + len(initial)
        return (loop[-1] if self.return_sequences else loop[1]), list(loop[2:last])

    def _masked_step(
        self, z: tf.Tensor, mask: tf.Tensor | None, output: tf.Tensor, states: list[tf.Tensor]
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        new = self._step(z, states)
        if mask is None:
            return new[0], new
        kept = tf.zeros_like(output) if self.zero_output_for_mask else output
        column = mask[:, tf.newaxis]
        masked = [tf.where(column, a, b) for a, b in zip(new, states, strict=True)]
        return tf.where(column, new[0], kept), masked


@keras.saving.register_keras_serializable("tfmot_ternary")
class PackedSimpleRNN(_PackedRecurrent, keras.layers.SimpleRNN):
    """SimpleRNN with packed kernels."""

    def _step(self, z: tf.Tensor, states: list[tf.Tensor]) -> list[tf.Tensor]:
        z = z + self.products["recurrent"].call(states[0])
        return [z if self.cell.activation is None else self.cell.activation(z)]


@keras.saving.register_keras_serializable("tfmot_ternary")
class PackedLSTM(_PackedRecurrent, keras.layers.LSTM):
    """LSTM with packed kernels."""

    def _step(self, z: tf.Tensor, states: list[tf.Tensor]) -> list[tf.Tensor]:
        cell = self.cell
        z = z + self.products["recurrent"].call(states[0])
        i, f, c, o = tf.split(z, 4, axis=-1)
        carry = cell.recurrent_activation(f) * states[1]
        carry = carry + cell.recurrent_activation(i) * cell.activation(c)
        return [cell.recurrent_activation(o) * cell.activation(carry), carry]


@keras.saving.register_keras_serializable("tfmot_ternary")
class PackedGRU(_PackedRecurrent, keras.layers.GRU):
    """GRU with packed kernels."""

    def _step(self, z: tf.Tensor, states: list[tf.Tensor]) -> list[tf.Tensor]:
        cell, (state,) = self.cell, states
        inner = self.products["recurrent"].call(state)
        x_update, x_reset, x_candidate = tf.split(z, 3, axis=-1)
        inner_update, inner_reset, *inner_candidate = tf.split(
            inner, 3 if cell.reset_after else 2, axis=-1
        )
        update = cell.recurrent_activation(x_update + inner_update)
        reset = cell.recurrent_activation(x_reset + inner_reset)
        if cell.reset_after:
            candidate = reset * inner_candidate[0]
        else:
            candidate = self.products["candidate"].call(reset * state)
        candidate = cell.activation(x_candidate + candidate)
        return [update * state + (1.0 - update) * candidate]


_PACKED = {
    keras.layers.SimpleRNN: PackedSimpleRNN,
    keras.layers.LSTM: PackedLSTM,
    keras.layers.GRU: PackedGRU,
}

# In an HDF5 file Bidirectional names the layer inside it without the package.
keras.saving.get_custom_objects().update({cls.__name__: cls for cls in _PACKED.values()})


def packed_rnn_class(base: type) -> Any:
    """The packed class of LSTM, GRU or SimpleRNN.

    Raises:
      TypeError: for another class.
    """
    if base not in _PACKED:
        raise TypeError(f"expected LSTM, GRU or SimpleRNN of tf_keras, got {base.__name__}")
    return _PACKED[base]
