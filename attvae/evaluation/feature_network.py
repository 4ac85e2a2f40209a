"""A network that makes features of images, from a local ONNX file: data only, no code of the file's own is run.

ONNX, since whole networks in torch's own formats are more than data: `torch.export.load` falls back on `pickle`, and
TorchScript is code. The bytes whose hash was checked are those that are run, and files beside them are not read.
"""

import hashlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor

MAX_DIMENSIONS = 4096
"""Covariances take the square of this, in doubles."""

_PROBED = 3  # images: a network that was exported for a batch of 1 or 2 refuses them
_ROUNDING = 1e-3  # of the largest feature: far above float32's in another batch
_EXTERNAL_DATA = b"\x0a\x08location"  # key of a tensor's external data, as protobuf writes it
_SILENT = 4


class FeatureNetwork:
    """Images [B, C, H, W] of raw pixel values to features [B, D], on the CPU.

    The network's one input is [B, 3, H, W], or [B, C, H, W] with the images' own C, float32 in [0, 1]: pixel values
    divided by their largest, at the images' own size; a single channel is repeated where it wants three. Whatever else
    its features need, resizing and normalising, is inside the file. Its one output is [B, D] (or [B, D, 1, 1]).

    Attributes:
        dimensions: D.
    """

    def __init__(self, path: Path, sha256: str, image_shape: tuple[int, int, int], largest: int) -> None:
        """
        Args:
            sha256: of the file, in hex.
            image_shape: (C, H, W).
            largest: pixel value, 1 of binary images.

        Raises:
            ValueError: the file is not there, is another one, is no such network, or onnxruntime is missing.
        """
        self.path, self.sha256, self._largest = path, sha256.lower(), largest
        data = _read(path, self.sha256)
        if importlib.util.find_spec("onnxruntime") is None:
            raise ValueError("--features needs onnxruntime: pip install 'attvae[features]'")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = _SILENT  # errors are raised
        options.add_session_config_entry("session.load_model_format", "ONNX")
        try:
            self._session: Any = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's have no base of their own
            raise ValueError(f"{path} is no ONNX network that onnxruntime can run: {_short(error)}") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            names = [", ".join(each.name for each in those) for those in (inputs, outputs)]
            raise ValueError(f"{path} takes ({names[0]}) and gives ({names[1]}): one input and one output are needed")
        self._input = inputs[0]
        self._channels = self._channels_for(image_shape)
        if outputs[0].type != "tensor(float)":
            raise ValueError(f"{path} gives {outputs[0].type}: features of float32 are needed, tensor(float)")
        self.dimensions = self._probe(image_shape)
        if self.dimensions > MAX_DIMENSIONS:
            raise ValueError(
                f"{path} gives {self.dimensions:,} features of an image: at most {MAX_DIMENSIONS:,} are compared; end "
                "the network with an average over the pixels"
            )

    def __call__(self, images: Integer[Tensor, "b c H W"]) -> Float[Tensor, "b d"]:
        """
        Raises:
            ValueError: the network fails, or gives something that is not finite.
        """
        if not len(images):
            return torch.empty(0, self.dimensions)
        return self._features(images)

    def _probe(self, image_shape: tuple[int, int, int]) -> int:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(self._largest + 1, (_PROBED, *image_shape), generator=generator)
        together = self._features(images)
        alone = torch.cat([self._features(image[None]) for image in images])
        if float((together - alone).abs().max()) > _ROUNDING * float(together.abs().max()):
            raise ValueError(
                f"{self.path} gives an image other features when others are beside it, or the second time: export it "
                "in evaluation mode, without batch statistics, dropout or random numbers"
            )
        return together.shape[1]

    def _channels_for(self, image_shape: tuple[int, int, int]) -> int:
        wanted = self._input.shape
        fits = len(wanted) == 4 and self._input.type == "tensor(float)"
        channels = wanted[1] if fits and isinstance(wanted[1], int) else 3
        fits = fits and (channels == image_shape[0] or (image_shape[0], channels) == (1, 3))
        sizes = zip(wanted[2:], image_shape[1:], strict=True) if fits else []
        if not fits or any(isinstance(want, int) and want != size for want, size in sizes):
            raise ValueError(
                f"{self.path} takes {self._input.type} {wanted}, but the images are {list(image_shape)}: an input "
                "[B, 3, H, W] of float32 is needed, of any size or of theirs (docs/quality.md)"
            )
        return channels

    def _features(self, images: Integer[Tensor, "b c H W"]) -> Float[Tensor, "b d"]:
        x = (images.cpu().float() / self._largest).expand(-1, self._channels, -1, -1).contiguous()
        try:
            [found] = self._session.run(None, {self._input.name: x.numpy()})
        except Exception as error:
            raise ValueError(
                f"{self.path} fails on images {list(x.shape)}: it needs to take any number of images of this size "
                f"({_short(error)})"
            ) from error
        shape, features = list(found.shape), torch.from_numpy(found).float()
        if len(shape) < 2 or len(features) != len(x) or features[0].numel() != shape[1]:
            raise ValueError(f"{self.path} gives {shape} for {len(x)} images: [{len(x)}, features] is needed")
        if not features.isfinite().all():
            raise ValueError(f"{self.path} gives features that are not finite: the distances would mean nothing")
        return features.flatten(1)


def _read(path: Path, sha256: str) -> bytes:
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"--features-sha256 {sha256}: 64 hexadecimal digits are needed, as `sha256sum {path}` prints")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"--features {path} cannot be read: {error.strerror or error}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(
            f"--features {path} has the SHA-256 {found}, not {sha256}: it is another network, or a damaged one"
        )
    if _EXTERNAL_DATA in data:
        raise ValueError(
            f"{path} keeps weights in other files, which the SHA-256 does not cover: save it as one file, with "
            "external_data=False"
        )
    return data


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
