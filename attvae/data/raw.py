"""Images of equal size stored as .npy: a batch is gathered from the memory maps at known offsets.

Where every sample of a shard takes the same room, the offset of each is a multiplication. That it does is not believed
but checked, on all headers of a shard at once, when the shard is opened.
"""

from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import xxhash
from jaxtyping import Bool, Int64, Shaped, UInt8
from numpy import ndarray

from attvae.data.decode import decode, npy_header, pixel_type
from attvae.data.shard import DamagedError
from attvae.data.tar import BLOCK, OpenShard, OpenShards
from attvae.spec import DataSpec

SIZE, OWNER = slice(124, 136), slice(265, 281)
"""Fields of a tar header (POSIX.1-1988, ustar): the size of a member; of the owner's name, where we keep its XXH3."""


class Rows(NamedTuple):
    """The images of a shard in which every sample takes the same room: N of them lie within the file.

    Attributes:
        files: the .npy file of each image.
        pixels: where they begin in a file.
        headers: of the files in the tar.
        intact: which headers, of the tar and of .npy, are what the first one is.
        hashed: the headers hold the XXH3 of the files.
    """

    files: Shaped[ndarray, "n"]
    pixels: int
    headers: UInt8[ndarray, "n 512"]
    intact: Bool[ndarray, "n"]
    hashed: bool


class RawImages:
    """The images of a split, by place.

    Args:
        shards: that hold them.
        spec: of the images.
    """

    def __init__(self, shards: OpenShards, spec: DataSpec) -> None:
        self._shards = shards
        self._spec = spec
        self._rows: WeakKeyDictionary[OpenShard, Rows | None] = WeakKeyDictionary()

    def gather(
        self, shards: Int64[ndarray, "b"], indices: Int64[ndarray, "b"]
    ) -> tuple[Shaped[ndarray, "b h w c"], dict[int, DamagedError]]:
        """The pixels of the images at (shard, index in the shard), and which rows are damaged: those are zero."""
        spec = self._spec
        pixels = np.zeros((len(shards), spec.height, spec.width, spec.channels), pixel_type(spec))
        damaged = {}
        for shard in np.unique(shards).tolist():
            rows = np.flatnonzero(shards == shard)
            for row in rows[~self._gather_from(shard, rows, indices[rows], pixels)].tolist():
                try:
                    pixels[row] = decode(self._shards[shard].read(int(indices[row])), spec)["pixels"]
                except DamagedError as error:
                    pixels[row] = 0
                    damaged[row] = error
        return pixels, damaged

    def _gather_from(
        self, shard: int, rows: Int64[ndarray, "r"], indices: Int64[ndarray, "r"], pixels: Shaped[ndarray, "b h w c"]
    ) -> Bool[ndarray, "r"]:
        """Fills the rows that belong to a shard; tells which it vouches for: the others are to be read one by one."""
        found = self._rows_of(shard)
        if found is None:
            return np.zeros(len(rows), bool)
        inside = indices.clip(max=len(found.files) - 1)
        files = found.files[inside].view(np.uint8).reshape(len(rows), -1)
        content = files[:, found.pixels :]
        pixels.reshape(len(pixels), -1).view(np.uint8)[rows] = content
        sound = found.intact[inside] & (indices == inside)
        if self._spec.max_value < np.iinfo(pixels.dtype).max:
            sound &= pixels[rows].max(axis=(1, 2, 3)) <= self._spec.max_value
        if found.hashed:
            stated = found.headers[inside, OWNER].tobytes()
            computed = b"".join(map(xxhash.xxh3_64_digest, files)).hex().encode()
            sound &= np.frombuffer(stated, "S16") == np.frombuffer(computed, "S16")
        return sound

    def _rows_of(self, number: int) -> Rows | None:
        try:
            shard = self._shards[number]
        except DamagedError:
            return None
        if shard not in self._rows:
            self._rows[shard] = self._find_rows(shard)
        return self._rows[shard]

    def _find_rows(self, shard: OpenShard) -> Rows | None:
        """The layout of a shard, or None where it has none that is uniform."""
        if (first := shard.first()) is None:
            return None
        members, room = first
        file = next((member for member in members if member.extension == "npy"), None)
        if file is None:
            return None
        content = shard.content
        try:
            dtype, shape, pixels = npy_header(content[file.offset : file.offset + file.size])
        except ValueError:
            return None
        if dtype != pixel_type(self._spec) or shape != (self._spec.height, self._spec.width, self._spec.channels):
            return None
        inside = min(shard.samples, (len(content) - file.offset - file.size) // room + 1)
        after = content[room * shard.samples : room * shard.samples + BLOCK]
        if inside == shard.samples and after.count(0) != len(after):
            return None  # more samples than the manifest says
        files = np.ndarray(inside, f"V{file.size}", content, file.offset, (room,))
        headers = np.ndarray((inside, BLOCK), np.uint8, content, file.offset - BLOCK, (room, 1))
        starts = np.ndarray((inside, pixels), np.uint8, content, file.offset, (room, 1))
        intact = (headers[:, SIZE] == headers[0, SIZE]).all(axis=1) & (starts == starts[0]).all(axis=1)
        return Rows(files, pixels, headers, intact, hashed=file.xxh3 is not None)
