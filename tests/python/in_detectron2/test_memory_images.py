"""Held images: every reader gets the pixels, as from a file."""

import io
import os

import numpy as np
import pytest
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image

from mosaicbank.detectron2.memory_images import held


@pytest.fixture
def pixels():
    return np.random.default_rng(3).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def test_the_reader_of_mappers_gets_the_pixels_without_a_copy(pixels):
    with held(pixels) as path:
        read = detection_utils.read_image(path, "RGB")
        assert np.shares_memory(read, pixels) and not read.flags.writeable
        flipped = detection_utils.read_image(path, "BGR")
        grey = detection_utils.read_image(path, "L")
    np.testing.assert_array_equal(read, pixels)
    np.testing.assert_array_equal(flipped, pixels[:, :, ::-1])
    np.testing.assert_array_equal(grey[:, :, 0], np.asarray(Image.fromarray(pixels).convert("L")))


def test_a_label_map_is_read_as_it_is(pixels):
    with held(pixels[:, :, 0], "semantic") as path:
        np.testing.assert_array_equal(
            detection_utils.read_image(path, "L")[:, :, 0], pixels[:, :, 0]
        )


def test_other_readers_find_a_netpbm_file(pixels):
    with held(pixels) as path:
        with PathManager.open(path, "rb") as file:
            whole = file.read()
        local = PathManager.get_local_path(path)
        np.testing.assert_array_equal(np.asarray(Image.open(local)), pixels)
        with PathManager.open(path, "rb") as file:
            assert file.seek(-6, io.SEEK_END) == len(whole) - 6
            assert file.read() == pixels[-1, -2:].tobytes()
    # Pillow's own reader of the format still has what is not ours.
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(whole))), pixels)
    assert not os.path.exists(local)
    with pytest.raises(FileNotFoundError):
        PathManager.open(path, "rb")


def test_what_is_drawn_on_a_loaded_image_is_seen(pixels):
    with held(pixels) as path, PathManager.open(path, "rb") as file:
        image = Image.open(file)
        image.load()
        image.putpixel((4, 5), (1, 2, 3))
        drawn = np.asarray(image)
        assert drawn[5, 4].tolist() == [1, 2, 3]
        assert image.resize((20, 10)).size == (20, 10)
    assert pixels[5, 4].tolist() != [1, 2, 3]
