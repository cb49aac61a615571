"""Image: from a file or an array to the model's input, as the KerasHub image converter does it.

NumPy only (Pillow when an image comes from a file): it runs where no TensorFlow is.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from tfmot_ternary.vlm.metadata import ImageSpec

# Filter radius in source pixels and the filter itself. Nearest is not a filter: see `_resample`.
_BICUBIC_A = -0.5  # Keys' constant, the one tf.image.resize uses.
INTERPOLATIONS = ("bilinear", "nearest", "bicubic")


def read_image(image: Any) -> np.ndarray:
    """Returns `image` as an array [height, width, 3] with values 0 to 255.

    Args:
      image: path of an image file that Pillow reads, or a Pillow image (palette, grey, CMYK and
        RGBA images are converted to RGB; transparency is dropped), or an array [height, width, 3]
        of integers or floats, finite, in 0..255.

    Raises:
      FileNotFoundError: no file at the path.
      ValueError: not an image, another shape or dtype, values that are not in 0..255, or floats
        that seem to be in 0..1.
      ImportError: a path without the package pillow.
    """
    if isinstance(image, (str, os.PathLike)):
        return _from_file(os.fspath(image))
    if hasattr(image, "convert") and hasattr(image, "mode"):
        return _as_rgb(image, "the image")
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(
            "expected an image of shape [height, width, 3] (one RGB image, no batch axis), got "
            f"shape {list(array.shape)}: convert it first, or pass a file or a Pillow image, which "
            "are converted here"
        )
    if array.dtype.kind not in "uif":
        raise ValueError(
            f"expected image values as integers or floats in 0..255, got dtype {array.dtype}"
        )
    low, high = array.min(), array.max()
    if not np.isfinite([low, high]).all():
        raise ValueError("expected finite image values, got NaN or infinity in the image")
    if low < 0 or high > 255:
        raise ValueError(f"expected image values in 0..255, got values from {low} to {high}")
    if array.dtype.kind != "f":
        return array.astype(np.uint8)
    if 0 < high <= 1:
        raise ValueError(
            f"expected image values in 0..255, got floats from {low} to {high}: an image in 0..1 "
            "must be multiplied by 255"
        )
    return array.astype(np.float32)


def _from_file(path: str) -> np.ndarray:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"expected an image file, found none at {path!r}")
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "expected the package pillow to read image files, found none: run `pip install "
            "pillow`, or pass the image as an array"
        ) from error
    try:
        with Image.open(path) as opened:
            return _as_rgb(opened, repr(path))
    # A file that is no image, a broken one, a broken PNG, and one far too large.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path!r}: expected an image that Pillow reads, got {error}") from error


def _as_rgb(image: Any, name: str) -> np.ndarray:
    """Returns a Pillow image as an array; `name` is for errors."""
    if image.mode.startswith("I") or image.mode == "F":
        raise ValueError(
            f"{name}: expected an image with 8 bits per channel, got mode {image.mode!r}: save it "
            "as 8-bit RGB"
        )
    if 0 in image.size:
        raise ValueError(f"{name}: expected an image with pixels, got size {image.size}")
    return np.asarray(image.convert("RGB"))


def preprocess(image: Any, spec: ImageSpec) -> np.ndarray:
    """Returns the model's image input, float32 [1, height, width, 3].

    Resizes as `spec` says (crop, pad or stretch to its aspect ratio first), rounds an integer
    image to integers again, then computes `x * scale + offset`.

    Raises:
      FileNotFoundError, ValueError: as `read_image`; or another size where `spec.resize` is False.
    """
    array = read_image(image)
    height, width = array.shape[:2]
    if (height, width) != (spec.height, spec.width):
        if not spec.resize:
            raise ValueError(
                f"expected an image of {spec.height} x {spec.width} pixels, got {height} x {width}:"
                " the model was converted without a resize step; resize the image first"
            )
        array = _resize(array, spec)
    scaled = array.astype(np.float32) * np.asarray(spec.scale, np.float32)
    return (scaled + np.asarray(spec.offset, np.float32))[np.newaxis]


def _resize(array: np.ndarray, spec: ImageSpec) -> np.ndarray:
    height, width = array.shape[:2]
    if spec.aspect_ratio == "crop":
        crop_height = max(min(height, int(np.float32(width * spec.height) / spec.width)), 1)
        crop_width = max(min(width, int(np.float32(height * spec.width) / spec.height)), 1)
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        array = array[top : top + crop_height, left : left + crop_width]
    elif spec.aspect_ratio == "pad":
        rows = max(height, int(np.float32(width * spec.height) / spec.width)) - height
        columns = max(width, int(np.float32(height * spec.width) / spec.height)) - width
        # The same border on both sides, as the converter does: an odd rest is dropped.
        array = np.pad(array, ((rows // 2,) * 2, (columns // 2,) * 2, (0, 0)))
    down = _resample(array.shape[0], spec.height, spec)
    across = _resample(array.shape[1], spec.width, spec)
    resized = np.einsum("ih,hwc,jw->ijc", down, array.astype(np.float32), across, optimize=True)
    if array.dtype == np.uint8:
        return np.clip(np.rint(resized), 0, 255).astype(np.uint8)
    return resized.astype(np.float32)


def _resample(size_in: int, size_out: int, spec: ImageSpec) -> np.ndarray:
    """Returns the matrix [size_out, size_in] that resamples one axis (pixel centres at .5)."""
    ratio = size_in / size_out
    centres = (np.arange(size_out) + 0.5) * ratio
    if spec.interpolation == "nearest":
        matrix = np.zeros((size_out, size_in), np.float32)
        matrix[np.arange(size_out), np.minimum(centres.astype(int), size_in - 1)] = 1
        return matrix
    stretch = max(ratio, 1.0) if spec.antialias else 1.0
    distance = np.abs((np.arange(size_in) + 0.5)[np.newaxis] - centres[:, np.newaxis]) / stretch
    weights = _filter(distance, spec.interpolation)
    # Weights outside the image are dropped and the rest renormalised, as tf.image.resize does.
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _filter(distance: np.ndarray, interpolation: str) -> np.ndarray:
    if interpolation == "bilinear":
        return np.maximum(1 - distance, 0)
    a, d = _BICUBIC_A, distance
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))
