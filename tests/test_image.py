"""Images: equal to KerasHub's converter, from files and Pillow, and clear about bad ones."""

from __future__ import annotations

import causal_lms
import keras
import keras_hub
import numpy as np
import pytest
from PIL import Image

from tfmot_ternary.vlm.image import preprocess, read_image
from tfmot_ternary.vlm.metadata import ImageSpec

SPEC = ImageSpec(32, 32, 16, 1 / 127.5, -1.0, "bilinear", False, "crop", True)


@pytest.mark.parametrize("size", [(32, 32), (20, 50), (64, 40), (33, 31), (7, 96)])
@pytest.mark.parametrize(
    ("aspect_ratio", "dtype"),
    [
        ("crop", np.uint8),
        ("crop", np.float32),
        ("stretch", np.uint8),
        ("stretch", np.float32),
        ("pad", np.float32),  # Keras 3.15 itself fails on padding uint8
    ],
)
@pytest.mark.parametrize(
    ("interpolation", "antialias"),
    [("bilinear", False), ("bilinear", True), ("nearest", False), ("bicubic", False)],
)
def test_image_equals_the_keras_converter(size, aspect_ratio, interpolation, antialias, dtype):
    converter = keras_hub.layers.PaliGemmaImageConverter(
        image_size=(32, 32),
        scale=1 / 127.5,
        offset=-1,
        crop_to_aspect_ratio=aspect_ratio == "crop",
        pad_to_aspect_ratio=aspect_ratio == "pad",
        interpolation=interpolation,
        antialias=antialias,
    )
    image = causal_lms.scene(0, *size).astype(dtype)
    expected = keras.ops.convert_to_numpy(converter(image))
    spec = ImageSpec(32, 32, 16, 1 / 127.5, -1.0, interpolation, antialias, aspect_ratio, True)
    ours = preprocess(image, spec)
    assert ours.shape == (1, 32, 32, 3)
    assert ours.dtype == np.float32
    # Floats differ by roundings of values up to 255 (bicubic also in the order of its sixteen
    # products). uint8 results are rounded: such an error may tip a value that lies halfway between
    # two integers, and no other, by one step of 255.
    difference = np.abs(ours[0] - expected)
    if dtype == np.uint8:
        unrounded = (preprocess(image.astype(np.float32), spec)[0] + 1) * 127.5
        halfway = np.abs(unrounded % 1 - 0.5) < 1e-3
        assert difference[halfway].max(initial=0) <= 1.01 / 127.5
        difference = difference[~halfway]
    assert difference.max() <= 1e-4


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr"])
def test_modes_that_pillow_converts(tmp_path, mode):
    converted = Image.fromarray(causal_lms.scene(5, 40, 40)).convert(mode)
    expected = np.asarray(converted.convert("RGB"))
    assert np.array_equal(read_image(converted), expected)
    path = tmp_path / ("image.tiff" if mode in ("CMYK", "YCbCr") else "image.png")
    converted.save(path)
    assert np.array_equal(read_image(path), expected)
    assert np.array_equal(preprocess(path, SPEC), preprocess(expected, SPEC))


def test_files_that_are_refused(tmp_path, monkeypatch):
    deep = Image.fromarray(np.full((8, 8), 40000, np.uint16))
    deep.save(tmp_path / "deep.png")
    for image in (deep, tmp_path / "deep.png", Image.new("F", (4, 4))):
        with pytest.raises(ValueError, match="8 bits per channel"):
            read_image(image)
    Image.fromarray(causal_lms.scene()).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    for name, bad in [("text", b"no image"), ("empty", b""), ("cut", content[: len(content) // 2])]:
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(ValueError, match=f"{name}.*image that Pillow reads"):
            read_image(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="image that Pillow reads, got .*decompression bomb"):
        read_image(tmp_path / "whole.png")
    with pytest.raises(FileNotFoundError, match="found none"):
        read_image(tmp_path / "missing.png")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((32, 32)), r"\[height, width, 3\].*\[32, 32\]"),
        (np.zeros((1, 32, 32, 3)), r"no batch axis"),
        (np.zeros((32, 32, 4), np.uint8), r"\[32, 32, 4\]"),
        (np.zeros((32, 32, 1), np.uint8), r"\[32, 32, 1\].*Pillow image, which are converted"),
        (np.zeros((0, 32, 3)), r"\[0, 32, 3\]"),
        (np.full((4, 4, 3), np.nan), "finite"),
        (np.full((4, 4, 3), -np.inf), "finite"),
        (np.full((4, 4, 3), 300), "0..255, got values from 300 to 300"),
        (np.full((4, 4, 3), 255.5), "0..255, got values from 255.5"),
        (np.full((4, 4, 3), -0.1), "0..255, got values from -0.1"),
        (np.full((4, 4, 3), 0.7), "floats from 0.7 to 0.7: an image in 0..1 must be multiplied"),
        (np.full((4, 4, 3), "a"), "dtype"),
        (np.full((4, 4, 3), True), "dtype bool"),
        (Image.new("RGB", (0, 4)), "an image with pixels"),
        (None, r"got shape \[\]"),
    ],
)
def test_bad_images(image, message):
    with pytest.raises(ValueError, match=message):
        preprocess(image, SPEC)


def test_black_and_dark_images_are_images():
    assert read_image(np.zeros((4, 4, 3), np.float32)).dtype == np.float32
    assert read_image(np.ones((4, 4, 3), np.int64)).dtype == np.uint8


def test_image_without_resize_step(tmp_path):
    spec = ImageSpec(32, 32, 16, 1.0, 0.0, "bilinear", False, "stretch", False)
    with pytest.raises(ValueError, match="32 x 32 pixels, got 40 x 32"):
        preprocess(np.zeros((40, 32, 3), np.uint8), spec)
