"""The first numbers of each model."""

from __future__ import annotations

from rlhf_lightning.evaluation.summary import summary, summary_lines

METRICS = {
    "sft/reward_score": -0.5,
    "sft/kl_k1": 0.0,
    "sft/distinct_2": 0.96,
    "ppo/reward_score": 1.25,
    "ppo/reward_score_ci": 7.0,
    "ppo/reward_gain_in_sft_sd": 1.5,
    "ppo/kl_k1": 12.345,
    "ppo/distinct_2": 0.81,
    "ppo/validation/kl_k1": 99.0,
}


def test_a_column_for_each_number_that_some_model_has() -> None:
    titles, rows = summary(METRICS, ["sft", "ppo"])
    assert titles == ["score", "gain, sd", "KL", "distinct-2"]
    assert rows == [("sft", [-0.5, None, 0.0, 0.96]), ("ppo", [1.25, 1.5, 12.345, 0.81])]


def test_lines_have_equal_columns() -> None:
    assert summary_lines(METRICS, ["sft", "ppo"]) == [
        "         score   gain, sd         KL distinct-2",
        "sft       -0.5                     0       0.96",
        "ppo       1.25        1.5       12.3       0.81",
    ]
