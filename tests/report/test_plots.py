from rlkd_nemo.report.plots import MAX_POINTS, VALUE_BUDGET, plots, thin


def titles(found):
    return [(plot.section, plot.title, [series.label for series in plot.series]) for plot in found]


def test_families_share_a_plot_and_strangers_get_their_own():
    lines = [
        {
            "step": 1,
            "time": 5.0,
            "reward/format": 1.0,
            "reward/outcome": 0.5,
            "mine/odd_s": 2.0,
            "plain": 1.0,
            "loss/beta": 3,
        },
    ]
    assert titles(plots({"": lines})) == [
        ("Reward", "Reward by component", ["outcome", "format"]),
        ("Objective", "Beta", ["beta"]),
        ("Mine", "Odd", ["odd"]),
        ("Other", "Plain", ["plain"]),
    ]


def test_every_name_of_the_log_is_in_some_plot():
    names = [
        "loss/x_y",
        "loss/kl_old",
        "time/new_s",
        "reward/new",
        "reward/failures_timeout",
        "z",
        "validation/pass_at_4",
    ]
    found = plots({"": [{"step": 1, "time": 0.0, **dict.fromkeys(names, 1.0)}]})
    assert sum(len(plot.series) for plot in found) == len(names)


def test_no_points_no_plot():
    assert plots({"": [{"step": 1, "time": 0.0, "loss/total": None}]}) == []
    assert plots({"": []}) == []


def test_an_interval_belongs_to_its_metric():
    line = {"step": 0, "validation/accuracy": 0.5, "validation/accuracy_low": 0.4, "validation/accuracy_high": 0.6}
    (plot,) = plots({"": [line]})
    (series,) = plot.series
    assert (series.y, series.low, series.high) == ([0.5], [0.4], [0.6])


def test_high_and_low_without_a_middle_are_metrics():
    (plot,) = plots({"": [{"step": 1, "loss/clip_fraction_high": 0.1, "loss/clip_fraction_low": 0.2}]})
    assert [series.label for series in plot.series] == ["high", "low"]


def test_a_failure_type_not_named_did_not_occur_but_a_skipped_validation_is_no_zero():
    lines = [
        {"step": 0, "validation/accuracy": 0.2},
        {"step": 1, "reward/total": 1.0},
        {"step": 2, "reward/total": 1.0, "reward/failures_timeout": 3.0},
    ]
    series = {series.label: series for plot in plots({"": lines}) for series in plot.series}
    assert (series["timeout"].x, series["timeout"].y) == ([1, 2], [0.0, 3.0])
    assert series["accuracy"].x == [0]


def test_null_stays_a_gap():
    (plot,) = plots(
        {"": [{"step": 1, "loss/total": 1.0}, {"step": 2, "loss/total": None}, {"step": 3, "loss/total": 2.0}]}
    )
    assert plot.series[0].y == [1.0, None, 2.0]


def test_several_runs_have_a_plot_a_metric_and_a_colour_each():
    runs = {
        "grpo": [{"step": 1, "reward/outcome": 0.1}],
        "trrd": [{"step": 1, "reward/outcome": 0.2, "loss/kl_teacher": 0.3}],
    }
    found = plots(runs)
    assert titles(found) == [
        ("Reward", "Reward by component: outcome", ["grpo", "trrd"]),
        ("Objective", "KL divergence: teacher", ["trrd"]),
    ]
    assert [series.colour for plot in found for series in plot.series] == [0, 1, 1]


def test_thin_takes_means_and_keeps_peaks_of_maxima():
    x, y = [1, 2, 3, 4, 5], [1.0, 3.0, None, None, 5.0]
    assert thin(x, y, 3, largest=False) == ([2, 4, 5], [2.0, None, 5.0])
    assert thin(x, y, 3, largest=True) == ([2, 4, 5], [3.0, None, 5.0])
    assert thin(x, y, 5, largest=False) == (x, y)


def test_points_stay_within_the_budget():
    lines = [{"step": step, "time": 0.0, **{f"a/{i}": 1.0 for i in range(300)}} for step in range(1200)]
    found = plots({"": lines})
    assert sum(len(series.y) for plot in found for series in plot.series) <= VALUE_BUDGET
    assert len(plots({"": [{"step": s, "a/b": 1.0} for s in range(5000)]})[0].series[0].y) <= MAX_POINTS
