import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from compression.conftest import BINARY, COLOUR, GREY_16, SPECS, images_of
from PIL import Image

import attvae
from attvae.compression import file_format
from attvae.compression.command import compress, decompress
from attvae.compression.other_codecs import sizes

Exported = Callable[..., Path]


def write_images(folder: Path, kind: str, model: Path, number: int = 6) -> Path:
    """PNG files, made without this project's own writer."""
    folder.mkdir()
    for i, x in enumerate(images_of(attvae.load(model), number)):
        pixels = x.permute(1, 2, 0).numpy()
        if SPECS[kind].binary:
            Image.fromarray(pixels[:, :, 0] * 255).save(folder / f"image {i}.png")
        elif pixels.dtype == np.uint16:
            Image.fromarray(pixels[:, :, 0]).save(folder / f"image {i}.png")
        else:
            Image.fromarray(pixels).save(folder / f"image {i}.png")
    return folder


def same_pictures(folder: Path, other: Path) -> bool:
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in other.iterdir())
    for path in folder.iterdir():
        with Image.open(path) as a, Image.open(other / path.name) as b:
            mode = a.mode if a.mode.startswith("I") else "RGB"
            if a.size != b.size or not np.array_equal(np.asarray(a.convert(mode)), np.asarray(b.convert(mode))):
                return False
    return True


def attvae_command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "attvae.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=120)


@pytest.mark.parametrize("kind", ["binary", "colour", "grey_16"])
def test_image_files_come_back(tmp_path: Path, exported: Exported, kind: str) -> None:
    model = exported(kind)
    images = write_images(tmp_path / "images", kind, model, 2 if kind == "grey_16" else 6)
    found = compress(model, [images], tmp_path / "file", batch=3)
    assert found.images == len(list(images.iterdir()))
    assert found.file_bytes == (tmp_path / "file").stat().st_size
    assert decompress(tmp_path / "file", model, tmp_path / "out").images == found.images
    assert same_pictures(images, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "images", "out"]


def test_a_data_set_comes_back_as_evaluations_draw_it(
    tmp_path: Path, exported: Exported, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attvae.data.config import DataConfig
    from attvae.data.loader import eval_batches, open_manifest
    from attvae.evaluation_noise import EVALUATION_SEED

    model = exported("digits")
    monkeypatch.setenv("PATH", "")  # JPEG XL takes its time
    found = compress(model, [], tmp_path / "file", data=digits, split="val", draws=2)
    decompress(tmp_path / "file", model, tmp_path / "out")
    config = DataConfig(path=str(digits))
    manifest = open_manifest(config)
    expected = [
        x
        for draw in range(2)
        for batch in eval_batches(manifest, config, "val", EVALUATION_SEED, draw, 50, 0, 1)
        for x, weight in zip(batch.x, batch.weights, strict=True)
        if weight
    ]
    assert found.images == len(expected) == 2 * manifest.samples("val")
    for x, path in zip(expected, sorted((tmp_path / "out").iterdir()), strict=True):
        with Image.open(path) as image:
            assert image.mode == "1"
            assert np.array_equal(np.asarray(image), x[0].numpy().astype(bool))


def test_the_figures_hang_together(tmp_path: Path, exported: Exported) -> None:
    model = exported("colour")
    images = write_images(tmp_path / "images", "colour", model, 12)
    found = compress(model, [images], tmp_path / "file", batch=5)
    report = found.report()
    per_dim = report["bits_per_dim"]
    assert per_dim["net"] == pytest.approx(per_dim["nelbo_of_coded_latents"], rel=0.01)
    assert per_dim["nelbo"] == pytest.approx(report["nelbo_nats"] / np.log(2) / (8 * 12 * 3), rel=1e-12)
    header, payload = file_format.read(tmp_path / "file")
    # What the file holds: the net bits and those that the stack started with, less the untouched ones.
    assert 32 * len(payload) == pytest.approx(report["net_bits"] + report["initial_bits"], abs=64)
    assert sum(header.batches) == 12
    assert header.untouched_words > 0
    assert report["codecs"]["bits_per_dim"]["PNG"] == pytest.approx(
        8 * sum(len(png(path)) for path in images.iterdir()) / (12 * 8 * 12 * 3)
    )


def png(path: Path) -> bytes:
    import io

    file = io.BytesIO()
    with Image.open(path) as image:
        image.save(file, "PNG", optimize=True)
    return file.getvalue()


def test_another_way_to_add_gives_the_same_pixels(tmp_path: Path, exported: Exported) -> None:
    """torch without its vector instructions, on two threads, stands for another machine."""
    model = exported("colour")
    images = write_images(tmp_path / "images", "colour", model)
    compress(model, [images], tmp_path / "file")
    content = file_format.read(tmp_path / "file")
    made_with = content.header.made_with.model_copy(update={"threads": 2})
    (tmp_path / "file").unlink()
    header = content.header.model_copy(update={"made_with": made_with})
    file_format.write(tmp_path / "file", content._replace(header=header))
    done = attvae_command(
        "decompress", tmp_path / "file", "--model", model, "--out", tmp_path / "out", ATEN_CPU_CAPABILITY="default"
    )
    assert done.returncode == 0, done.stderr
    assert "6 images, their checksum fits" in done.stdout
    assert same_pictures(images, tmp_path / "out")


def test_pixels_that_are_not_those_of_the_checksum_are_never_left(tmp_path: Path, exported: Exported) -> None:
    model = exported("colour")
    images = write_images(tmp_path / "images", "colour", model)
    compress(model, [images], tmp_path / "file")
    header, payload = file_format.read(tmp_path / "file")
    file_format.write(
        tmp_path / "other", file_format.CompressedFile(header.model_copy(update={"pixels_xxh3": "0" * 32}), payload)
    )
    with pytest.raises(ValueError, match=r"checksum of the pixels .*nothing is written.*torch 2.*Use what it was"):
        decompress(tmp_path / "other", model, tmp_path / "out")
    payload[len(payload) // 2] ^= 1  # as if a number had come out otherwise
    file_format.write(tmp_path / "third", file_format.CompressedFile(header, payload))
    with pytest.raises(ValueError, match="cannot be decompressed here"):
        decompress(tmp_path / "third", model, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "images", "other", "third"]


def test_only_the_same_model_decompresses(tmp_path: Path, exported: Exported) -> None:
    model = exported("colour")
    images = write_images(tmp_path / "images", "colour", model)
    compress(model, [images], tmp_path / "file")
    for other in (exported("colour", 1), exported("binary")):
        with pytest.raises(ValueError, match=r"was compressed with the model [0-9a-f]{32}, but .* is [0-9a-f]{32}"):
            decompress(tmp_path / "file", other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def save(path: Path, size: tuple[int, int], mode: str, value: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new(mode, size, value).save(path)
    return path


@pytest.mark.parametrize(
    ("kind", "size", "mode", "reason"),
    [
        ("colour", (8, 8), "RGB", r"channels \(8, 8, 3\) and 8 bits a value, but the model takes \(8, 12, 3\)"),
        ("colour", (12, 8), "L", r"channels \(8, 12, 1\)"),
        ("colour", (12, 8), "RGBA", r"channels \(8, 12, 4\)"),
        ("grey_16", (4, 4), "L", r"8 bits a value, but the model takes \(4, 4, 1\) and 16 bits"),
        ("binary", (8, 8), "I;16", r"16 bits a value, but the model takes \(8, 8, 1\) and 8 bits"),
    ],
)
def test_images_that_are_not_the_models(
    tmp_path: Path, exported: Exported, kind: str, size: tuple[int, int], mode: str, reason: str
) -> None:
    image = save(tmp_path / "image.png", size, mode)
    with pytest.raises(ValueError, match=f"image.png: .*{reason}"):
        compress(exported(kind), [image], tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_values_that_are_not_the_models(tmp_path: Path, exported: Exported) -> None:
    with pytest.raises(ValueError, match="black and white"):
        compress(exported("binary"), [save(tmp_path / "grey.png", (8, 8), "L", 7)], tmp_path / "file")
    red = Image.new("RGBA", (8, 8), (32, 0, 0, 9))
    red.save(tmp_path / "red.png")
    with pytest.raises(ValueError, match="takes values 0 to 31, the image has 32"):
        compress(exported("five_bits"), [tmp_path / "red.png"], tmp_path / "file")


def test_what_cannot_be_read(tmp_path: Path, exported: Exported) -> None:
    model, folder = exported("colour"), tmp_path / "images"
    good = save(folder / "a.png", (12, 8), "RGB")
    Image.effect_noise((12, 8), 50).convert("RGB").save(folder / "b.png")
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"b\.png: damaged image file"):
        compress(model, [folder], tmp_path / "file")
    (folder / "b.png").write_text("no image")
    with pytest.raises(ValueError, match=r"b\.png: no image file of a known kind"):
        compress(model, [folder], tmp_path / "file")
    (folder / "b.png").unlink()
    shutil.copy(good, folder / "a.bmp")
    with pytest.raises(ValueError, match=r"would both come back as a\.png"):
        compress(model, [folder], tmp_path / "file")
    (folder / "a.bmp").unlink()
    (folder / "sub").mkdir()
    with pytest.raises(ValueError, match="sub is no image file"):
        compress(model, [folder], tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images in .*empty"):
        compress(model, [tmp_path / "empty"], tmp_path / "file")
    with pytest.raises(ValueError, match="nowhere is neither a file nor a folder"):
        compress(model, [tmp_path / "nowhere"], tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_requests_that_make_no_sense(tmp_path: Path, exported: Exported, digits: Path) -> None:
    model = exported("digits")
    (tmp_path / "there").touch()
    with pytest.raises(ValueError, match="there exists: choose another place"):
        compress(model, [], tmp_path / "there", data=digits)
    with pytest.raises(ValueError, match=r"there/file cannot be written"):
        compress(model, [], tmp_path / "there/file", data=digits)
    with pytest.raises(ValueError, match=r"either image files .* or --data"):
        compress(model, [], tmp_path / "file")
    with pytest.raises(ValueError, match=r"either image files .* or --data"):
        compress(model, [tmp_path], tmp_path / "file", data=digits)
    with pytest.raises(ValueError, match="--split and --draws go with --data"):
        compress(model, [tmp_path], tmp_path / "file", draws=2)
    with pytest.raises(ValueError, match="has no split 'all', only train, val, test"):
        compress(model, [], tmp_path / "file", data=digits, split="all")
    with pytest.raises(ValueError, match=r"the model takes DataSpec.*digits holds DataSpec"):
        compress(exported("colour"), [], tmp_path / "file", data=digits)
    with pytest.raises(ValueError, match=r"cannot read .*missing"):
        decompress(tmp_path / "missing", model, tmp_path / "out")
    with pytest.raises(ValueError, match="there is not a file that `attvae compress` has written"):
        decompress(tmp_path / "there", model, tmp_path / "out")
    with pytest.raises(ValueError, match="exists: choose another place"):
        decompress(tmp_path / "missing", model, tmp_path)


def test_on_the_command_line(tmp_path: Path, exported: Exported, digits: Path) -> None:
    model, file = exported("digits"), tmp_path / "file"
    command = ["compress", model, "--data", digits, "--out", file]
    done = attvae_command(*command, "--json", tmp_path / "figures.json", PATH="")
    assert done.returncode == 0, done.stderr
    assert "net: final minus initial bits" in done.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["file_bytes"] == file.stat().st_size
    assert figures["command"].startswith("attvae compress ")
    again = attvae_command(*command)
    assert (again.returncode, again.stderr) == (2, f"attvae: {file} exists: choose another place, or remove it\n")
    file.write_bytes(file.read_bytes()[:-1])
    damaged = attvae_command("decompress", file, "--model", model, "--out", tmp_path / "out")
    assert damaged.returncode == 2
    assert damaged.stderr.startswith(f"attvae: {file} is damaged or cut short")


def test_codecs_that_cannot_be_measured_say_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {size.name: size for size in sizes([torch.zeros(GREY_16.shape, dtype=torch.uint16)], GREY_16)}
    assert found["PNG"].bits_per_dim is not None
    assert (found["WebP"].bits_per_dim, found["WebP"].remark) == (None, "holds 8 bits a value")
    assert found["JPEG XL"].bits_per_dim is None
    assert "cjxl is not installed" in found["JPEG XL"].remark


@pytest.mark.slow  # for what tests/install_jxl.sh installs
@pytest.mark.parametrize("spec", [BINARY, COLOUR, GREY_16])
def test_jpeg_xl_is_lossless_and_its_size_is_the_files(tmp_path: Path, spec: attvae.spec.DataSpec) -> None:
    top = 1 if spec.binary else spec.max_value
    x = torch.from_numpy(np.random.default_rng(0).integers(top + 1, size=spec.shape))
    x = x.to(torch.uint16 if spec.num_bits > 8 else torch.uint8)
    pixels = x.permute(1, 2, 0).numpy() * (255 if spec.binary else 1)
    Image.fromarray(pixels.squeeze(-1) if spec.channels == 1 else pixels).save(tmp_path / "a.png")
    for command in (["cjxl", "a.png", "a.jxl", "-d", "0", "-e", "9"], ["djxl", "a.jxl", "b.png"]):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    with Image.open(tmp_path / "b.png") as image:
        assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)
    expected = 8 * (tmp_path / "a.jxl").stat().st_size / spec.dimensions
    found = next(size for size in sizes([x], spec) if size.name == "JPEG XL").bits_per_dim
    # A file of one bit a pixel may take other bytes than one of eight.
    assert found == pytest.approx(expected, rel=0.3 if spec.binary else 1e-12)
