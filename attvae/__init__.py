"""Deep attentive hierarchical VAEs at any scale. Importing this package imports nothing heavy."""

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attvae.model.vae import DeepVAE

__version__ = "0.1.0"


def load(folder: str | PathLike[str]) -> "DeepVAE":
    """The model of an export folder, ready for use; needs torch and safetensors only.

    Raises:
        ValueError: the folder is no export, or is damaged.
    """
    from attvae.export import load

    return load(folder)
