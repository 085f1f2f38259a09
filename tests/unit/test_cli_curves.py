"""Curves of a training as characters: what fits, what is told, where lines run."""

import math

import pytest

from app.cli.curves import draw_plots, read_plots
from app.client.values import Metric


def metrics(epochs, **curves):
    """Metrics of epochs 1…n, each curve a function of the epoch."""
    return [
        Metric(raw={}, name=name, step=epoch, value=value(epoch))
        for epoch in range(1, epochs + 1)
        for name, value in curves.items()
    ]


def training(epochs=30):
    return metrics(
        epochs,
        train_loss=lambda epoch: 2 / epoch,
        validation_loss=lambda epoch: abs(epoch - 5) + 0.5,
        train_accuracy=lambda epoch: 1 - 1 / epoch,
        validation_accuracy=lambda epoch: 0.5,
        learning_rate=lambda epoch: 0.02 * (epochs - epoch + 1) / epochs,
        steps=lambda epoch: 45 * epoch,
        images_per_second=lambda epoch: 900.0,
    )


def plain(lines):
    return [line.plain for line in lines]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("height", [12, 22, 48])
@pytest.mark.parametrize("epochs", [1, 2, 30, 1234])
def test_plots_fit_the_terminal(width, height, epochs):
    lines = plain(draw_plots(read_plots(training(epochs)), width, height))
    assert max(map(len, lines)) <= width
    assert len(lines) <= height
    assert lines[0].startswith("loss ")


def test_terminal_too_narrow_for_a_plot_gets_none():
    plots = read_plots(training())
    assert [bool(draw_plots(plots, width, 40)) for width in (1, 8, 16, 36, 37)] == [False] * 4 + [
        True
    ]
    assert max(map(len, plain(draw_plots(plots, 37, 40)))) <= 37


def test_plots_stand_beside_each_other_where_they_fit():
    plots = read_plots(training())
    assert plain(draw_plots(plots, 120, 40))[0].split() == [
        *("loss", "first", "last", "best"),
        *("accuracy", "first", "last", "best"),
        *("learning", "rate", "first", "last", "most"),
    ]
    titles = [line.split()[0] for line in plain(draw_plots(plots, 60, 40)) if "first" in line]
    assert titles == ["loss", "accuracy", "learning"]


def test_low_terminal_shows_the_loss_alone():
    lines = plain(draw_plots(read_plots(training()), 60, 8))
    assert [line.split()[0] for line in lines if "first" in line] == ["loss"]


def test_first_last_and_best_values_are_told_with_the_epoch_of_the_best():
    lines = plain(draw_plots(read_plots(training()), 60, 40))
    assert "train      2.0000 0.0667 0.0667 @30" in lines
    assert "validation 4.5000   25.5 0.5000 @5" in lines
    assert "train      0.0000 0.9667 0.9667 @30" in lines


def test_falling_line_runs_from_the_upper_left_to_the_lower_right():
    falls = metrics(9, learning_rate=lambda epoch: 10 - epoch)
    lines = plain(draw_plots(read_plots(falls), 60, 40))
    plot = [line[8:] for line in lines if line[7:8] in ("┤", "│")]
    starts = [len(row) - len(row.lstrip()) for row in plot]
    assert starts == sorted(starts)
    assert plot[0][0] not in " ⠀"
    assert plot[-1].rstrip() == plot[-1]
    assert len(plot) == 8


def test_number_that_is_not_finite_is_a_gap():
    broken = metrics(9, train_loss=lambda epoch: None if epoch == 5 else 1.0)
    lines = plain(draw_plots(read_plots(broken), 60, 40))
    (row,) = (line[8:] for line in lines if line[7:8] == "┤")
    left, right = row.split(" ")[0], row.split(" ")[-1]
    assert len(left) == len(right) == math.ceil(len(row) * 3 / 8)


def test_diverged_training_says_so():
    lost = metrics(3, train_loss=lambda _: None, learning_rate=lambda _: 1.0)
    titles = [line.split()[0] for line in plain(draw_plots(read_plots(lost), 60, 40))][:1]
    assert titles == ["learning"]
    assert draw_plots(read_plots([]), 60, 40) == []
