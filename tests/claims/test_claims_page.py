"""The results page, read by another library's Markdown, and its pictures by Pillow."""

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launched import REPOSITORY
from made_study import VARIANTS, cell, failed, grid, missing, study
from markdown_it import MarkdownIt
from PIL import Image

from attvae.claims import page as page_module
from attvae.claims.charts import nelbo_chart
from attvae.claims.page import write_page
from attvae.claims.results import done, read_results
from attvae.claims.verdicts import verdicts

LARGEST_PICTURE = 60_000
BLUE = (0x00, 0x72, 0xB2)
ORANGE = (0xE6, 0x9F, 0x00)


class Page:
    """A page as a reader sees it."""

    def __init__(self, docs: Path) -> None:
        self.text = (docs / "results.md").read_text()
        tokens = MarkdownIt("commonmark").enable("table").parse(self.text)
        self.headings: list[str] = []
        self.pictures: list[Path] = []
        self.tables: dict[str, list[list[str]]] = {}
        """By the last heading before: the rows, the columns' names first."""
        rows: list[list[str]] = []
        for before, token in itertools.pairwise(tokens):
            if before.type == "heading_open":
                self.headings.append(token.content)
            elif before.type in ("th_open", "td_open"):
                rows[-1].append(token.content)
            elif token.type == "table_open":
                rows = self.tables.setdefault(self.headings[-1], [])
            elif token.type == "tr_open":
                rows.append([])
            for child in token.children or []:
                if child.type == "image":
                    self.pictures.append(docs / str(child.attrs["src"]))


def nearest_first(n: int) -> list[float]:
    weights = [1 / (1 + i) for i in range(n)]
    return [each / sum(weights) for each in weights]


def whole() -> dict[str, Any]:
    noise = random.Random(0)
    cells = grid(
        lambda d, v, s: 24 - math.log2(d) / 4 - VARIANTS.index(v) / 5 + noise.gauss(0, 0.1), alpha=nearest_first
    )
    for each in cells:
        end = each["test"]["nelbo_nats"]["value"] + 0.5
        each["validation_curve"] = [[2_000 * i, end + 30 / i - 0.6 + noise.gauss(0, 0.1)] for i in range(1, 51)]
        each["test"]["kl_nats_per_layer"] = [5 * 0.3**i * (1 + noise.random()) for i in range(each["depth"])]
    return study(cells)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    docs = tmp_path_factory.mktemp("docs")
    write_page(whole(), docs)
    return docs


def test_verdicts_come_first(written: Path) -> None:
    page = Page(written)
    assert page.headings[:2] == ["The paper's claims, tested: study digits", "Verdicts"]
    expected = verdicts(read_results(whole()))
    rows = page.tables["Verdicts"]
    assert rows[0] == ["claim", "verdict", "numbers"]
    assert [row[:2] for row in rows[1:]] == [[each.claim, f"**{each.outcome}**"] for each in expected]
    assert rows[1][2] == expected[0].sentence


def test_head(written: Path) -> None:
    head = Page(written).text.partition("## Verdicts")[0]
    for words in (
        "attvae claims configs/claims/digits.yaml",
        "36 of 36 done, 0 failed, 0 missing",
        "Chosen on: the validation images",
        "Limits: Tiny images.",
        "`f34ec58`",
        "between 2026-11-23T20:00:00Z and 2026-11-23T22:00:00Z",
        "A processor, 2 CPUs, trained on CPU; torch 2.13.0, Python 3.11.7",
        "Not asked for (`--full`): equal_time, photographs",
    ):
        assert words in head


def test_figures_of_a_row(written: Path) -> None:
    rows = Page(written).tables["Set `depth`"]
    of_both = [each for each in whole()["cells"] if (each["depth"], each["variant"]) == (4, "both")]
    nelbo = [each["test"]["nelbo_nats"]["value"] for each in of_both]
    row = next(row for row in rows if row[:2] == ["4", "both"])
    assert row[2:4] == ["3 of 3", f"{np.mean(nelbo):.2f} ± {np.std(nelbo, ddof=1) / math.sqrt(3):.2f}"]
    assert row[5:] == ["30,004", "+0.0", "100,000", "1.000 ± 0.000", "0.400 ± 0.000"]
    assert len(rows) == 1 + 12


def test_pictures_are_small_and_there(written: Path) -> None:
    pictures = Page(written).pictures
    assert {each.name for each in pictures} == {
        f"digits_depth_{kind}.png" for kind in ("nelbo", "curves", "kl", "attention")
    }
    for each in pictures:
        assert each.stat().st_size <= LARGEST_PICTURE
        with Image.open(each) as image:
            image.verify()
            assert image.format == "PNG"


def test_json_is_what_was_given(written: Path) -> None:
    assert json.loads((written / "results" / "digits.json").read_text()) == whole()


def test_all_cells_are_listed_and_how_to_get_one_again(written: Path) -> None:
    page = Page(written)
    assert [row[0] for row in page.tables["All cells"][1:]] == [f"`{each['id']}`" for each in whole()["cells"]]
    again = page.text.partition("## One cell again")[2]
    assert "\nattvae claims configs/claims/digits.yaml --cell ID --out NEW\n" in again


@pytest.mark.parametrize(
    ("command", "again"),
    [
        ("attvae claims --full --out 'a folder'", "attvae claims --cell ID --out NEW"),
        ("attvae claims --page docs 'my study.yml'", "attvae claims 'my study.yml' --cell ID --out NEW"),
    ],
)
def test_a_cell_again_is_of_the_same_study(command: str, again: str, tmp_path: Path) -> None:
    write_page({**study([missing(2, "none", 0)]), "command": command}, tmp_path)
    assert f"\n{again}\n" in Page(tmp_path).text


def test_sets_that_were_not_asked_for(tmp_path: Path) -> None:
    """What another command has run of them is shown; what is missing of them is not counted."""
    cells = [cell(2, v, s) for v in ("none", "both") for s in range(3)]
    cells += [cell(2, "none", 0, set_name="equal_time"), missing(2, "none", 1, "equal_time")]
    write_page(study([*cells, missing(2, "both", 0, "photographs")]), tmp_path)
    page = Page(tmp_path)
    assert "Cells: 6 of 6 done, 0 failed, 0 missing. Run beside: 1 of 2 of `equal_time`." in page.text
    assert "Not asked for (`--full`): photographs." in page.text
    assert page.tables["Set `equal_time`"][1][:3] == ["2", "none", "1 of 2"]
    assert "Set `photographs`" not in page.headings
    assert "1 of 2 baselines run" in page.text
    assert len(page.tables["All cells"]) == 1 + 7


def test_the_same_page_again(written: Path, tmp_path: Path) -> None:
    write_page(whole(), tmp_path)
    for each in written.rglob("*.*"):
        assert (tmp_path / each.relative_to(written)).read_bytes() == each.read_bytes()


def test_failed_and_missing_cells_are_told(tmp_path: Path) -> None:
    cells = [cell(4, "none", s) for s in range(3)] + [cell(4, "both", 0, 22.0), failed(4, "both", 1)]
    cells[-1]["reason"] = "NELBO |x|\nis NaN"
    write_page(study([*cells, missing(4, "both", 2), missing(8, "both", 0)]), tmp_path)
    page = Page(tmp_path)
    assert "**Cells: 4 of 7 done, 1 failed, 2 missing.** The same command goes on." in page.text
    listed = {row[0]: row[1] for row in page.tables["All cells"][1:]}
    assert listed["`depth/04_both_seed-1`"] == "failed: NELBO |x| is NaN"
    assert listed["`depth/08_both_seed-0`"] == "missing"
    by_variant = {(row[0], row[1]): row[2:4] for row in page.tables["Set `depth`"][1:]}
    assert by_variant["4", "both"] == ["1 of 3", "22.00 (one seed)"]
    assert by_variant["8", "both"] == ["0 of 1", "–"]
    assert "not measured" in page.tables["Verdicts"][1][1]


def test_a_study_that_has_nothing_yet(tmp_path: Path) -> None:
    write_page(study([missing(2, "none", 0), missing(2, "both", 0)]), tmp_path)
    page = Page(tmp_path)
    assert page.pictures == []
    assert "0 of 2 done, 0 failed, 2 missing" in page.text
    assert "None of its cells is done." in page.text


def test_further_sets_have_their_own_sections(tmp_path: Path) -> None:
    cells = [cell(2, v, s, 23.0 - (v == "both") + s / 10) for v in ("none", "both") for s in range(3)]
    cells += [cell(2, "none", s, 22.9 + s / 10, set_name="equal_time") for s in range(3)]
    cells += [
        cell(2, v, s, 200.0 - 9 * (v == "both") + s, set_name="photographs") for v in ("none", "both") for s in range(3)
    ]
    write_page({**study(cells), "full": True}, tmp_path)
    page = Page(tmp_path)
    photographs = page.tables["Set `photographs`"]
    assert photographs[0][3] == "test NELBO, bits/dim"
    assert photographs[1][3].startswith(f"{201 / 64 / math.log(2):.3f} ±")
    judged = [row for row in photographs if row[0].startswith("Attention over the depth")]
    assert [row[1] for row in judged] == ["**shown**"]
    assert f"−{9 / 64 / math.log(2):.3f} bits/dim" in judged[0][2]
    assert "test NELBO with attention less that without: −0.90 nats" in page.tables["Verdicts"][3][2]
    assert "compared with `both` of the set `depth`" in page.text
    assert "photographs_kl.png" in page.text
    assert "photographs_nelbo.png" not in page.text  # of one depth nothing is drawn against depth
    assert "equal_time_curves.png" in page.text
    assert "−9.00" not in page.tables["Verdicts"][1][2]  # photographs are not mixed in


def test_a_page_that_cannot_be_made_leaves_the_old_one(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: Any) -> None:
        raise OSError("no space left")

    before = {each: each.read_bytes() for each in written.rglob("*.*")}
    monkeypatch.setattr(page_module, "kl_chart", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_page(study(grid(lambda depth, *_: 20.0 + depth)), written)  # whose pictures differ
    assert {each: each.read_bytes() for each in written.rglob("*.*")} == before


def test_a_picture_that_the_page_no_longer_has_goes(written: Path) -> None:
    other = written / "results/digits_pictures.png"
    other.touch()
    assert (written / "results/digits_depth_nelbo.png").is_file()
    write_page(study(grid(lambda *_: 20.0, depths=[2])), written)
    assert not (written / "results/digits_depth_nelbo.png").exists()
    assert (written / "results/digits_depth_kl.png").is_file()
    assert other.exists()


def test_the_page_in_the_documentation_is_that_of_its_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for chart in ("nelbo_chart", "curves_chart", "kl_chart", "attention_chart"):
        monkeypatch.setattr(page_module, chart, lambda *_: None)
    docs = REPOSITORY / "docs"
    write_page(json.loads((docs / "results/digits.json").read_text()), tmp_path)
    assert (tmp_path / "results.md").read_text() == (docs / "results.md").read_text()


def test_a_variant_keeps_its_colour(tmp_path: Path) -> None:
    """Whichever others are on a chart."""
    cells = read_results(study([cell(d, "both", 0, 20.0 + d) for d in (2, 4)])).cells
    nelbo_chart(done(cells), VARIANTS, "nats", tmp_path / "both.png")
    with Image.open(tmp_path / "both.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int).reshape(-1, 3)
    near = {colour: int((np.abs(pixels - colour).max(axis=1) < 8).sum()) for colour in (BLUE, ORANGE)}
    assert near[BLUE] > 100
    assert near[ORANGE] == 0
