"""The reward stage on rankings alone: no demonstrations, no SFT, several sources, labelers who differ."""

from __future__ import annotations

import json
import logging
import math
import random
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf_lightning import compose
from rlhf_lightning.config import RewardConfig
from rlhf_lightning.data.index import Rules, splits_of
from rlhf_lightning.data.mixture import Mixture
from rlhf_lightning.data.records import SPLITS, key_hash, split_key
from rlhf_lightning.tasks import reward as stage
from rlhf_lightning.tasks import reward_metrics
from rlhf_lightning.tasks.reward_metrics import Judged, split_metrics
from tests.harness import json_lines, only, rlhf_here


def judged(scores: list[float], ranks: list[int], texts: list[str], **more: Any) -> Judged:
    record = {"prompt": [], "completions": texts, "ranks": ranks, "source": "a", "meta": {}}
    return record | more, torch.tensor(scores)


def test_accuracy_and_length_baseline_are_counted_on_the_same_pairs() -> None:
    found = split_metrics(
        [
            judged([2.0, 1.0, 0.0], [0, 1, 2], ["x", "xx", "xxx"]),  # 3 of 3; by length 0 of 3
            judged([0.0, 1.0], [0, 1], ["xxx", "x"]),  # 0 of 1; by length 1 of 1
            judged([1.0, 1.0], [0, 1], ["xx", "xx"]),  # ½ of 1, both
        ]
    )
    assert found["reward/pairs"] == 5
    assert found["reward/pairwise_accuracy"] == 3.5 / 5
    assert found["reward/length_baseline_accuracy"] == 1.5 / 5
    assert found["reward/accuracy_over_length_baseline"] == pytest.approx(2 / 5)
    assert not any("_of_" in name or "agreement" in name for name in found)


def test_accuracy_is_told_by_source_and_by_the_labelers_agreement() -> None:
    texts = ["x", "y"]
    rows = [
        judged([1.0, 0.0], [0, 1], texts, source="a", meta={"agreement": 1.0}),
        judged([0.0, 1.0], [0, 1], texts, source="a", meta={"agreement": 0.5}),
        judged([0.0, 1.0], [0, 1], texts, source="b", meta={"agreement": 0.79}),
        judged([1.0, 0.0], [0, 1], texts, source="b", meta={"agreement": 0.6}),
        judged([1.0, 0.0], [0, 1], texts, source="b"),
        judged([0.0, 1.0], [0, 1], texts, source="b", meta={"agreement": "high"}),
    ]
    found = split_metrics(rows)
    assert found["reward/pairwise_accuracy_of_a"] == 1 / 2
    assert found["reward/pairwise_accuracy_of_b"] == 2 / 4
    names = {k: v for k, v in found.items() if "agreement" in k}
    assert names == {
        "reward/pairwise_accuracy_agreement_from_0": 0.0,
        "reward/pairwise_accuracy_agreement_from_0_pairs": 1.0,
        "reward/pairwise_accuracy_agreement_from_60": 0.5,
        "reward/pairwise_accuracy_agreement_from_60_pairs": 2.0,
        "reward/pairwise_accuracy_agreement_from_100": 1.0,
        "reward/pairwise_accuracy_agreement_from_100_pairs": 1.0,
        "reward/pairwise_accuracy_agreement_unknown_pairs": 2.0,
    }


def test_a_split_without_pairs_has_no_accuracy() -> None:
    found = split_metrics([])
    assert math.isnan(found["reward/pairwise_accuracy"]) and found["reward/pairs"] == 0


def test_each_split_has_its_own_numbers_and_some_are_of_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    validation = [
        judged([2.0, 1.0, 0.0], [0, 1, 2], ["x", "xx", "xxx"]),  # 3 of 3
        judged([0.0, 1.0], [0, 1], ["xxx", "x"]),  # 0 of 1
    ]
    test = [judged([1.0, 3.0], [0, 1], ["x", "xx"])]  # 0 of 1
    monkeypatch.setattr(reward_metrics, "scored", lambda *given, what: given[-1])
    mixture = SimpleNamespace(
        gold=lambda record, text: SimpleNamespace(total=-len(text)), labeler_agreement=lambda: 0.9
    )
    job, model = SimpleNamespace(mixture=mixture), SimpleNamespace(config=SimpleNamespace())
    held_out: Any = {"validation": validation, "test": test}
    found = reward_metrics.accuracies(
        cast("Any", job), cast("Any", model), cast("Any", None), held_out
    )
    assert found["reward/pairwise_accuracy"] == 3 / 4
    assert found["reward/pairwise_accuracy/test"] == 0
    assert found["reward/pairwise_accuracy_held_out_labelers"] == 0
    assert (found["reward/pairs"], found["reward/pairs/test"]) == (4, 1)
    assert {k: v for k, v in found.items() if "_k" in k} == {
        "reward/pairwise_accuracy_k2": 0.0, "reward/pairwise_accuracy_k3": 1.0
    }  # fmt: skip
    # the shorter is the better: 3 of 3, 1 of 1 and 0 of 1
    assert found["reward/gold_accuracy"] == 4 / 5
    assert found["reward/score_std"] == pytest.approx(statistics.stdev([2, 1, 0, 0, 1, 1, 3]))
    assert found["labelers/agreement"] == 0.9


def rankings(path: Path, name: str, count: int) -> None:
    """Comparisons whose second completion is hundreds of tokens: letters without a pattern."""
    rng = random.Random(name)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{name} asks what the fox eats, {i} times."}],
            "completions": [
                "The fox eats meat.",
                "".join(rng.choices("abcdefgh", k=1000)),
                "It eats grass?",
            ],
            "ranks": [1, 2, 0],
            "meta": {"agreement": 1.0 if i % 2 else 0.7},
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of the stage on two files of comparisons."""
    folder = tmp_path_factory.mktemp("rankings")
    for name in ("ann", "bob"):
        rankings(folder / f"{name}.jsonl", name, 60)
    log = logging.getLogger("rlhf_lightning")
    level = log.level
    log.setLevel(logging.INFO)  # as the command has it: log.txt holds what was said
    rlhf_here(
        f"outputs={folder / 'outputs'}",
        "task=reward",
        "mix=files",
        *(f"mix.sources.{name}.path={folder / name}.jsonl" for name in ("ann", "bob")),
        "mix.validation_fraction=0.2",
        "mix.test_fraction=0.2",
        "reward.init.policy=none",
        "reward.completions=speakers",
        "reward.eval_prompts=24",
        "reward.head_scale=0",
    )
    log.setLevel(level)
    return only(folder / "outputs" / "reward")


def test_rankings_alone_train_a_reward_model(trained: Path) -> None:
    found = json.loads((trained / "metrics.json").read_text())
    assert found["status"] == "finished"
    assert json.loads((trained / "identity.json").read_text())["identity"]["parents"] == {}
    metrics = found["metrics"]
    assert metrics["reward/bias"] == 0 and metrics["reward/gain"] == 1
    assert "bias stays 0" in (trained / "log.txt").read_text()
    for name in ("pairwise_accuracy_of_ann", "pairwise_accuracy_of_bob/test", "ece/test"):
        assert math.isfinite(metrics[f"reward/{name}"]), name
    # the tokenizer was trained on the rankings' own texts
    vocabulary = json.loads((trained / "artifact/tokenizer.json").read_text())["model"]["vocab"]
    assert any("grass" in token for token in vocabulary)


@pytest.mark.parametrize("split", SPLITS)
def test_rankings_stay_in_their_split(trained: Path, split: str) -> None:
    rows = json_lines(trained / "data" / f"comparisons_{split}.jsonl")
    keys = np.array([key_hash(split_key(row)) for row in rows], np.uint64)
    assert {SPLITS[i] for i in splits_of(keys, Rules(0.2, 0.2))} == {split}


def test_a_head_of_zeros_begins_with_equal_scores(trained: Path) -> None:
    board = EventAccumulator(str(trained / "tensorboard"))
    board.Reload()
    first = board.Scalars("reward/train/loss")[0]
    assert first.value == pytest.approx(math.log(2))


def test_the_length_baseline_leaves_out_what_did_not_fit(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())["metrics"]
    rows = json_lines(trained / "data/comparisons_validation.jsonl")
    assert "completions of validation too long to be scored" in (trained / "log.txt").read_text()
    # of three completions the long one does not fit: one pair is left, and the shorter one wins it
    assert metrics["reward/pairs"] == len(rows)
    assert metrics["reward/length_baseline_accuracy"] == 0
    accuracy = metrics["reward/pairwise_accuracy"]
    assert metrics["reward/accuracy_over_length_baseline"] == accuracy


@pytest.mark.parametrize(("asked", "used"), [(512, 5), (3, 3), (1, 1)])
def test_bias_and_gain_come_from_as_many_demonstrations_as_are_asked_for(
    asked: int, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores 1, 2, 3, 5, 6: their mean and standard deviation by hand; one score alone has no deviation."""
    scores, said = [1.0, 2.0, 3.0, 5.0, 6.0], []
    monkeypatch.setattr(
        stage, "scored", lambda *_, **__: [judged([x], [0], ["x"]) for x in scores[:used]]
    )
    spoken = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    taken: list[int] = []
    mixture = SimpleNamespace(
        has=lambda _: True,
        size=lambda *_: 5,
        records=lambda kind, split, count: taken.append(count) or [spoken] * count,
    )
    hp = RewardConfig(calibration_demonstrations=asked, calibrate_gain=True)
    job = SimpleNamespace(mixture=mixture, root=SimpleNamespace(reward=hp), say=said.append)
    model = SimpleNamespace(config=SimpleNamespace())
    stage.calibrate(cast("Any", job), cast("Any", model), cast("Any", None))
    assert taken == [used]
    assert model.config.reward_bias == pytest.approx(sum(scores[:used]) / used)
    expected = 1 / statistics.stdev(scores[:used]) if used > 1 else 1.0
    assert model.config.reward_gain == pytest.approx(expected)
    assert len(said) == (used == 1)


def test_without_demonstrations_for_training_the_bias_stays_zero() -> None:
    """A source of weight 0 was found too late: the training was done, and lost."""
    said: list[str] = []
    root = compose.check(compose.compose(["experiment=debug", "mix.weights.world=0"]))
    job = SimpleNamespace(mixture=Mixture(root.mix, 0), root=root, say=said.append)
    model = SimpleNamespace(config=SimpleNamespace())
    stage.calibrate(cast("Any", job), cast("Any", model), cast("Any", None))
    assert (model.config.reward_bias, model.config.reward_gain) == (0.0, 1.0)
    assert said == ["no demonstrations for training in the mix: the reward's bias stays 0"]


def test_calibration_error_is_of_the_probabilities_that_were_trained() -> None:
    """A gain on the scores, for PPO, is none on the log odds."""
    raw = [judged([i / 10, 0.0], [0, 1], ["a", "b"]) for i in range(10)]
    scaled = [(record, 10 * scores) for record, scores in raw]
    expected = split_metrics(raw)["reward/ece"]
    assert split_metrics(scaled, gain=10.0)["reward/ece"] == pytest.approx(expected)
    assert split_metrics(scaled)["reward/ece"] != pytest.approx(expected, abs=0.05)


def test_the_manifest_holds_bias_and_gain(trained: Path, pipeline_outputs: Path) -> None:
    for run in (trained, only(pipeline_outputs / "reward")):
        manifest = json.loads((run / "artifact/manifest.json").read_text())
        config = json.loads((run / "artifact/config.json").read_text())
        assert manifest["metrics"]["reward/bias"] == config["reward_bias"]
        assert manifest["metrics"]["reward/gain"] == config["reward_gain"]


def test_answers_to_other_prompts_are_learned_from_where_they_are_asked_for() -> None:
    records = [
        {
            "prompt": [{"role": "user", "content": str(i)}],
            "completions": [f"a {i}", f"b {i}"],
            "ranks": [0, 1],
        }
        for i in range(9)
    ]
    for asked in (0, 2):
        root = compose.check(compose.compose([f"reward.foreign_completions={asked}"]))
        job: Any = SimpleNamespace(root=root, seed=lambda purpose: 1)
        found = stage._to_learn_from(job, records)  # type: ignore[arg-type]
        assert [len(record["completions"]) for record in found] == [2 + asked] * 9
