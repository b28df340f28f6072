"""Figures say what the tables say: what is drawn is looked up in the figure again."""

import matplotlib
import pytest
from fake_study import AWKWARD, FakeStudy, confirming_study, mixed_study

from study import plots
from study.analysis import analyse

METRIC = "val/hr_at_10"


@pytest.fixture(scope="module")
def found():
    return analyse(mixed_study().study)


@pytest.fixture(scope="module")
def single():
    fake = FakeStudy()
    fake.add(0.44, alpha=0.5, learning_rate=0.001)
    return analyse(fake.study)


def texts(figure):
    """Every text in a figure."""
    figure.canvas.draw()
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text)]


def arms(found):
    return [arm.arm for arm in found.arms if arm.cells]


def test_table1_draws_a_line_for_each_row_that_was_tried(found):
    """Best values at their place, with their margin; the missing row is left out."""
    (axes,) = plots.table1(found.table1, found.baseline_values, METRIC).axes
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert labels == [f"{r.architecture} {r.label}" for r in found.table1 if r.cells]
    best = [bar.lines[0].get_xdata()[0] for bar in axes.containers]
    assert best == [r.best.value for r in found.table1 if r.cells]
    low, high = axes.containers[0].lines[2][0].get_segments()[0][:, 0]
    assert (high - low) / 2 == pytest.approx(found.table1[0].best.margin)


def test_an_axis_that_does_not_start_at_zero_says_so(found):
    """Without random, which is near 0."""
    near = {"session-popular": 0.39}
    assert "does not start at 0" in plots.table1(found.table1, near, METRIC).axes[0].get_xlabel()


def test_parallel_coordinates_draw_the_best_cell_last_and_on_top(found):
    """A line a cell; alpha/beta has no axis beside alpha and beta."""
    (axes,) = plots.parallel_coordinates(found.cells, found.varying, METRIC).axes
    lines = [line for line in axes.lines if len(line.get_xdata()) > 2]
    assert len(lines) == len(found.cells)
    assert lines[-1].get_ydata()[-1] == 1.0
    assert lines[0].get_ydata()[-1] == 0.0
    assert lines[-1].get_zorder() > lines[0].get_zorder()
    assert "alpha/beta" not in [t.get_text() for t in axes.get_xticklabels()]


def test_the_learning_rate_has_a_logarithmic_axis(found):
    """.001 of .0005 to .005 lies at log 2 / log 10 of the height, .30, not at .11."""
    figure = plots.parallel_coordinates(found.cells, found.varying, METRIC)
    places = {t.get_text(): t.xy[1] for t in figure.axes[0].texts if hasattr(t, "xy")}
    assert places["0.001"] == pytest.approx(0.30103)


def test_slices_have_a_panel_for_each_setting_and_the_cells_it_affects(found):
    """S- cells have no context, so 30 of 35 cells are in that panel."""
    figure = plots.slices(found.cells, found.varying, {"session-popular": 0.39}, METRIC, arms(found))
    panels = {axes.get_xlabel().split(",")[0]: axes for axes in figure.axes if axes.get_visible()}
    assert tuple(panels) == found.varying
    dots = sum(len(line.get_xdata()) for line in panels["context"].lines if line.get_linestyle() == "None")
    assert dots == 30
    assert panels["learning_rate"].get_xscale() == "log"
    assert panels["beta"].get_xscale() == "linear"


def test_numbers_are_not_jittered_and_names_are(found):
    """A dot of a number is at that number."""
    figure = plots.slices(found.cells, ("alpha", "context"), {}, METRIC, arms(found))
    alpha, context = ({x for line in axes.lines for x in line.get_xdata()} for axes in figure.axes)
    assert alpha == {0.0, 0.25, 0.5, 1.0}
    assert len(context) == 30


def test_importance_bars_start_at_zero_with_the_largest_on_top():
    """Bars are lengths, so their axis starts at 0."""
    shares = {"beta": 0.2, "alpha": 0.7, "context": 0.1}
    (axes,) = plots.importance(shares, {name: (share - 0.1, share + 0.2) for name, share in shares.items()}).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["context", "beta", "alpha"]
    assert axes.get_xlim()[0] == 0
    assert [list(line.get_xdata()) for line in axes.lines][-1] == pytest.approx([0.6, 0.9])


def test_learning_curves_name_each_arm_with_its_best_value(found):
    """One faint line a cell, one bold an arm."""
    figure = plots.learning_curves(found.cells, found.baseline_values, METRIC, arms(found))
    said = texts(figure)
    assert "S+ item .4640" in said
    assert "session-popular .3900" in said
    bold = [line for line in figure.axes[0].lines if line.get_linewidth() == 2]
    assert len(bold) == 5
    assert list(bold[2].get_ydata()) == list(found.best.curve.values())


def test_costs_start_at_zero(found):
    """A dot a cell, at its seconds."""
    (axes,) = plots.cost(found.arms).axes
    assert axes.get_xlim()[0] == 0
    assert set(axes.lines[0].get_xdata()) == {48.0}


def test_names_with_formulas_and_tags_are_drawn_as_they_are(found):
    """A dollar sign would start a formula, and end in an error or in nonsense."""
    assert plots.plain("a $x_{$ b\nc") == r"a \$x_{\$ b c"
    figure = plots.learning_curves(found.cells, {}, METRIC, arms(found))
    assert f"{plots.plain(AWKWARD)} .4100" in texts(figure)


def test_a_single_cell_can_be_drawn(single):
    """No range of values, no neighbour, one dot."""
    for figure in (
        plots.table1(single.table1, single.baseline_values, METRIC),
        plots.parallel_coordinates(single.cells, ("alpha",), METRIC),
        plots.slices(single.cells, ("alpha", "context", "learning_rate"), {}, METRIC, ["S+ item"]),
        plots.learning_curves(single.cells, {}, METRIC, ["S+ item"]),
        plots.cost(single.arms),
    ):
        figure.canvas.draw()


def test_a_setting_with_many_values_has_few_ticks():
    """As a search leaves them; none of its values is lost."""
    fake = FakeStudy()
    for i in range(20):
        fake.add(0.4 + i / 1000, alpha=0.05 + i / 20, learning_rate=0.0001 * 1.25**i)
    found = analyse(fake.study)
    figure = plots.slices(found.cells, found.varying, {}, METRIC, ["S+ item"])
    rates = next(axes for axes in figure.axes if axes.get_xlabel().startswith("learning_rate"))
    assert [t.get_text() for t in rates.get_xticklabels()] == ["0.0001", "0.0002", "0.0005", "0.001", "0.002", "0.005"]
    (axes,) = plots.parallel_coordinates(found.cells, found.varying, METRIC).axes
    assert [t.get_text() for t in axes.texts if t.get_text() in ("0.2", "0.4", "0.6", "0.8", "1")] == [
        "0.2", "0.4", "0.6", "0.8", "1",
    ]  # fmt: skip


def test_a_number_without_effect_in_some_cells_has_a_place_below_the_axis():
    """The temperature of an S- cell: at the foot, and the lowest real one at a quarter of the height."""
    fake = FakeStudy()
    fake.add(0.44, arm="S-", fixed={"alpha": 0.0}, learning_rate=0.001)
    for temperature, value in ((0.1, 0.45), (0.2, 0.46)):
        fake.add(value, fixed={"temperature": temperature, "alpha": 0.5}, learning_rate=0.001)
    found = analyse(fake.study)
    (axes,) = plots.parallel_coordinates(found.cells, ("temperature",), METRIC).axes
    lines = [line.get_ydata()[0] for line in axes.lines[:3]]
    assert lines == [0.0, 0.25, 1.0]


def test_labels_are_moved_apart_no_more_than_needed():
    """Two that meet go half a gap each way; one far away stays."""
    assert plots.spread([0.0, 5.0, 0.1], 1.0) == pytest.approx([-0.45, 5.0, 0.55])
    assert plots.spread([], 1.0) == []


def test_drawing_leaves_the_settings_of_matplotlib_alone(found):
    """A notebook that draws a report keeps its own style."""
    before = dict(matplotlib.rcParams)
    plots.cost(found.arms)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["claims", "groups"])
@pytest.mark.parametrize("width", [plots.WIDE, plots.NARROW])
def test_differences_have_their_axis_label_within_the_figure(name, width):
    """Also beside long names on a telephone, and apart from the ticks above it and the legend below it."""
    runs = confirming_study().run_all()
    found = analyse(mixed_study().study, runs.study, runs.read_ranks).confirmed
    figure = plots.claims(found, width=width) if name == "claims" else plots.groups(found.claims[0], 0.01, width=width)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    label = axes.xaxis.label.get_window_extent()
    assert figure.bbox.x0 <= label.x0 < label.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= label.y0
    others = [t for t in axes.get_xticklabels() if t.get_text()] + [t for k in figure.legends for t in k.get_texts()]
    assert not any(label.overlaps(other.get_window_extent()) for other in others)


def test_the_datas_figure_draws_the_shares_that_there_are():
    """A position and a context without any play are left out, or empty; names from the log are plain text."""
    figure = plots.data([0.5, 0.6, None], {"$radio$": 0.4, "charts": None}, [(1, 0.1), (10, 0.4), (12, 1.0)])
    positions, contexts, curve = figure.axes
    assert positions.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.6]]
    assert [bar.get_width() for bar in contexts.patches] == [0.4, 0.0]
    assert [t.get_text() for t in contexts.get_yticklabels()] == [r"\$radio\$", "charts"]
    assert curve.lines[0].get_xydata().tolist() == [[1, 0.1], [10, 0.4], [12, 1.0]]
    texts(figure)
