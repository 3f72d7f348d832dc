"""What the report recommends, and when it refuses to."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pandas as pd
import pytest
from results_factory import Flip, Scenario, write_results

from stages.common.errors import UserError
from stages.common.params import load_params
from stages.reporting.analysis import Analysis, analyse
from stages.reporting.load import load_run
from stages.reporting.prose import crossings, drift, interleaving
from stages.reporting.statistics import Ratio
from stages.reporting.summary import summarise
from stages.reporting.tables import tables
from stages.reporting.verdict import Verdict, crossing, judge

UNSTEADY = Scenario(controls=(0.6, 1.5))  # the same work in other engines


@pytest.fixture
def report_on(tmp_path):
    """Scenario and predicted times -> (analysis, verdict, summary)."""

    def report_on(scenario: Scenario, predictions: dict | None = None) -> tuple[Analysis, Verdict, dict]:
        results = tmp_path / "results"
        run = load_run(load_params(write_results(tmp_path, scenario)), results)
        analysis = analyse(run, results, predictions)
        verdict = judge(analysis)
        summary = summarise(analysis, verdict)
        json.dumps(summary, allow_nan=False)
        tables(analysis)
        return analysis, verdict, summary

    return report_on


def test_a_clear_gain_names_the_arm_its_interval_and_the_batch(report_on):
    _, verdict, summary = report_on(Scenario())
    best = summary["best"]
    assert verdict.kind == "use"
    assert best["speedup_low"] > 1
    lows = [
        entry["speedup_low"] for name, entry in summary["arms"].items() if not name.startswith("baseline")
    ]
    assert best["speedup_low"] == max(lows)
    assert f"{best['speedup_low']:.2f} to {best['speedup_high']:.2f}" in verdict.sentence
    assert "up to batch 4, the largest measured" in verdict.sentence
    assert summary["pays_up_to_max_num_seqs"] == 4


def test_every_arm_has_the_numbers_of_the_contract(report_on):
    arms = [f"{arm}-b{batch}" for arm in ("chain-k1", "chain-k3", "tree-small") for batch in (1, 4)]
    _, _, summary = report_on(Scenario(), dict.fromkeys(arms, Ratio(10.0, 9.0, 11.0, 64)))
    names = (
        "predicted_time_per_token_ms",
        "prediction_error",
        "explained_speedup",
        "speedup_over_prompts_low",
        "speedup_over_own_control",
        "undrafted_over_baseline",
        "speedup",
        "speedup_low",
        "speedup_high",
        "time_per_token_ms",
        "mean_acceptance_length",
    )
    names += ("draft_efficiency", "lossless", "gsm8k_accuracy", "predicted_speedup")
    for name, entry in summary["arms"].items():
        if not name.startswith("baseline"):
            assert all(entry[key] is not None for key in names), name


def test_no_gain_says_leave_it_off(report_on):
    _, verdict, summary = report_on(Scenario(speedup_factor=0.4))
    assert verdict.kind == "off"
    assert verdict.sentence.startswith("Leave speculation off")
    assert summary["best"]["arm"] is None


def test_an_arm_that_changes_the_output_never_wins_however_fast(report_on):
    flips = {
        name: Flip(3, gap=2.0) for name in ("chain-k3-b1", "tree-small-b1", "chain-k3-b4", "tree-small-b4")
    }
    _, verdict, summary = report_on(Scenario(diverge=flips))
    assert verdict.best.name.setting == "k1"
    assert summary["arms"]["chain-k3-b1"]["lossless"] is False
    assert summary["all_lossless"] is False
    assert verdict.answers[1].answer == "NO"


def test_near_ties_are_counted_and_stay_lossless(report_on):
    _, verdict, summary = report_on(Scenario(diverge={"chain-k3-b1": Flip(3, gap=0.1)}))
    entry = summary["arms"]["chain-k3-b1"]
    assert (entry["lossless"], entry["verdict"], entry["num_divergences"]) == (True, "near_ties", 2)
    assert verdict.answers[1].answer == "Yes, to rounding"


def test_drift_beyond_the_effect_names_no_winner(report_on):
    analysis, verdict, summary = report_on(UNSTEADY)
    assert verdict.kind == "undecided"
    assert re.search(r"over the prompts alone .* is 1\.\d\d× as fast", verdict.sentence)
    assert "that did the same work lie up to 68 % apart, which makes it 0." in verdict.sentence
    assert summary["best"]["arm"] is None
    entry = summary["arms"]["chain-k3-b1"]
    assert entry["speedup_low"] < 1 < entry["speedup_over_prompts_low"]
    assert analysis.results["chain-k3-b1"].drifted


def test_the_bandwidth_probe_decides_nothing(report_on):
    _, verdict, summary = report_on(Scenario(drift=3.0))
    assert verdict.kind == "use"
    assert summary["drift"]["factor"] < 1.1


def test_engines_that_disagree_make_every_interval_between_engines_wider(report_on):
    calm, _, _ = report_on(Scenario(peer=True))
    assert summary_of_interval(calm) < 0.1
    unsteady, _, summary = report_on(Scenario(controls=(1.15, 0.95), peer=True))
    assert summary_of_interval(unsteady) > 0.3
    for one in unsteady.compared:
        assert one.latency.high / one.latency.low > 1.2
    peer = summary["peer"]["assisted"]
    assert peer["our_best_over_it_high"] / peer["our_best_over_it_low"] > 1.2
    assert peer["speedup_over_own_plain_high"] / peer["speedup_over_own_plain_low"] < 1.01


def test_the_report_says_which_engines_did_the_work_again(report_on):
    control, closing = "every drafted arm ends with it", "the stock baseline does it again"
    for scenario, words in (
        (Scenario(), (True, True)),
        (Scenario(again=None), (True, False)),
        (Scenario(controls=None), (False, True)),
    ):
        analysis, _, _ = report_on(scenario)
        first = next(drift(analysis))
        assert (control in first, closing in first) == words


def summary_of_interval(analysis: Analysis) -> float:
    ratio = analysis.results["chain-k3-b1"].speedup
    return ratio.high / ratio.low - 1


def test_drift_that_no_second_engine_shows_is_said_to_be_unknown(report_on):
    analysis, verdict, summary = report_on(Scenario(controls=None, again=None))
    assert verdict.kind == "use"
    assert summary["drift"] == {}
    assert "it is not known how far two engines lie apart" in next(drift(analysis))


def test_one_prompt_gives_no_interval_and_says_so(report_on):
    analysis, verdict, summary = report_on(Scenario(prompts=1))
    assert verdict.kind == "undecided"
    assert "one prompt gives no interval" in verdict.sentence
    assert verdict.answers[0].detail.startswith("No interval from one prompt. ")
    assert summary["arms"]["chain-k1-b1"]["speedup_low"] is None
    assert analysis.results["chain-k1-b1"].speedup.value > 1


def test_every_batch_size_has_its_aa_check(report_on):
    analysis, _, _ = report_on(Scenario(prompts=8, repeats=4, noise=0.01))
    assert list(analysis.aa_checks) == [1, 4]
    for ratio in analysis.aa_checks.values():
        assert ratio.value == pytest.approx(1, abs=0.02)
        assert ratio.has_interval


def test_a_gain_that_ends_with_the_batch_names_the_last_that_pays(report_on):
    analysis, verdict, _ = report_on(Scenario(batches=(1, 64), ks=(3,), trees={}, speedup_factor=0.65))
    assert verdict.pays_at == (1,)
    assert "up to batch 1; at batch 64 no arm is surely faster" in verdict.sentence
    points = [(one.name.max_num_seqs, one.speedup.value) for one in analysis.compared]
    assert 1 < crossing(points) < 64
    said = r"Chain k=3 .* about batch \d+ \(interpolated; by the ends of the intervals \d+ to \d+\)\."
    assert re.fullmatch(said, next(crossings(analysis)))


def test_step_times_and_acceptance_explain_the_speedup(report_on):
    analysis, _, _ = report_on(Scenario(speedup_factor=0.8, noise=0.001))
    result = analysis.results["chain-k3-b1"]
    assert result.explained == pytest.approx(result.speedup.value / 0.8, rel=0.02)


def test_a_prediction_stands_beside_the_measured_time_and_is_marked_where_intervals_lie_apart(report_on):
    plain, _, _ = report_on(Scenario())
    measured = {name: result.arm.metrics.time_per_token_ms for name, result in plain.results.items()}
    near, far = measured["chain-k1-b1"], measured["chain-k3-b1"] * 1.5
    wide = measured["chain-k1-b4"] * 1.5
    foretold = {
        "chain-k1-b1": Ratio(near, near * 0.9, near * 1.1, 64),
        "chain-k3-b1": Ratio(far, far * 0.95, far * 1.05, 64),
        "chain-k1-b4": Ratio(wide, wide * 0.6, wide * 1.2, 64),  # off as far, but not surprisingly
    }
    _, _, summary = report_on(Scenario(), foretold)
    entry = summary["arms"]["chain-k3-b1"]
    assert (entry["prediction_error"], entry["prediction_outside"]) == (pytest.approx(0.5), True)
    assert entry["predicted_speedup"] == pytest.approx(measured["baseline-b1"] / far)
    assert summary["arms"]["chain-k1-b1"]["prediction_outside"] is False
    assert summary["arms"]["chain-k1-b4"]["prediction_outside"] is False
    assert summary["median_prediction_error"] == pytest.approx(0.5)
    assert summary["arms"]["chain-k3-b4"]["predicted_time_per_token_ms"] is None


def test_temperatures_stand_side_by_side_and_a_broken_sampler_is_condemned_everywhere(report_on):
    scenario = Scenario(
        temperatures=(0.0, 1.0), prompts=8, repeats=3, tokens=64, skewed=frozenset({"chain-k3-b1"})
    )
    analysis, verdict, summary = report_on(scenario)
    hot = summary["at_temperature"]["1.0"]["arms"]
    assert (hot["chain-k3-b1"]["verdict"], hot["chain-k3-b1"]["lossless"]) == ("not_lossless", False)
    assert hot["chain-k1-b1"]["p_value"] > 0.01
    assert summary["arms"]["chain-k3-b1"]["verdict"] == "identical"
    assert summary["all_lossless"] is False
    assert not analysis.results["chain-k3-b1"].surely_faster
    assert verdict.best.name.name != "chain-k3-b1"
    assert "temperature 1" in verdict.answers[1].detail


@pytest.mark.parametrize(("factor", "sure"), [(2.0, "."), (0.4, ", slower."), (0.54, ", undecided.")])
def test_another_temperature_is_said_to_be_faster_slower_or_neither(report_on, factor, sure):
    _, verdict, _ = report_on(Scenario(temperatures=(0.0, 1.0), prompts=8, speedup_factor=factor))
    assert re.search(rf"At temperature 1: [^)]+\){re.escape(sure)}$", verdict.answers[0].detail)


def test_where_drift_swallows_the_effect_the_interleaved_measurement_decides(report_on):
    _, verdict, summary = report_on(replace(UNSTEADY, interleaved_speedup=1.5))
    assert verdict.kind == "use"
    assert summary["best"]["speedup"] == pytest.approx(1.5, abs=0.03)
    assert summary["best"]["interleaved"] is True
    assert "interleaved in one engine, since separate engines" in verdict.sentence
    drafted, plain = map(float, re.findall(r"([\d.]+) ms", verdict.answers[0].detail))
    assert plain / drafted == pytest.approx(1.5, rel=0.03)  # the times of that engine, not of the others
    _, verdict, summary = report_on(replace(UNSTEADY, interleaved_speedup=0.9))
    assert verdict.kind == "off"


def test_the_undrafted_mode_is_checked_against_the_stock_baseline(report_on):
    analysis, _, summary = report_on(Scenario(prompts=8, interleaved_speedup=1.4, none_slowdown=1.1))
    side = summary["interleaved"]["b1"]
    assert side["none_over_baseline"] == pytest.approx(1.1, abs=0.03)
    assert side["arms"]["tree-small-b1"]["speedup"] == pytest.approx(1.4, abs=0.03)
    assert "a difference of" in next(interleaving(analysis))


def test_the_peer_is_measured_against_itself_and_our_best(report_on):
    analysis, _, summary = report_on(Scenario(peer=True))
    assert summary["peer"]["assisted"]["speedup_over_own_plain"] == pytest.approx(1.5)
    best = analysis.best_at(1).arm.metrics.time_per_token_ms
    assert summary["peer"]["assisted"]["our_best_over_it"] == pytest.approx(20 / best, rel=0.05)


def test_a_partial_interleaved_run_or_peer_is_refused(tmp_path):
    params = load_params(write_results(tmp_path, Scenario(interleaved_speedup=1.5, peer=True)))
    results = tmp_path / "results"
    path = results / "interleaved/b1/requests.parquet"
    rows = pd.read_parquet(path)
    rows[(rows["mode"] != "chain-k3") | (rows["group"] > 0)].to_parquet(path)
    with pytest.raises(UserError, match="a group without all modes"):
        analyse(load_run(params, results), results)
    rows.to_parquet(path)
    (results / "peer_transformers/requests.parquet").unlink()
    with pytest.raises(UserError, match="peer_transformers"):
        analyse(load_run(params, results), results)


def test_what_was_not_asked_for_is_not_read(tmp_path):
    params = load_params(write_results(tmp_path, Scenario()))
    analysis = analyse(load_run(params, tmp_path / "results"), tmp_path / "results")
    assert (analysis.interleaved, analysis.peer) == ({}, None)


def test_a_failed_side_measurement_counts_as_failed(tmp_path):
    params = load_params(write_results(tmp_path, Scenario(peer=True)))
    folder = tmp_path / "results/peer_transformers"
    (folder / "metrics.json").unlink()
    (folder / "failed.json").write_text(json.dumps({"error": "killed"}))
    run = load_run(params, tmp_path / "results")
    assert run.failed == {"peer_transformers": "killed"}
    assert analyse(run, tmp_path / "results").peer is None


@pytest.mark.parametrize("scenario", [Scenario(drafts=False), Scenario(acceptance=0.0)])
def test_nothing_drafted_or_nothing_accepted_is_a_number_or_null(report_on, scenario):
    _, verdict, summary = report_on(scenario)
    assert verdict.kind == "off"
    assert summary["arms"]["chain-k3-b1"]["draft_efficiency"] in (None, 0.0)


def test_sampled_output_without_counts_is_not_tested_and_not_condemned(report_on):
    _, verdict, summary = report_on(Scenario(temperatures=(1.0,), prompts=2, repeats=1))
    assert summary["arms"]["chain-k1-b1"]["lossless"] is None
    assert verdict.answers[1].answer == "Not tested"


def test_a_failed_baseline_leaves_its_batch_without_ratios(report_on):
    analysis, verdict, summary = report_on(Scenario(failed={"baseline-b4": "out of memory"}))
    assert analysis.results["chain-k1-b4"].speedup is None
    assert summary["arms"]["baseline-b4"] == {"failed": "out of memory"}
    assert verdict.best.name.max_num_seqs == 1


def test_arms_without_step_times_are_reported_without_costs(tmp_path):
    params = load_params(write_results(tmp_path, Scenario()))
    path = tmp_path / "results/chain/k1-b1/metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps(metrics | {"step_ms": None}))  # stock speculation
    slow_forward = tmp_path / "results/baseline/b4/metrics.json"
    metrics = json.loads(slow_forward.read_text())
    slow_forward.write_text(json.dumps(metrics | {"step_ms": {"target_forward": 20.0, "other": -0.1}}))
    analysis = analyse(load_run(params, tmp_path / "results"), tmp_path / "results")
    stock = analysis.results["chain-k1-b1"]
    assert (stock.step, stock.explained, stock.step_ratio) == (None, None, None)
    assert stock.speedup.low > 1
    assert analysis.results["baseline-b4"].step.overhead_share == 0
    assert "chain-k1-b1" not in set(tables(analysis)["step_cost"]["name"])
    judge(analysis)


@pytest.mark.parametrize("missing", ["metrics.json", "requests.parquet"])
def test_a_missing_file_is_named(tmp_path, missing):
    params = load_params(write_results(tmp_path, Scenario()))
    (tmp_path / "results/chain/k3-b4" / missing).unlink()
    with pytest.raises(UserError, match="k3-b4"):
        load_run(params, tmp_path / "results")


def test_an_arm_that_params_drop_is_ignored_and_one_they_add_is_missed(tmp_path):
    write_results(tmp_path, Scenario(ks=(1, 3)))
    smaller = load_params(write_results(tmp_path, Scenario(ks=(1,))))
    assert "chain-k3-b1" not in load_run(smaller, tmp_path / "results").arms
    larger = tmp_path / "larger.yaml"
    raw = load_params(tmp_path / "params.yaml").model_dump(mode="json")
    raw["engine"]["max_num_seqs"] = [1, 4, 9]
    larger.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="baseline/b9"):
        load_run(load_params(larger), tmp_path / "results")


def test_an_arm_without_a_temperature_of_params_is_refused(tmp_path):
    write_results(tmp_path, Scenario())
    other = load_params(write_results(tmp_path / "other", Scenario(temperatures=(0.0, 1.0))))
    with pytest.raises(UserError, match=r"baseline.*temperatures"):
        load_run(other, tmp_path / "results")


def test_lost_requests_broken_json_and_nan_are_refused(tmp_path):
    params = load_params(write_results(tmp_path, Scenario()))
    folder = tmp_path / "results/tree/small-b1"
    requests, metrics = pd.read_parquet(folder / "requests.parquet"), (folder / "metrics.json").read_text()
    requests.iloc[1:].to_parquet(folder / "requests.parquet")
    with pytest.raises(UserError, match=r"tree-small-b1.*partial"):
        load_run(params, tmp_path / "results")
    requests.to_parquet(folder / "requests.parquet")
    (folder / "metrics.json").write_text(metrics.replace('"wall_time_s": ', '"wall_time_s": NaN, "was": '))
    with pytest.raises(UserError, match="wall_time_s"):
        load_run(params, tmp_path / "results")
    (folder / "metrics.json").write_text(metrics[:-20])
    with pytest.raises(UserError, match="valid JSON"):
        load_run(params, tmp_path / "results")


def test_arms_measured_on_other_prompts_or_dtypes_are_not_compared(tmp_path):
    params = load_params(write_results(tmp_path, Scenario()))
    path = tmp_path / "results/chain/k1-b1/metrics.json"
    path.write_text(path.read_text().replace('"dtype": "bfloat16"', '"dtype": "float32"'))
    with pytest.raises(UserError, match="the baseline's prompts, device and dtype"):
        load_run(params, tmp_path / "results")
