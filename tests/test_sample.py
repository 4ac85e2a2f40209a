"""`attvae sample`: what it writes, read by Pillow and numpy, and what it costs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attvae import export
from attvae.config import load
from attvae.evaluation.image_grid import draw_grid
from attvae.export import ExportConfig
from attvae.model.vae import DeepVAE
from attvae.sample import sample_stream, write_samples
from attvae.spec import DataSpec

DIGITS = DataSpec(height=8, width=8, channels=1, num_bits=5, max_value=16, binary=True)
RGB = DataSpec(height=8, width=8, channels=3, num_bits=8, max_value=255)
DEEP = DataSpec(height=8, width=8, channels=1, num_bits=12, max_value=4095)


def model_of(spec: DataSpec) -> DeepVAE:
    likelihood = [] if spec.binary else ["model.likelihood={kind: logistic_mixture, num_mixtures: 2}"]
    torch.manual_seed(5)
    return DeepVAE(load(Path("configs/test/tiny.yaml"), likelihood).model, spec).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    model = model_of(DIGITS)
    export.write(folder, model, ExportConfig(model=model.config, spec=DIGITS), "a card\n")
    return folder


def attvae(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "attvae.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("spec", [DIGITS, RGB])
def test_an_image_depends_on_seed_and_place_alone(spec: DataSpec) -> None:
    model = model_of(spec)

    def drawn(n: int, temperature: float, seed: int, batch: int) -> torch.Tensor:
        return torch.cat([*sample_stream(model, n, temperature, seed, batch)])

    images = drawn(12, 0.8, 1, 64)
    assert images.shape == (12, *spec.shape)
    torch.testing.assert_close(drawn(12, 0.8, 1, 5), images, rtol=0, atol=0)
    torch.testing.assert_close(drawn(3, 0.8, 1, 1), images[:3], rtol=0, atol=0)
    for other in (drawn(12, 0.8, 2, 64), drawn(12, 0.3, 1, 64)):
        assert (other != images).any()
    assert len({image.numpy().tobytes() for image in images}) == 12


def test_the_temperature_is_that_of_the_priors() -> None:
    model = model_of(RGB)
    torch.manual_seed(0)
    noise = [torch.randn(6, *shape) for shape in model.latent_shapes]
    cold = model.sample_head(6, 0.0, noise)
    torch.testing.assert_close(cold, cold[:1].expand_as(cold))
    still = [torch.zeros_like(eps) for eps in noise]
    torch.testing.assert_close(cold, model.sample_head(6, 1.0, still))
    half = model.sample_head(6, 1.0, [0.5 * eps for eps in noise])
    torch.testing.assert_close(model.sample_head(6, 0.5, noise), half)


def test_pixels_follow_the_likelihood() -> None:
    model = model_of(DIGITS)
    head = torch.full((4000, 1, 8, 8), -1.0)
    assert model.draw_pixels(head).float().mean() == pytest.approx(1 / (1 + np.e), abs=0.005)  # 64 x 4,000 draws
    assert not model.draw_pixels(head, torch.full((4000, 1, 8, 8), 0.2690)).any()  # just above it
    assert model.draw_pixels(head, torch.full((4000, 1, 8, 8), 0.2689)).all()


@pytest.mark.parametrize("spec", [DIGITS, RGB, DEEP])
@pytest.mark.parametrize("n", [1, 10])
def test_grid_folder_and_array_hold_the_same_images(spec: DataSpec, n: int, tmp_path: Path) -> None:
    images = torch.cat([*sample_stream(model_of(spec), n, 1.0, 0, 4)])
    for name in ("grid.png", "folder", "array.npy"):
        write_samples(images.split(3), n, spec, tmp_path / "new" / name)
    written = tmp_path / "new"
    assert sorted(path.name for path in written.iterdir()) == ["array.npy", "folder", "grid.png"]
    array = np.load(written / "array.npy")
    np.testing.assert_array_equal(array, images.permute(0, 2, 3, 1).numpy())
    assert array.dtype == (np.uint16 if spec is DEEP else np.uint8)
    top = 1 if spec.binary else spec.max_value
    shown = np.round(array.astype(np.float64) * 255 / top)
    singles = [np.asarray(Image.open(written / "folder" / f"{i:06}.png")) for i in range(n)]
    assert len([*(written / "folder").iterdir()]) == n
    np.testing.assert_array_equal(np.stack(singles).reshape(shown.shape), shown)
    grid = np.asarray(Image.open(written / "grid.png"))
    whole = np.asarray(draw_grid(torch.from_numpy(shown).permute(0, 3, 1, 2), 255))
    np.testing.assert_array_equal(grid, whole if grid.ndim == 3 else whole[:, :, 0])


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    two = DataSpec(height=8, width=8, channels=2, num_bits=8, max_value=255)
    with pytest.raises(ValueError, match="images of 2 channels are no PNG"):
        write_samples([], 1, two, tmp_path / "x.png")

    def ending() -> object:
        yield torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
        raise RuntimeError("as when the device is gone")

    for name in ("grid.png", "folder", "array.npy"):
        with pytest.raises(RuntimeError, match="device is gone"):
            write_samples(ending(), 4, DIGITS, tmp_path / name)
    assert not [*tmp_path.iterdir()]


def test_what_lies_beside_it_stays(tmp_path: Path) -> None:
    """Also what has a name that files in the making might have."""
    (tmp_path / "folder.tmp").mkdir()
    for name in ("folder.tmp/mine", "grid.png.tmp", "array.npy.tmp"):
        (tmp_path / name).write_text("mine")
    for name in ("grid.png", "folder", "array.npy"):
        write_samples([torch.zeros(2, 1, 8, 8, dtype=torch.uint8)], 2, DIGITS, tmp_path / name)
    for name in ("folder.tmp/mine", "grid.png.tmp", "array.npy.tmp"):
        assert (tmp_path / name).read_text() == "mine"
    assert len([*tmp_path.iterdir()]) == 6


def test_the_command(exported: Path, tmp_path: Path) -> None:
    for name, batch in (("a.png", 7), ("b.png", 50)):
        done = attvae("sample", exported, "--n", 10, "--temperature", 0.8, "--batch", batch, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert "10 images at temperature 0.8" in done.stdout
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["MODEL", "--n", "0", "--out", "x.png"], "'--n'"),
        (["MODEL", "--batch", "0", "--out", "x.png"], "'--batch'"),
        (["MODEL", "--temperature", "-0.1", "--out", "x.png"], "'--temperature'"),
        (["MODEL", "--temperature", "inf", "--out", "x.png"], "--temperature inf: a finite number from 0 up"),
        (["MODEL", "--out", "x.jpg"], "--out x.jpg: a grid is called .png"),
        (["MODEL", "--out", "MODEL"], "is there already"),
        (["MODEL", "--out", "LICENSE"], "--out LICENSE is there already"),
        (["MODEL", "--out", "/proc/no/x.png"], "/proc/no"),
        (["nowhere", "--out", "x.png"], "nowhere is neither a run folder (no config.yaml) nor an export"),
    ],
)
def test_bad_input(exported: Path, arguments: list[str], said: str) -> None:
    done = attvae("sample", *(str(exported) if word == "MODEL" else word for word in arguments))
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("x.png").exists()


PEAK = """
import sys
from pathlib import Path
from attvae.sample import sample
for name in ("x.png", "x.npy"):
    sample(Path(sys.argv[1]), Path(name), n=int(sys.argv[2]), temperature=1.0, seed=0, batch=64, force=False)
# Not ru_maxrss, which begins with that of the process that started this one.
print(*[line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")])
"""


def test_memory_does_not_grow_with_the_number_of_images(exported: Path, tmp_path: Path) -> None:
    def peak_kib(n: int) -> int:
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path.cwd())!r})\n{PEAK}"]
        ran = subprocess.run(
            [*command, str(exported), str(n)], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return int(ran.stdout)

    few, many = peak_kib(64), peak_kib(4096)
    assert np.load(tmp_path / "x.npy", mmap_mode="r").shape == (4096, 8, 8, 1)
    # The grid of 4,096 alone has 17 MiB of pixels; a batch, whatever n, less than 2.
    assert many - few < 8 * 1024, f"{few} KiB for 64 images, {many} KiB for 4,096"
    print(f"peak of resident memory: {few} KiB for 64 images, {many} KiB for 4,096")
