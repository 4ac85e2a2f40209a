"""The page of `attvae compare` as a parser finds it; tests/test_compare_page.py has a browser."""

import base64
import math
import re
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from parsed_html import Element, everything, parse
from written_runs import png, row, write_run

from attvae.compare.page import page
from attvae.compare.runs import read_runs
from attvae.pages.axis import around, from_zero
from attvae.pages.curves import COLOURS, DASHES, curves, extent_of, style_of
from attvae.pages.document import STYLE, write_page


def points(svg: Element, run: str) -> list[tuple[float, float]]:
    return [
        tuple(map(float, point.split(",")))
        for line in svg.all("polyline", data_run=run)
        for point in line.attributes["points"].split()
    ]


@pytest.fixture
def two_runs(tmp_path) -> list[str]:
    """Of two and of three layers; the second is still going."""

    def rows(layers: int, steps: int) -> list[dict]:
        return [
            row(
                100 * i,
                50.0 * i,
                val__nelbo_nats=90 / i,
                perf__images_per_s=2.0,
                train__grad_norm="NaN" if i == 3 else 1.0 * i,
                **{f"val_kl__layer_{layer:02d}": layer + i / 10 for layer in range(layers)},
            )
            for i in range(1, steps + 1)
        ]

    pictures = {("samples", 200): 10, ("samples", 400): 20, ("layer_kl", 400): 30}
    return [
        write_run(tmp_path / "two", rows(2, 5), {"model": {"num_layers": 2}}, pictures),
        write_run(tmp_path / "three", rows(3, 4), {"model": {"num_layers": 3}}, {("samples", 200): 40}),
    ]


def test_the_page_is_well_formed_and_needs_nothing_else(two_runs):
    text = page(read_runs(two_runs, None))
    root = parse(text)
    ids = [element.attributes["id"] for element in everything(root) if "id" in element.attributes]
    assert len(set(ids)) == len(ids)
    assert {"runs", "config", "equal-samples", "equal-time", "curves", "layers", "pictures"} <= set(ids)
    assert {link.attributes["href"] for link in root.all("a")} <= {f"#{name}" for name in ids}
    assert not root.all("script") + root.all("link")
    assert re.findall(r"https?:|url\((?!#frame\))|@import", text) == []
    (policy,) = root.all("meta", http_equiv="Content-Security-Policy")
    assert policy.attributes["content"].startswith("default-src 'none';")
    for element in everything(root):
        assert not any(name.startswith("on") for name in element.attributes)


def test_tables_have_headers(two_runs):
    root = parse(page(read_runs(two_runs, None)))
    for table in root.all("table"):
        heads = table.all("th", scope="col")
        for tr in table.all("tbody")[0].all("tr"):
            assert [cell.tag for cell in tr.children] == ["th"] + ["td"] * (len(heads) - 1)
            assert tr.children[0].attributes["scope"] == "row"


def test_every_value_is_a_point_of_a_curve(two_runs):
    root = parse(page(read_runs(two_runs, None)))
    for by in ("samples", "time"):
        (svg,) = root.all("svg", data_metric="val/nelbo_nats", data_by=by)
        assert len(points(svg, "two")) == 5
        assert len(points(svg, "three")) == 4
        assert len(svg.all("circle")) == 9
        assert "two: 18, three: 22.5" in svg.attributes["aria-label"]
        assert svg.attributes["role"] == "img"
    metrics = {svg.attributes["data-metric"] for svg in root.all("svg") if "data-metric" in svg.attributes}
    layers = {f"val_kl/layer_{layer:02d}" for layer in range(3)}
    assert metrics == {"val/nelbo_nats", "perf/images_per_s", "train/grad_norm"} | layers


def test_points_lie_where_the_numbers_are(two_runs):
    runs = read_runs(two_runs, None)
    for by in ("samples", "time"):  # 50 s before each row, the first one too
        svg = parse(curves("perf/images_per_s", runs, by, extent_of(runs)))
        across = [x for x, _ in points(svg, "two")]
        texts = [text for text in svg.all("text") if text.attributes["text-anchor"] == "middle"]
        assert across[-1] == pytest.approx(404, abs=0.1)  # the end of the longest run is the right edge
        steps = [b - a for a, b in pairwise(across)]
        assert steps == pytest.approx([steps[0]] * 4, abs=0.11)
        zero = float(texts[0].attributes["x"])
        assert texts[0].text == "0"
        assert (across[0] - zero) / (across[-1] - zero) == pytest.approx(1 / 5, abs=0.001)


def test_a_value_that_is_not_finite_breaks_the_curve(two_runs):
    runs = read_runs(two_runs, None)
    svg = parse(curves("train/grad_norm", runs, "samples", extent_of(runs)))
    stretches = [len(line.attributes["points"].split()) for line in svg.all("polyline", data_run="two")]
    assert stretches == [2, 2]
    assert "2 not finite, left out" in [text.text for text in svg.all("text")][-1]


def test_a_wild_start_does_not_press_the_rest_into_a_line(tmp_path):
    start = {1: 1e6, 2: -5.0, 3: 0.0}
    rows = [row(10 * i, i, x=start.get(i, 1000.0 / i), y=start.get(i, 2.0 + i / 100)) for i in range(1, 101)]
    short = [row(10, 1, x=300.0, y=9.0)]  # has just begun: not to be left out
    runs = read_runs([write_run(tmp_path / "long", rows), write_run(tmp_path / "short", short)], None)
    for metric, note in (("x", "logarithmic · early values outside"), ("y", "early values outside")):
        svg = parse(curves(metric, runs, "samples", extent_of(runs)))
        assert [text.text for text in svg.all("text")][-1] == f"samples seen · {note}"
        downs = [down for _, down in points(svg, "long")]
        assert downs[0] < 0 < 250 < downs[1]
        assert max(downs[10:]) - min(downs[10:]) > (100 if metric == "x" else 20)
        assert all(10 <= down <= 210 for down in downs[10:])
        assert all(10 <= down <= 210 for _, down in points(svg, "short"))


def test_long_curves_keep_their_extremes(tmp_path):
    rows = [row(10 * i, i, x=math.sin(i / 300)) for i in range(1, 10_001)]
    rows[4321]["x"], rows[7000]["x"] = 77.0, -55.0
    runs = read_runs([write_run(tmp_path / "long", rows), write_run(tmp_path / "none", [])], None)
    svg = parse(curves("x", runs, "samples", extent_of(runs)))
    places = points(svg, "long")
    assert 200 < len(places) <= 300
    assert places == sorted(places, key=lambda place: place[0])
    downs = sorted(down for _, down in places)
    (across_top,) = [x for x, down in places if down == downs[0]]
    assert across_top == pytest.approx(52 + 352 * 43_220 / 100_000, abs=0.1)
    assert min(downs[1] - downs[0], downs[-1] - downs[-2]) > 50
    assert not svg.all("circle")


def test_pictures_of_the_newest_common_step(two_runs):
    root = parse(page(read_runs(two_runs, None)))
    shown = {(img.attributes["data-run"], img.attributes["data-picture"]): img.attributes for img in root.all("img")}
    assert shown.keys() == {("two", "samples"), ("three", "samples"), ("two", "layer_kl")}
    for run, grey in (("two", 10), ("three", 40)):
        img = shown[run, "samples"]
        assert (img["data-step"], img["alt"]) == ("200", f"samples of {run} at 200 samples seen")
        kind, data = img["src"].split(",")
        assert (kind, base64.b64decode(data)) == ("data:image/png;base64", png(grey))
    assert shown["two", "layer_kl"]["data-step"] == "400"
    assert "three: none" in [caption.text for caption in root.all("figcaption")]


def test_layers_as_bars_on_one_scale(two_runs):
    root = parse(page(read_runs(two_runs, None)))
    (section,) = root.all("section", id="layers")
    assert "at 400 samples seen" in section.all("p")[0].text
    bars = {
        run: [float(bar.attributes["height"]) for bar in section.all("svg", data_kl_run=run)[0].all("rect")]
        for run in ("two", "three")
    }
    nats = {"two": [0.4, 1.4], "three": [0.4, 1.4, 2.4]}
    unit = bars["three"][2] / 2.4
    for run in bars:
        assert bars[run] == pytest.approx([value * unit for value in nats[run]], abs=0.1)
    places = [[bar.attributes["x"] for bar in svg.all("rect")] for svg in section.all("svg")]
    assert places[0] == places[1][:2]
    assert [title.text for title in section.all("title")][:2] == ["layer 0: 0.4000 nats", "layer 1: 1.4000 nats"]


def test_what_comes_from_runs_is_escaped(tmp_path):
    evil = '"><img src=x onerror=alert(1)>&amp;'
    name = "<b>&\"'"
    config = {"tracking": {"run_name": evil}, "long": "<i>" * 100}
    named = [
        write_run(tmp_path / name, [row(100, 0, **{f"val/{evil}": 1.0})], config, {("samples<b>", 100): 1}),
        write_run(tmp_path / "b", [], status={"status": "FAILED", "reason": evil}),
    ]
    text = page(read_runs(named, None))
    root = parse(text)
    assert root.all("b") + root.all("i") + root.all("script") == []
    assert [img.attributes["alt"] for img in root.all("img")] == [f"samples<b> of {name} at 100 samples seen"]
    assert evil in [td.text for td in root.all("section", id="config")[0].all("td")]
    assert f"FAILED: {evil}" in [td.text for td in root.all("section", id="runs")[0].all("td")]
    assert f"val/{evil}" in {svg.attributes.get("data-metric") for svg in root.all("svg")}
    (details,) = root.all("section", id="config")[0].all("details")
    assert details.all("summary")[0].text.removesuffix(" …") + details.text == "<i>" * 100


def test_runs_without_anything(tmp_path):
    root = parse(page(read_runs([write_run(tmp_path / name, []) for name in "ab"], None)))
    assert {section.attributes["id"] for section in root.all("section")} == {"runs", "curves"}


def test_a_run_of_one_row(tmp_path):
    named = [write_run(tmp_path / name, [row(100, 5, x=3.0)]) for name in "ab"]
    root = parse(page(read_runs(named, None)))
    (svg,) = root.all("svg", data_metric="x", data_by="time")
    assert len(svg.all("circle")) == 2


def test_a_dozen_runs_all_look_different(tmp_path):
    named = [write_run(tmp_path / f"r{i}", [row(100, 0, x=i)], None, {("samples", 100): i}) for i in range(12)]
    root = parse(page(read_runs(named, None)))
    assert root.all("h1")[0].text == "12 runs"
    lines = root.all("svg", data_metric="x", data_by="samples")[0].all("polyline")
    assert len({(line.attributes["class"], line.attributes["stroke-dasharray"]) for line in lines}) == 12
    assert len(root.all("img")) == 12
    assert len({style_of(i) for i in range(30)}) == 30
    assert all(style_of(i).split("dasharray=")[1] != style_of(i + 1).split("dasharray=")[1] for i in range(30))
    assert len(set(DASHES)) == 5


def test_different_data_are_said_on_the_page(tmp_path):
    named = [write_run(tmp_path / name, [], {"data": {"path": name}}) for name in "ab"]
    out = tmp_path / "page.html"
    write_page(page(read_runs(named, None)), out)
    (careful,) = parse(out.read_text()).all("p", **{"class": "careful"})
    assert "perhaps different data sets" in careful.text


def linear(colour: str) -> np.ndarray:
    """Of #rrggbb, the light that a screen gives off in each channel."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    """WCAG 2's contrast ratio."""
    dark, light = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (a, b))
    return (light + 0.05) / (dark + 0.05)


SIGHT = {  # Machado, Oliveira & Fernandes 2009, severity 1.0
    "all cones": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour: str, sight: str) -> np.ndarray:
    """CIELAB as one with this sight sees it: 2.3 apart is a just noticeable difference."""
    seen = np.clip(np.array(SIGHT[sight]) @ linear(colour), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    t = xyz / [0.9505, 1, 1.089]
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_colours_stand_out_from_the_paper_and_from_each_other():
    themes = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.DOTALL)
    assert len(themes) == 2
    for theme in themes:
        colours = {
            name: value if len(value) == 7 else "#" + "".join(2 * c for c in value[1:])
            for name, value in re.findall(r"--(\w+): (#\w+);", theme)
        }
        of_runs = [colours[f"c{i}"] for i in range(COLOURS)]
        for paper in ("paper", "panel"):
            assert contrast(colours["ink"], colours[paper]) > 7
            assert contrast(colours["faint"], colours[paper]) > 4.5
            assert min(contrast(colour, colours[paper]) for colour in of_runs) > 3
        for sight in SIGHT:
            for a, b in combinations(of_runs, 2):
                assert np.linalg.norm(lab(a, sight) - lab(b, sight)) > 20, (sight, a, b)


# ---------------------------------------------------------------------------------------------------------- the axes

SIZES = {"G": 1e9, "M": 1e6, "k": 1e3}


def number(label: str) -> float:
    return float(label.rstrip("GMk")) * SIZES.get(label[-1], 1.0)


@given(
    st.lists(st.floats(-1e100, 1e100), min_size=1, max_size=9)
    | st.lists(st.floats(1e-40, 1e40), min_size=1, max_size=9)
    | st.lists(st.floats(20.0, 20.1), min_size=1, max_size=9)
)
@example([22.4, math.nextafter(22.4, 23)])
@example([0.0])
@example([5e-324, 1.0])
def test_axes_hold_their_numbers_and_label_them_right(numbers):
    axis = around(numbers)
    assert all(-1e-9 <= axis.place(n) <= 1 + 1e-9 for n in numbers)
    labels = [label for _, label in axis.ticks]
    assert len(set(labels)) == len(labels)
    assert 2 <= len(labels) <= 12
    for at, label in axis.ticks:
        assert -1e-6 < axis.place(at) < 1 + 1e-6
        assert number(label) == pytest.approx(at, rel=0.01, abs=1e-3 * (axis.high - axis.low))


@given(st.floats(1e-6, 1e12), st.sampled_from([1.0, 60.0, 3600.0]))
def test_axes_from_zero(high, unit):
    axis = from_zero(high, unit)
    assert (axis.place(0.0), axis.place(high)) == (0.0, 1.0)
    for at, label in axis.ticks:
        assert number(label) * unit == pytest.approx(at, rel=0.01, abs=1e-3 * high)
