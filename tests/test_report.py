"""`attvae report`: the page as a parser finds it; tests/test_report_page.py has a browser."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from launched import PLAIN, command, run
from parsed_html import Element, everything, parse
from PIL import Image
from typer.testing import CliRunner

from attvae import config
from attvae.cli import app
from attvae.data.loader import open_manifest
from attvae.evaluate import open_trained
from attvae.look import look
from attvae.report import make
from attvae.report.make import report, report_at_the_end
from attvae.report.pictures import PICTURES, embedded
from attvae.run_folder import RunFolder
from attvae.tracking.jsonl import read

SECRET = "Planted-In-The-Url"


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with the page that its end has made."""
    out = tmp_path_factory.mktemp("runs") / "tiny <b>"
    address = f"https://me:{SECRET}@127.0.0.1:9/"
    said = run(command(digits, out, PLAIN, f"tracking.uri={address}"))
    assert "no report" not in said
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def edit(path: Path, change) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def read_page(path: Path) -> Element:
    return parse(path.read_text())


def texts(element: Element) -> str:
    return " ".join(each.text for each in [element, *everything(element)])


def cells(root: Element, label: str) -> dict[str, dict[str, str]]:
    """row -> column -> text, of the table of this label."""
    (region,) = root.all("div", role="region", aria_label=label)
    heads = [head.text.replace("\n", " ") for head in region.all("th", scope="col")]
    rows = {}
    for row in region.all("tbody")[0].all("tr"):
        first, *others = row.children
        assert (first.tag, first.attributes["scope"]) == ("th", "row")
        assert len(row.children) == len(heads)
        rows[first.text] = dict(zip(heads[1:], [cell.text for cell in others], strict=True))
    return rows


def pixels(image: Element) -> np.ndarray:
    kind, data = image.attributes["src"].split(",")
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_the_end_of_a_run_makes_a_page_that_needs_nothing_else(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    root = parse(text)
    ids = [element.attributes["id"] for element in everything(root) if "id" in element.attributes]
    assert len(set(ids)) == len(ids)
    assert {link.attributes["href"] for link in root.all("a")} <= {f"#{name}" for name in ids}
    assert not root.all("script") + root.all("link") + root.all("b")
    assert re.findall(r'(?:src|href)="(?!data:image/webp;|#)|url\((?!#frame\))|@import', text) == []
    (policy,) = root.all("meta", http_equiv="Content-Security-Policy")
    assert policy.attributes["content"].startswith("default-src 'none';")
    assert len(root.all("h1")) == 1
    assert len(text) < 1_000_000
    assert not root.all("p", id="unfinished")
    assert SECRET in (finished / "config.yaml").read_text()
    assert SECRET not in text


def test_every_picture_of_a_look_is_there_pixel_for_pixel_and_described(finished: Path, tmp_path: Path) -> None:
    root = read_page(finished / "report.html")
    images = {image.attributes["data-picture"]: image for image in root.all("img")}
    cfg = config.load(finished / "config.yaml")
    model = open_trained(finished).model
    out = tmp_path / "looked"
    out.mkdir()
    figures = look(model, open_manifest(cfg.data), cfg.data, out, next(model.parameters()).device)
    assert {f"{name}.png" for name in images} == set(figures["pictures"])
    assert len({image.attributes["alt"] for image in images.values()}) == len(images)
    for name, image in images.items():
        assert len(image.attributes["alt"]) > 40
        expected = np.asarray(Image.open(out / f"{name}.png").convert("RGB"))
        assert np.array_equal(pixels(image), expected), name
        size = (int(image.attributes["height"]), int(image.attributes["width"]))
        assert size == expected.shape[:2]


def test_its_numbers_are_those_of_the_summary(finished: Path) -> None:
    root = read_page(finished / "report.html")
    summary = json.loads((finished / "summary.json").read_text())
    table = cells(root, "Figures of the trained model")
    for row, split in (("test", "test"), ("validation", "val")):
        found, errors = summary[split], summary[split]["standard_error"]
        for column, key in (("NELBO, nats", "nelbo_nats"), ("bits/dim", "bits_per_dim"), ("NLL, nats", "nll_nats")):
            value, error = map(float, table[row][column].split(" ± "))
            assert value == pytest.approx(found[key], abs=6e-5)
            assert error == pytest.approx(errors[key], abs=6e-5)
        assert float(table[row]["KL, nats"]) == pytest.approx(sum(found["kl_nats_per_layer"]), abs=6e-5)
        assert table[row]["number"] == f"{found['images']:,}"
    test, layers = summary["test"], cells(root, "The layers, 0 on top")
    nothing_known = layers.pop("none")
    assert nothing_known["KL, nats"] == "–"
    assert 0.5 < float(nothing_known["bits/dim with the layers below unknown"]) < 1, "one bit says nothing at all"
    assert len(layers) == 3
    for layer, row in layers.items():
        kl = test["kl_nats_per_layer"][int(layer)]
        units = test["active_units"]["per_layer"][int(layer)]
        assert float(row["KL, nats"].split(" ± ")[0]) == pytest.approx(kl, rel=1e-3)
        assert row["active units"] == f"{units['active']:,} of {units['units']:,}"
        assert float(row["of all KL"].rstrip("%")) == pytest.approx(
            100 * kl / sum(test["kl_nats_per_layer"]), abs=0.051
        )


def test_its_curves_have_every_row_of_the_journal(finished: Path) -> None:
    root = read_page(finished / "report.html")
    rows = read(finished / "metrics.jsonl")
    metrics = {name for row in rows for name in row if not name.startswith("test/")} - {"samples_seen", "time"}
    assert {svg.attributes["data-metric"] for svg in root.all("svg") if "data-metric" in svg.attributes} == metrics
    for metric in ("val/nelbo_nats", "train/nelbo_nats"):
        (svg,) = root.all("svg", data_metric=metric)
        shown = [float(re.search(r": ([\d,.]+) at", title.text)[1].replace(",", "")) for title in svg.all("title")]
        assert shown == pytest.approx([row[metric] for row in rows if metric in row], abs=6e-5)


def test_it_says_where_the_run_comes_from(finished: Path) -> None:
    root = read_page(finished / "report.html")
    about = json.loads((finished / "environment.json").read_text())
    data = {name: row["value"] for name, row in cells(root, "The data").items()}
    assert data["fingerprint"] == about["dataset"]["fingerprint"]
    assert [data[f"{name} images"] for name in ("training", "validation", "test")] == ["1,400", "100", "297"]
    machine = {name: row["value"] for name, row in cells(root, "Machine and versions").items()}
    assert (machine["torch"], machine["Python"]) == (about["packages"]["torch"], about["python"])
    assert machine["device"] == about["device"] == "CPU"
    if commit := about["git"].get("commit"):
        assert machine["git commit"] == commit
    (configuration,) = root.all("section", id="configuration")
    shown = yaml.safe_load("".join(part.text for part in configuration.all("pre")))
    expected = yaml.safe_load((finished / "config.yaml").read_text())
    assert shown.pop("tracking")["uri"] == "https://***@127.0.0.1:9/"
    assert shown == {key: value for key, value in expected.items() if key != "tracking"}
    (again,) = root.all("section", id="again")
    assert f"attvae train '{finished}'/config.yaml --out runs/again" in texts(again)
    assert (finished / "command.txt").read_text().replace(SECRET, "").split()[0] in texts(again)


def test_the_command_makes_the_same_page(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "there" / "page.html"
    done = CliRunner().invoke(app, ["report", str(finished), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert re.fullmatch(rf"{re.escape(str(out))}: 0\.\d MB\n", done.stdout)
    assert _comparable(out.read_text()) == _comparable((finished / "report.html").read_text())


def _comparable(text: str) -> str:
    """Another batch, or another number of threads, may change the last bits of what is drawn from."""
    return re.sub(r'src="[^"]*"', "", text)


# ------------------------------------------------------------------------------------------------- less than a run


def test_an_unfinished_run_is_marked_and_shows_its_newest_checkpoint(copied: Path) -> None:
    (copied / "summary.json").unlink()
    shutil.rmtree(copied / "checkpoints" / "000000002000")
    assert "the run is unfinished" in report(copied, None)
    root = read_page(copied / "report.html")
    (mark,) = root.all("p", id="unfinished")
    assert "of 2,000 samples" in mark.text
    assert "at 1,000 samples seen, 64 validation images" in texts(root.all("section", id="makes")[0])
    newest = [row["val/nelbo_nats"] for row in read(copied / "metrics.jsonl") if "val/nelbo_nats" in row][-1]
    shown = cells(root, "The newest figures of the training")["NELBO, nats"]["value"]
    assert float(shown) == pytest.approx(newest, abs=6e-5)
    assert "Figures of the trained model" not in texts(root)
    assert root.all("section", id="attention")


def test_without_a_checkpoint_there_are_curves_and_what_the_training_drew(copied: Path) -> None:
    shutil.rmtree(copied / "checkpoints")
    (copied / "summary.json").unlink()
    assert "no complete checkpoint" in report(copied, None)
    root = read_page(copied / "report.html")
    assert {image.attributes["data-picture"] for image in root.all("img")} == {
        path.stem.rpartition("-")[0] for path in (copied / "images").glob("*.png")
    }
    assert root.all("svg", data_metric="val/nelbo_nats")
    assert root.all("section", id="configuration")


def test_a_run_that_has_hardly_begun(copied: Path) -> None:
    for name in ("checkpoints", "images"):
        shutil.rmtree(copied / name)
    for name in ("summary.json", "metrics.jsonl", "command.txt", "environment.json", "status.json"):
        (copied / name).unlink()
    report(copied, None)
    root = read_page(copied / "report.html")
    assert "0 of 2,000 samples" in root.all("p", id="unfinished")[0].text
    assert "None yet" in texts(root.all("section", id="curves")[0])


def test_a_run_of_before_there_were_standard_errors(copied: Path) -> None:
    def older(summary) -> None:
        for split in ("test", "val", "test_without_depth_attention"):
            for name in ("standard_error", "active_units", "draws"):
                summary[split].pop(name, None)

    edit(copied / "summary.json", older)
    edit(copied / "environment.json", lambda about: [about.pop(name) for name in ("dataset", "device", "ranks")])
    report(copied, None)
    root = read_page(copied / "report.html")
    assert "±" not in texts(root.all("div", role="region", aria_label="Figures of the trained model")[0])
    assert "attvae evaluate" in texts(root.all("section", id="figures")[0])
    assert cells(root, "The data")["training images"]["value"] == "1,400", "found in the manifest now"


@pytest.mark.parametrize("there", [True, False], ids=["other data", "no data"])
def test_without_the_data_of_the_training_it_says_why_there_are_no_pictures(copied: Path, there: bool, digits) -> None:
    data = copied.parent / "data"
    if there:
        shutil.copytree(digits, data)
        edit(data / "manifest.json", lambda manifest: manifest.update(version="2"))
    cfg = yaml.safe_load((copied / "config.yaml").read_text())
    cfg["data"]["path"] = str(data)
    (copied / "config.yaml").write_text(yaml.safe_dump(cfg))
    said = report(copied, None)
    assert ("version 2, not 1" if there else f"python -m data_prep NAME --out {data}") in said
    (section,) = read_page(copied / "report.html").all("section", id="pictures")
    assert "could not be looked at" in texts(section)
    assert section.all("img", data_picture="samples")


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda p: [str(p / "none")], "is no run folder"),
        (lambda p: [str(p)], "is no run folder"),
        (lambda p: ["RUN", "--out", str(p)], "cannot be written"),
        (lambda p: ["RUN", "--out", str(p / "run" / "config.yaml" / "page.html")], "cannot be written"),
    ],
)
def test_bad_input(copied: Path, tmp_path: Path, prepare, says: str) -> None:
    before = (copied / "report.html").stat().st_mtime_ns
    arguments = [str(copied) if argument == "RUN" else argument for argument in prepare(tmp_path)]
    done = CliRunner().invoke(app, ["report", *arguments])
    assert done.exit_code == 2
    assert says in done.stderr
    assert (copied / "report.html").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("environment.json", "[]", "environment.json holds no JSON object"),
        ("environment.json", '{"git": 3}', "a file of the run cannot be read"),
        ("status.json", "[]", "status.json holds no JSON object"),
        ("status.json", '{"status": "WEIRD"}', "status.json says status 'WEIRD'"),
        ("summary.json", "[]", "summary.json holds no JSON object"),
        ("summary.json", '{"samples_seen": 2000}', "summary.json is damaged: it has no test figure nelbo_nats"),
        ("summary.json", "\xff", "summary.json"),
        ("metrics.jsonl", '{"samples_seen": 100, "time": "NaN", "val/nelbo_nats": 1}\n', "has no time"),
    ],
)
def test_damaged_files(copied: Path, file: str, content: str, says: str) -> None:
    (copied / file).write_bytes(content.encode("latin-1"))
    done = CliRunner().invoke(app, ["report", str(copied)])
    assert done.exit_code == 2, done.output
    assert str(copied) in done.stderr
    assert says in done.stderr


def test_a_damaged_picture_is_named_on_the_page(copied: Path) -> None:
    shutil.rmtree(copied / "checkpoints")
    (copied / "command.txt").write_bytes(b"attvae train \xff\n")
    cut, empty = sorted((copied / "images").glob("*-000000002000.png"))[:2]
    cut.write_bytes(cut.read_bytes()[:300])
    empty.write_bytes(b"")
    report(copied, None)
    root = read_page(copied / "report.html")
    for path in (cut, empty):
        assert f"The picture {path.name.rpartition('-')[0]} is damaged" in texts(root)
    assert len(root.all("img")) == 2


def test_a_password_in_the_source_of_the_data_is_struck_out(copied: Path) -> None:
    source = f"https://me:{SECRET}@example.org/digits.zip"
    edit(copied / "environment.json", lambda about: about["dataset"].update(source=source))
    report(copied, None)
    assert SECRET not in (copied / "report.html").read_text()


def test_what_goes_wrong_in_a_report_costs_a_finished_run_one_warning(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(make, "look_at", fail)
    (copied / "report.html").unlink()
    cfg = config.load(copied / "config.yaml")
    trained = open_trained(copied)
    report_at_the_end(RunFolder(copied), cfg, trained.model, open_manifest(cfg.data), 2000)
    (warning,) = capsys.readouterr().err.splitlines()
    assert "no report (RuntimeError: out of memory); the run is complete" in warning
    assert not (copied / "report.html").exists()


def test_a_large_picture_is_made_smaller() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2400, 3), dtype=np.uint8)
    photograph = Image.fromarray(noise).resize((300, 200)).resize((2400, 1500), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    photograph.save(file, format="PNG")
    source, width, height = embedded(file.getvalue())
    assert (width, height) == (1600, 1000)
    assert len(source) < 450_000 < len(file.getvalue())
    assert len(source) * len(PICTURES) < 5_000_000
