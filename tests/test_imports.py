"""Who may import what: g3doc/design.md's rules, held against the code."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

import tfmot_ternary

PACKAGE = pathlib.Path(tfmot_ternary.__file__).parent

# Module -> the modules of ours that it may import. `vlm`, `demo` and `cli` sit on top of all.
ALLOWED = {
    "packing": set(),
    "integer_weights": {"packing"},
    "kmeans": set(),
    "kernel_layout": set(),
    "runtime": {"model_structure"},
    "model_structure": set(),
    "op_times": {"runtime"},
    "attention_op": {"composite"},
    "attention_reference": set(),
    "recognition": {"packing"},
    "keras_ternary": {"packing"},
    "importance": set(),
    "calibration_batches": set(),
    "layer_hessian": set(),
    "padding": set(),
    "convolution_windows": set(),
    "kernel_inputs": {"convolution_windows", "kernel_layout", "padding"},
    "kernel_moments": {"convolution_windows", "kernel_inputs", "layer_hessian"},
    "kernel_gradients": {"kernel_inputs", "model_outputs"},
    "calibration": {
        "calibration_batches",
        "keras3_layers",
        "keras3_structure",
        "kernel_gradients",
        "kernel_inputs",
        "kernel_moments",
        "layer_hessian",
        "layer_kernels",
        "model_outputs",
    },
    "initializers": {"kmeans", "packing"},
    "nearest_codes": set(),
    "error_compensation": {"nearest_codes", "packing"},
    "starting_point": {"error_compensation", "initializers", "layer_hessian", "packing"},
    "straight_through": set(),
    "quantizers": {
        "initializers",
        "kernel_layout",
        "nearest_codes",
        "packing",
        "starting_point",
        "straight_through",
    },
    "gradual_quantization": {"keras3_layers", "keras3_structure", "quantizers"},
    "layer_kernels": {"kernel_layout"},
    "quantize_config": {
        "initializers",
        "kernel_layout",
        "layer_kernels",
        "packing",
        "quantizers",
    },
    "quantize_wrapper": {"layer_kernels", "quantize_config"},
    "activation_quantizer": set(),
    "layer_chains": set(),
    "eight_bit_chains": {
        "activation_quantizer",
        "layout_transform",
        "quantize_config",
        "savable_wrapper",
    },
    "eight_bit_layout": {
        "activation_quantizer",
        "eight_bit_chains",
        "eight_bit_inputs",
        "layer_chains",
        "layer_kernels",
        "layout_transform",
        "quantize_config",
        "savable_wrapper",
    },
    "quantize_registry": {"importance", "layer_kernels", "layout_transform", "quantize_config"},
    "attention": {"importance", "quantize_wrapper"},
    "eight_bit_inputs": {"activation_quantizer", "layer_chains"},
    "savable_wrapper": set(),
    "layout_transform": {
        "attention",
        "eight_bit_inputs",
        "layer_kernels",
        "packed_layer",
        "quantize_config",
        "quantize_wrapper",
        "savable_wrapper",
        "stripping",
    },
    "kept_ends": set(),
    "stripping": set(),
    "scheme": {
        "attention",
        "eight_bit_layout",
        "importance",
        "initializers",
        "kept_ends",
        "layout_transform",
        "packing",
        "quantize_config",
        "quantize_registry",
        "quantize_wrapper",
        "quantizers",
        "stripping",
    },
    "keras3_structure": set(),
    "keras3_layers": {
        "initializers",
        "kernel_layout",
        "packing",
        "quantizers",
        "starting_point",
    },
    "keras3": {
        "importance",
        "initializers",
        "keras3_layers",
        "keras3_structure",
        "layer_hessian",
        "packed_layer",
        "packing",
    },
    "apply": {"keras3", "kept_ends", "packed_layer", "scheme", "stripping"},
    "checkpoint": set(),
    "distill": {"distillation_loss", "feature_matching", "model_outputs", "teacher_outputs"},
    "distillation_loss": set(),
    "example_arrays": set(),
    "feature_matching": {"distillation_loss", "model_outputs"},
    "output_folder": set(),
    "model_outputs": set(),
    "row_file": set(),
    "teacher_outputs": {
        "checkpoint",
        "example_arrays",
        "feature_matching",
        "model_outputs",
        "output_folder",
        "row_file",
    },
    "op_arithmetic": {"packing"},
    "composite": set(),
    "fused_ops": {"composite"},
    "layer_replacement": set(),
    "fused_norms": {"fused_ops", "layer_replacement"},
    "fused_rotary": {"fused_ops", "layer_replacement"},
    "fused_layers": {"fused_norms", "fused_ops", "fused_rotary", "layer_replacement"},
    "ops": {"composite", "op_arithmetic", "packing"},
    "weight_storage": {"initializers", "integer_weights", "packing", "quantizers"},
    "layer_storage": {"layer_kernels", "weight_storage"},
    "keras3_storage": {
        "keras3_layers",
        "keras3_structure",
        "kernel_layout",
        "packed_layer",
        "weight_storage",
    },
    "packed_layer": {"kernel_layout", "ops", "packing"},
    "packed_embedding": {"ops", "packed_layer", "packing"},
    "packed_layers": {"kernel_layout", "ops", "packed_embedding", "packed_layer"},
    "packed_tf_keras": {"packed_layers"},
    "packed_rnn": {"packed_tf_keras"},
    "freezing_rnn": {"kernel_layout", "packed_rnn", "packing"},
    "folding": {"packing"},
    "tflite_buffers": {"model_file"},
    "tflite_linking": {"model_file"},
    "model_source": set(),
    "partial_folder": {"checkpoint"},
    "preset_weights": {"model_source", "skeleton"},
    "skeleton": set(),
    "ternarization_request": {"packing"},
    "streaming": {
        "freezing",
        "freezing_keras3",
        "initializers",
        "keras3",
        "keras3_layers",
        "keras3_storage",
        "keras3_structure",
        "kernel_layout",
        "packing",
        "partial_folder",
        "preset_weights",
        "skeleton",
        "weight_storage",
    },
}
NUMPY_ONLY = [
    "packing",
    "attention_reference",
    "kmeans",
    "layer_hessian",
    "keras_ternary",
    "recognition",
    "row_file",
]
# `cli` and what stands behind its commands.
TOP = {"vlm", "demo", "cli", "commands", "evaluation", "measurement", "recovery", "ternarization"}


def imports(path: pathlib.Path) -> set[str]:
    """Full dotted names of everything a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: expected absolute imports"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(path: pathlib.Path) -> set[str]:
    """First component below `tfmot_ternary` of every import of our own modules."""
    modules = {p.stem for p in PACKAGE.glob("*.py")} | {p.name for p in PACKAGE.iterdir()}
    parts = (name.split(".") for name in imports(path))
    return {p[1] for p in parts if p[0] == "tfmot_ternary" and len(p) > 1 and p[1] in modules}


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_dependency_rules(module):
    found = own_imports(PACKAGE / f"{module}.py") - {module}
    assert found <= ALLOWED[module], f"{module} imports {sorted(found - ALLOWED[module])}"


@pytest.mark.parametrize("module", NUMPY_ONLY)
def test_only_numpy(module):
    roots = {name.split(".")[0] for name in imports(PACKAGE / f"{module}.py")}
    foreign = roots - set(sys.stdlib_module_names) - {"numpy", "tfmot_ternary"}
    assert not foreign, f"{module} may import NumPy only, got {sorted(foreign)}"


def test_lower_modules_do_not_import_the_top():
    for path in PACKAGE.glob("*.py"):
        if path.stem not in TOP | {"__init__"}:
            assert not own_imports(path) & TOP, f"{path.name} imports from the top"


def test_nothing_imports_the_package_itself():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert "tfmot_ternary" not in {alias.name for alias in node.names}, path


@pytest.mark.parametrize("module", ["tfmot_ternary.runtime", "tfmot_ternary.packing"])
def test_device_side_imports_no_tensorflow(module):
    """In a fresh interpreter, because this one may have TensorFlow loaded already."""
    code = f"import sys, {module}; print(*sorted(m.split('.')[0] for m in sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"tensorflow", "tensorflow_model_optimization", "keras", "tf_keras"} & set(loaded)


def test_public_names_resolve():
    """Also after every submodule was imported: a submodule must not hide a public function."""
    import tfmot_ternary.conversion
    import tfmot_ternary.freezing

    for name in tfmot_ternary.__all__:
        value = getattr(tfmot_ternary, name)
        if name in {"calibrate", "convert", "freeze", "quantize_apply", "quantize_scope"}:
            assert callable(value), f"tfmot_ternary.{name} is {value!r}"
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = tfmot_ternary.no_such_name
