"""How the evaluation of the alerts counts. The rules themselves are tested in tests/grafana."""

import alerts
import days
import noise
import numpy as np
import promtool
import pytest

FITTED = noise.Noise(0.04, 5.0, 0.7, 18.0)
FAULT = days.Fault("rank", 7200.0, 3600.0, 0.1, rank=2)


def firing(name, *minutes, server="node-0", severity="warning", **labels):
    return [(60.0 * at, {"alertname": name, "server": server, "severity": severity, **labels}) for at in minutes]


def test_what_keeps_firing_is_one_alarm_and_what_comes_back_is_another():
    fired = firing("A", 1, 2, 3, 40, 41) + firing("A", 1, server="node-1")
    assert [at for at, *_ in alerts.alarms(fired, "node-0")] == [60.0, 2400.0]


def test_windows_of_one_alert_are_one_alarm():
    fired = firing("A", 1, 2, window="2m") + firing("A", 2, 3, window="10m")
    assert len(alerts.alarms(fired, "node-0")) == 1


def test_an_alert_from_before_the_fault_is_no_detection():
    row = alerts.judge(firing("LightLLMRankLate", *range(100, 140), rank="2"), "node-0", FAULT)
    assert (row["minutes"], row["named"]) == (None, [])


def test_the_first_rank_that_is_named_counts():
    wrong = firing("LightLLMRankLate", 125, rank="1") + firing("LightLLMRankLate", 130, rank="2")
    row = alerts.judge(wrong, "node-0", FAULT)
    assert (row["minutes"], row["rank"], row["named"]) == (5.0, 2, [1, 2])
    assert alerts.summary([row, *others()])["right_rank_percent"] == 0


def others():
    """Rows of all other parts, so that there is a summary."""
    episodes = [
        {"part": "episode", "kind": kind, "slower_percent": percent, "minutes": minutes, "also": []}
        for kind, percent, minutes in (("transfer", 5, 30.0), ("transfer", 5, None), ("transfer", 10, 8.0), ("transfer", 25, 3.0),
                                       ("everything", 25, 9.0))
    ]  # fmt: skip
    pages = [{"hours": 1.0, "alert": "LightLLMDecodeSlow", "severity": "critical"}]
    quiet = [{"part": "quiet", "days": 30.4375, "alarms": pages}, {"part": "quiet", "days": 30.4375, "alarms": []}]
    return [*episodes, *quiet, {"part": "stuck", "minutes": 0.5}, {"part": "stuck", "minutes": 0.7}]


@pytest.fixture
def found(monkeypatch):
    monkeypatch.setattr(promtool, "version", lambda: "promtool, version 0")
    row = alerts.judge(firing("LightLLMRankLate", 130, rank="2"), "node-0", FAULT)
    return alerts.summary([row, *others()])


def test_an_episode_that_was_missed_counts_as_long_as_it_lasted(found):
    assert found["minutes_to_detect"] == {"5": alerts.LASTS / 60, "10": 8.0, "25": 3.0}
    assert found["minutes_to_detect_by_size"]["5"]["found"] == 1


def test_pages_are_counted_by_month_of_a_server(found):
    assert (found["false_alarms_per_month"], found["simulated_months"]) == (0.5, 2.0)


def test_the_worst_stuck_step_is_reported(found):
    assert found["stuck_minutes"] == 0.7


@pytest.mark.parametrize(
    "got",
    [
        '{__name__="ALERTS", alertname="A", server="s/0"} 1E+00',
        '"Labels:{__name__=\\"ALERTS\\", alertname=\\"A\\", server=\\"s/0\\"} Sample:1E+00"'.replace('\\"', '"'),
    ],
)
def test_what_promtool_says_is_understood(got):
    text = f'  FAILED:\n    expr: "ALERTS{{alertstate=\\"firing\\"}}", time: 1d2h3m30s,\n        exp: nil\n        got: {got}\n'
    assert promtool.parse(text) == [(93810.0, {"__name__": "ALERTS", "alertname": "A", "server": "s/0"})]


def test_an_error_of_promtool_is_no_silence():
    with pytest.raises(RuntimeError, match="no such file"):
        promtool.parse("  FAILED:\n  open rules.yml: no such file\n")


class TestSimulatedDays:
    def test_the_same_seed_gives_the_same_days(self):
        first, second = (days.simulate(3, 2, FITTED, days.Assumed()).columns for _ in range(2))
        assert all((first[name] == second[name]).all() for name in first)

    def test_a_slower_transfer_shows_in_measured_seconds_only(self):
        fault = days.Fault("transfer", 86400.0, 7200.0, 0.25)
        plain, slow = (
            days.simulate(3, 2, FITTED, days.Assumed(days_between_deploys=1e9), faults) for faults in ((), (fault,))
        )
        name = 'lightllm_gpu_operator_{}_seconds_total{{operator="all_reduce",phase="decode"}}'
        now = fault.over(plain.times)

        def ratio(of):
            grown = [np.diff(of.columns[name.format(kind)], prepend=0)[now].sum() for kind in ("compared", "expected")]
            return grown[0] / grown[1]

        assert ratio(slow) - ratio(plain) == pytest.approx(0.25, abs=0.01)

    def test_a_late_rank_comes_last(self):
        fault = days.Fault("rank", 86400.0, 7200.0, 0.2, rank=3)
        slow = days.simulate(3, 2, FITTED, days.Assumed(), (fault,))
        came = [
            np.diff(
                slow.columns[
                    f'lightllm_gpu_collective_last_arrivals_total{{site="attention",phase="decode",rank="{r}"}}'
                ]
            )
            for r in range(4)
        ]
        shares = np.array([last[fault.over(slow.times)[1:]].sum() for last in came])
        assert shares.argmax() == 3

    def test_a_deploy_gives_the_pod_a_new_name_and_new_counters(self):
        one = days.simulate(3, 2, FITTED, days.Assumed())
        one.deploys = [86400.0]
        pods = {series: values for series, values in promtool.scraped(one, "node-0") if "steps_sampled" in series}
        assert len(pods) == 2
        first, second = pods.values()
        assert first.endswith(" stale")
        assert second.split()[1] == "0"


def test_the_noise_is_that_of_the_recorded_runs():
    fitted = noise.fit()
    assert 0.01 < fitted.deviation < 0.1
    assert 4 < fitted.freedom < 10
    assert 0 < fitted.correlation < 1
