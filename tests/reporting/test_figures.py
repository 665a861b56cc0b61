"""Figures of reports as PNG and SVG."""

import struct
import threading
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from zarrpipe.reporting import periodic_table
from zarrpipe.reporting.contents import Figure, Kind, Series
from zarrpipe.reporting.figures import svg, write_plots
from zarrpipe.reporting.measure import report
from zarrpipe.reporting.periodic_table import PLACES
from zarrpipe.store.query.elements import SYMBOLS

from . import examples

rc_params = pytest.importorskip("matplotlib").rcParams

SVG = "{http://www.w3.org/2000/svg}"


def texts(figure: Figure) -> list[str]:
    return ["".join(one.itertext()) for one in ET.fromstring(svg(figure)).iter(f"{SVG}text")]


def test_each_figure_is_a_picture_with_its_name(tmp_path):
    written = write_plots(examples.example(), tmp_path / "plots")
    assert [path.name for path in written] == [f"{one.name}.png" for one in examples.FIGURES]
    for path in written:
        head = path.read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", head[16:])[0] == 810


@pytest.mark.parametrize("figure", examples.FIGURES, ids=lambda figure: figure.name)
def test_labels_are_text(figure):
    found = texts(figure)
    assert [one for one in (figure.x_label, figure.y_label) if one and one not in found] == []
    assert set(svg(figure).split('"')) & {"axes_1", "figure_1"} == set()  # ids, which repeat
    for series in figure.series if len(figure.series) > 1 else ():
        assert series.name in found
    if figure.kind is Kind.BARS:
        assert set(figure.series[0].labels) <= set(found)


def test_small_numbers_and_long_names_are_whole():
    """Coordinates are shortened, and labels are not."""
    edges = np.array([0.0, 0.002, 0.004])
    series = (Series("v1.23456", np.ones(2), edges), Series("b", np.ones(2), edges))
    found = texts(Figure("small", "Small", Kind.HISTOGRAM, series))
    assert {"0.001", "0.004", "v1.23456"} <= {*found}


def test_a_single_value_is_text_and_integers_have_integer_ticks(clean):
    found = {
        figure.name: figure for part in report(clean.store).sections for figure in part.figures
    }
    assert texts(found["sizes"]) == ["all are 8", "atoms"]
    assert found["energies"].log_y is (found["energies"].series[0].y.max() >= 20)
    assert not found["volumes"].log_x  # less than a decade
    ticks = [one for one in texts(found["volumes"]) if one.replace(".", "").isdigit()]
    assert len(ticks) == len({*ticks}) >= 4
    edges = np.arange(1.5, 5)
    whole = Figure("n", "N", Kind.HISTOGRAM, (Series("atoms", np.ones(3), edges),))
    assert texts(whole)[:3] == ["2", "3", "4"]


def test_shades_have_a_colour_bar():
    points = examples.FIGURES[3]
    shaded = replace(points.series[0], shades=np.linspace(-0.5, 0.5, 2000))
    drawn = replace(points, series=(shaded,), shade_label="energy off (eV/atom)")
    assert "energy off (eV/atom)" in texts(drawn)
    assert "energy off (eV/atom)" not in texts(replace(points, shade_label="energy off (eV/atom)"))


def test_svg_is_the_same_twice_and_takes_the_colour_of_the_page():
    figure = examples.FIGURES[0]
    assert svg(figure) == svg(figure)
    assert "currentColor" in svg(figure)


def test_many_points_are_a_picture():
    few = replace(examples.FIGURES[3], series=(Series("few", np.arange(9.0), np.arange(9.0)),))
    many = Series("many", np.random.default_rng(0).normal(size=50_000), np.arange(50_000.0))
    assert "<image" not in svg(few)
    assert "<image" in svg(replace(few, series=(many,)))
    assert len(svg(replace(few, series=(many,)))) < 150_000


def test_periodic_table_has_each_element_once():
    assert sorted(PLACES) == sorted(SYMBOLS[1:119])
    assert len(set(PLACES.values())) == 118
    assert PLACES["He"] == (0, 17)
    assert PLACES["Fe"] == (3, 7)
    assert PLACES["Hf"] == (5, 3)


@pytest.mark.parametrize(
    ("values", "log", "ends"),
    [
        ((100.0, 100.0), True, (0, 100)),
        ((1.0, 9.0), True, (0, 9)),
        ((1.0, 10.0), True, (1, 10)),
        ((1.0, 99.0), False, (0, 99)),
        ((1.0, 100.0), False, (1, 100)),
        ((-2.0, 100.0), True, (-2, 100)),
        ((), True, (0, 1)),
    ],
)
def test_colours_of_elements(values, log, ends):
    found = periodic_table._scale(list(values), log=log)
    assert (found.vmin, found.vmax) == ends
    assert type(found).__name__ == ("LogNorm" if ends[0] == 1 else "Normalize")


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("log", [False, True])
def test_values_that_are_not_finite_or_not_there(kind, log):
    odd = np.array([np.nan, np.inf, -np.inf, 0.0, -1.0, 2.0])
    x = np.arange(7.0) if kind is Kind.HISTOGRAM else np.arange(6.0)
    labels = () if kind in (Kind.LINES, Kind.POINTS, Kind.HISTOGRAM) else tuple("HCNOFK")
    series = Series("odd", odd, x, labels)
    figure = Figure("odd", "Odd", kind, (series,), "x", "y", log, log)
    assert texts(figure)
    nothing = Series("none", np.full(6, np.nan), x, labels)
    assert texts(replace(figure, series=(nothing,))) == ["no values"]
    assert texts(replace(figure, series=())) == ["no values"]


def test_any_text_is_a_label():
    odd = ("$", "$x", "a$b$c", "<b>", "µ中", "_{")
    figure = replace(examples.FIGURES[1], series=(Series("$\\", np.ones(6), labels=odd),))
    assert set(odd) - {"µ中"} <= set(texts(figure))


def test_style_of_others_is_left_alone(tmp_path):
    before = dict(rc_params)
    thread = threading.Thread(target=write_plots, args=(examples.example(), tmp_path))
    thread.start()
    thread.join()
    assert dict(rc_params) == before
    assert len(list(tmp_path.iterdir())) == len(examples.FIGURES)
