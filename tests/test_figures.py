"""The figures: what is drawn from a log, and that the images are images."""

import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure

from sgopd_trl.figures import (
    CLASS_COLOURS,
    _running_mean,
    plot_dynamics,
    plot_dynamics_of_rows,
    plot_rows,
    plot_sign_shares,
    plot_sign_shares_of_rows,
)


PLOTS = [plot_dynamics, plot_sign_shares]


def log(steps: int) -> list[dict]:
    """A run's log, with a closing summary like Trainer's."""
    rows = [
        {
            "step": step,
            "reward": step / steps,
            "completions/mean_length": 29.0,
            "entropy": 1 / step,
            "reverse_kl": 3 / step,
            "sign/agree": 0.3,
            "sign/disagree": 0.2,
            "sign/neutral": 0.5,
            "teacher_sampling/alpha": 0.1 if step < steps / 3 else 0.0,
        }
        for step in range(1, steps + 1)
    ]
    return [*rows, {"step": steps, "train_runtime": 12.0}]


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that were saved while the test ran."""
    figures, savefig = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        return savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("steps", [1, 4, 100])
def test_writes_a_readable_image(plot, steps, tmp_path):
    plot(log(steps), tmp_path / "figure.png")

    pixels = image.imread(tmp_path / "figure.png")
    height, width = pixels.shape[:2]
    assert (width, height) >= (1000, 800)
    assert pixels.std() > 0.05, "nothing was drawn"


def test_dynamics_shows_each_metric_with_its_unit(drawn, tmp_path):
    plot_dynamics(log(4), tmp_path / "figure.png")

    panels = {axes.get_title(): axes for axes in drawn[0].axes}
    assert panels["Training reward"].lines[0].get_xydata().tolist() == [[1, 0.25], [2, 0.5], [3, 0.75], [4, 1]]
    assert panels["Reverse KL to the teacher"].lines[0].get_ydata() == pytest.approx([3, 1.5, 1, 0.75])
    assert panels["Policy entropy"].lines[0].get_ydata() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    units = {title: axes.get_ylabel() for title, axes in panels.items()}
    assert units["Mean response length"] == "tokens" and units["Policy entropy"] == "nats per token"


def test_sign_shares_are_stacked_to_one_in_their_colours(drawn, tmp_path):
    plot_sign_shares(log(4), tmp_path / "figure.png")

    shares, weight = drawn[0].axes
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in shares.collections]
    assert tops == pytest.approx([0.3, 0.5, 1.0])  # agree, + disagree, + neutral
    colours = [tuple(area.get_facecolor()[0][:3]) for area in shares.collections]
    assert colours == [tuple(int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)) for c in CLASS_COLOURS.values()]
    assert weight.lines[0].get_ydata() == pytest.approx([0.1, 0, 0, 0])
    legend = [text.get_text() for text in shares.get_legend().get_texts()]
    assert "agree (mean 30%)" in legend and "neutral (mean 50%)" in legend


@pytest.mark.parametrize("plot", PLOTS)
def test_a_log_without_the_metrics_is_refused(plot, tmp_path):
    with pytest.raises(ValueError, match="has the metric '(reward|sign/agree)'"):
        plot([{"step": 1, "loss": 0.5}], tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()


def test_figures_leave_pyplot_alone(tmp_path):
    from matplotlib import pyplot

    for plot in PLOTS:
        plot(log(3), tmp_path / "figure.png")
    assert pyplot.get_fignums() == []


def test_running_mean_by_hand():
    values = np.array([1.0, 2.0, 6.0, 3.0, 8.0])
    assert _running_mean(values, 2) == pytest.approx([1, 3, 4, 17 / 3, 8])
    assert _running_mean(values, 0).tolist() == values.tolist()


# Figures of a study


def test_a_figure_says_the_one_mean_that_all_its_lines_are(drawn, tmp_path):
    """Rows of 200 and of 80 logged steps: means over 2 * (80 // 40) + 1 of both."""

    def alternating(steps: int) -> list[list[dict]]:
        return [[{"step": step, "reward": float(step % 2)} for step in range(1, steps + 1)]]

    plot_dynamics_of_rows({"long": alternating(200), "short": alternating(80)}, tmp_path / "figure.png")
    assert drawn[0].get_supxlabel() == "line: mean over 5 logged steps"
    for line in drawn[0].axes[0].lines:
        assert set(line.get_ydata()[2:-2]) == {0.4, 0.6}
    sparse = [row | {"entropy": None} if row["step"] % 2 else row for row in log(160)]
    plot_dynamics(sparse, tmp_path / "figure.png")
    assert drawn[1].get_supxlabel() == "thin: each logged step; thick: mean over 5"
    thick = drawn[1].axes[0].lines[1].get_ydata()
    assert thick == pytest.approx(_running_mean(drawn[1].axes[0].lines[0].get_ydata(), 2))


def runs(*scales: float) -> list[list[dict]]:
    """A log of each seed: a reward of the scale times the step, a sign share of a tenth of it."""
    return [
        [{"step": step, "reward": scale * step, "sign/agree": scale * step / 10} for step in (1, 2, 3)]
        for scale in scales
    ]


def test_lines_are_means_over_seeds_and_bands_their_standard_errors(drawn, tmp_path):
    plot_dynamics_of_rows({"one": runs(0.1, 0.3), "two": runs(0.2)}, tmp_path / "figure.png")

    (axes,) = drawn[0].axes  # no panel for what no row has logged
    assert [line.get_ydata().tolist() for line in axes.lines] == [
        pytest.approx([0.2, 0.4, 0.6]),
        pytest.approx([0.2, 0.4, 0.6]),
    ]
    # Seeds 0.1 and 0.3 at step 1: s = 0.1 * sqrt(2), error s / sqrt(2) = 0.1
    band = axes.collections[0].get_paths()[0].vertices
    assert sorted({round(y, 6) for x, y in band if x == 1}) == [0.1, 0.3]
    assert {round(y, 6) for x, y in axes.collections[1].get_paths()[0].vertices if x == 1} == {0.2}
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["one", "two"]


def test_a_row_without_a_metric_is_left_out_of_its_panel(drawn, tmp_path):
    sft = [[{"step": 1, "loss": 2.0, "entropy": 0.5}, {"step": 2, "loss": 1.0, "entropy": 0.25}]]
    plot_dynamics_of_rows({"OPD": runs(0.1), "SFT": sft}, tmp_path / "figure.png")
    panels = {axes.get_title(): axes for axes in drawn[0].axes}
    assert list(panels) == ["Training reward", "Policy entropy"]
    assert [len(axes.lines) for axes in panels.values()] == [1, 1]
    assert panels["Policy entropy"].lines[0].get_ydata().tolist() == [0.5, 0.25]


def test_steps_that_not_all_seeds_logged_are_left_out(drawn, tmp_path):
    shorter = runs(0.1, 0.1)
    del shorter[1][2]
    plot_sign_shares_of_rows({"OPD": shorter}, tmp_path / "figure.png")
    assert drawn[0].axes[0].lines[0].get_xdata().tolist() == [1, 2]


def test_rows_with_none_of_the_metrics_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no run of SFT has one of the metrics sign/agree"):
        plot_sign_shares_of_rows({"SFT": [[{"step": 1, "loss": 2.0}]]}, tmp_path / "figure.png")


def test_rows_stand_in_their_order_with_their_intervals(drawn, tmp_path):
    panels = {
        "avg@8": {"OPD": (50.0, 48.0, 52.0), "Gate": (40.0, 39.0, 41.0)},
        "avg@8 − OPD": {"Gate": (-10.0, -12.0, -8.0)},
    }
    plot_rows(panels, ["OPD", "Gate"], tmp_path / "figure.png", zero="− OPD")

    means, differences = drawn[0].axes
    assert [label.get_text() for label in means.get_yticklabels()] == ["OPD", "Gate"]
    assert means.get_ylim() == (1.5, -0.5), "the first row is not on top"
    assert [line.get_xydata().tolist() for line in means.lines] == [
        [[48, 0], [52, 0]],
        [[50, 0]],
        [[39, 1], [41, 1]],
        [[40, 1]],
    ]
    zero, interval, point = differences.lines
    assert zero.get_xdata() == [0, 0] and interval.get_xydata().tolist() == [[-12, 1], [-8, 1]]
    assert interval.get_color() != means.lines[0].get_color(), "a decided difference looks like another"
