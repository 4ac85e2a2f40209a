from pathlib import Path

import numpy as np
import pytest
import webdataset
from sklearn.datasets import load_digits

from attvae.data.manifest import Manifest, Split


@pytest.mark.parametrize(("split", "first", "last"), [("train", 0, 1399), ("val", 1400, 1499), ("test", 1500, 1796)])
def test_plain_webdataset_code_reads_scikit_learns_arrays(digits: Path, split: Split, first: int, last: int) -> None:
    urls = [str(digits / shard.file) for shard in Manifest.read(digits).shards(split)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    images = np.stack([sample["npy"] for sample in samples])
    source = load_digits()
    assert images.dtype == np.uint8
    assert np.array_equal(images[..., 0], source.images[first : last + 1])
    assert [sample["cls"] for sample in samples] == source.target[first : last + 1].tolist()


def test_spec(digits: Path) -> None:
    spec = Manifest.read(digits).spec
    assert spec.model_dump() == {
        "height": 8,
        "width": 8,
        "channels": 1,
        "num_bits": 5,
        "max_value": 16,
        "binary": True,
    }
