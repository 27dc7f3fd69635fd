"""What a figure shows: every recorded point it claims, gaps where a loss was not finite, no global state."""

from __future__ import annotations

import math
import re

from armillary.reporting import plots


def history(n: int = 100) -> plots.History:
    train = [{"step": s, "loss": 9 - s / n, "grad_norm": 1.0, "n_tokens": s * 1000} for s in range(1, n + 1)]
    return plots.History(train, [{"step": n, "loss": 8.0, "corpus": "c", "is_best": True}])


def test_smoothing_is_a_centred_mean() -> None:
    values = [float(i) for i in range(300)]
    smooth = plots._smooth(values)
    assert smooth[:290] == values[:290]  # a centred mean leaves a straight line as it is
    assert plots._smooth([5.0]) == [5.0]
    assert plots._smooth([]) == []


def test_thinning_keeps_the_ends() -> None:
    steps, values = plots._thin(list(range(10_000)), [float(i) for i in range(10_000)])
    assert len(steps) <= plots.MAX_POINTS + 1
    assert (steps[0], steps[-1], values[-1]) == (0, 9_999, 9_999.0)


def test_points_of_none_are_gaps() -> None:
    steps, values = plots._points([{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3}], "loss")
    assert steps == [1, 2]
    assert values[0] == 2.0 and math.isnan(values[1])


def test_same_input_same_picture_and_settings_are_left_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    assert plots.loss_curves([history()]) == plots.loss_curves([history()])
    assert dict(matplotlib.rcParams) == before


def test_tokens_stand_above_a_lone_run() -> None:
    assert "tokens seen" in plots.loss_curves([history()])
    assert ">100k<" in re.sub(r"\s", "", plots.loss_curves([history()]))
    assert "tokens seen" not in plots.loss_curves([history(), history()])


def test_panel_without_data_is_none() -> None:
    assert plots.panel([history()], "train", "learning_rate", "learning rate") is None
    assert plots.panel([history()], "validation", "bits_per_byte", "bits per byte") is None
    assert "gradient" in (plots.panel([history()], "train", "grad_norm", "gradient", True) or "")


def test_long_run_stays_small() -> None:
    assert len(plots.loss_curves([history(50_000)])) < 200_000
