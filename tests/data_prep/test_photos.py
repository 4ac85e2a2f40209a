import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from attvae.data.manifest import Manifest, Split
from data_prep import photos
from data_prep.writer import prepare

Patch = tuple[dict, np.ndarray]


@pytest.fixture(scope="module", params=[32, 64])
def size(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def patches(size: int, tmp_path_factory: pytest.TempPathFactory) -> dict[Split, list[Patch]]:
    """The place and pixels of every patch, as the standard library finds them in the tars."""
    folder = tmp_path_factory.mktemp("photos")
    prepare(photos.dataset(size), folder)
    manifest = Manifest.read(folder)
    found: dict[Split, list[Patch]] = {}
    for split in manifest.splits:
        found[split] = []
        for shard in manifest.shards(split):
            with tarfile.open(folder / shard.file) as tar:
                files = {member.name: tar.extractfile(member).read() for member in tar}
            for key in sorted({name.partition(".")[0] for name in files}):
                pixels = np.load(io.BytesIO(files[f"{key}.npy"]), allow_pickle=False)
                found[split].append((json.loads(files[f"{key}.json"]), pixels))
    return found


def test_counts(patches: dict[Split, list[Patch]], size: int) -> None:
    """In each photograph. 32 pixels: val 13 rows of 2 columns, test 13 of 5; 64 pixels: 6 rows of 1 and of 2."""
    assert (len(patches["val"]), len(patches["test"])) == {32: (52, 130), 64: (12, 24)}[size]
    # Every 3 pixels: (427 - 32) // 3 + 1 rows, (400 - 32) // 3 + 1 columns.
    assert len(patches["train"]) == {32: 2 * 132 * 123, 64: 2 * 122 * 113}[size]


def test_patches_are_the_photographs_pixels(patches: dict[Split, list[Patch]], size: int) -> None:
    originals = {name: load_sample_image(name) for name in ("china.jpg", "flower.jpg")}
    for split in patches:
        for place, pixels in patches[split]:
            row, column = place["row"], place["column"]
            assert pixels.dtype == np.uint8
            assert np.array_equal(pixels, originals[place["photo"]][row : row + size, column : column + size])


def test_no_pixel_is_in_two_splits(patches: dict[Split, list[Patch]], size: int) -> None:
    columns = {"train": (0, 399), "val": (400, 479), "test": (480, 639)}
    uses = {}
    for split in patches:
        uses[split] = np.zeros((2, 427, 640), dtype=int)
        for place, _ in patches[split]:
            photo = ("china.jpg", "flower.jpg").index(place["photo"])
            uses[split][photo, place["row"] : place["row"] + size, place["column"] : place["column"] + size] += 1
        used = np.flatnonzero(uses[split].any((0, 1)))
        assert columns[split][0] <= used.min()
        assert used.max() <= columns[split][1]
    assert (sum((use > 0).astype(int) for use in uses.values()) <= 1).all()
    assert uses["val"].max() == uses["test"].max() == 1


def test_patches_that_fit_no_band() -> None:
    with pytest.raises(ValueError, match="--size 81: the narrowest band of the photographs has 80 columns"):
        photos.dataset(81)


@pytest.mark.parametrize("size", [32], indirect=True)
def test_png_needs_what_others_measured_on_these_patches(patches: dict[Split, list[Patch]], size: int) -> None:
    sizes = []
    for _, pixels in patches["test"]:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", optimize=True)
        sizes.append(len(file.getvalue()))
    assert 8 * np.mean(sizes) / (32 * 32 * 3) == pytest.approx(3.6, abs=0.1)
