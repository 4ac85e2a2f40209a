"""Real image content for small data sets: crops of scikit-learn's photographs."""

from functools import cache

import numpy as np
from sklearn.datasets import load_sample_image


@cache
def crops(images: int, size: int) -> np.ndarray:
    """Different crops of a photograph [N, size, size, 3], uint8."""
    photo = load_sample_image("china.jpg")
    columns = photo.shape[1] // size
    places = [(size * (number // columns), size * (number % columns)) for number in range(images)]
    return np.stack([photo[row : row + size, column : column + size] for row, column in places])
