"""`task=generate`, from the command's overrides to the rows of its file."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console

from rlhf_lightning.data.encode import encode_prompts
from rlhf_lightning.errors import Interrupted, RunFailed, UserError
from rlhf_lightning.tasks import generate
from rlhf_lightning.tasks.generate_output import printed, require_place, written
from tests.harness import json_lines, rlhf_here

QUESTIONS = ["What does the fox eat?", "Hello!", "Give me three facts about the hen."]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two model folders with one tokenizer: policy and reward, of random weights."""
    from transformers import AutoModelForSequenceClassification

    from rlhf_lightning import compose
    from rlhf_lightning.data.tokenizer import train_tokenizer
    from rlhf_lightning.models.loading import new_policy, save

    folder = tmp_path_factory.mktemp("models")
    root = compose.check(compose.compose(["experiment=debug"]))
    tokenizer = train_tokenizer(QUESTIONS, vocab_size=300)
    policy = new_policy(root.model, tokenizer, seed=0)
    for parameter in policy.parameters():  # stock weights are so small that all tokens are alike
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    save(policy, tokenizer, folder / "policy")
    scorer = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1)
    torch.nn.init.normal_(scorer.score.weight, generator=torch.Generator().manual_seed(2))
    save(scorer, tokenizer, folder / "reward")
    return folder


def rows_of(tmp_path: Path, models: Path, *overrides: str, name: str = "out.jsonl") -> list[dict]:
    """What the command writes for the three questions."""
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in QUESTIONS))
    rlhf_here(
        "task=generate",
        f"generate.init.policy={models / 'policy'}",
        f"input={source}",
        f"output={tmp_path / name}",
        "generate.max_response_tokens=8",
        *overrides,
    )
    return json_lines(tmp_path / name)


def test_every_prompt_gets_its_samples_in_order_with_scores(tmp_path: Path, models: Path) -> None:
    rows = rows_of(
        tmp_path, models, "generate.samples=2", f"generate.init.reward={models / 'reward'}"
    )
    assert [(row["index"], row["sample"]) for row in rows] == [
        (i, s) for i in range(3) for s in (0, 1)
    ]
    assert [row["prompt"][0]["content"] for row in rows[::2]] == QUESTIONS
    columns = (
        "index",
        "sample",
        "prompt",
        "response",
        "response_tokens",
        "ended",
        "logprob",
        "score",
    )
    assert tuple(rows[0]) == columns
    assert all(1 <= row["response_tokens"] <= 8 and row["logprob"] < 0 for row in rows)
    assert all(row["ended"] or row["response_tokens"] == 8 for row in rows)
    assert len({row["score"] for row in rows}) > 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_the_score_is_the_whole_of_reward_source(tmp_path: Path, models: Path) -> None:
    """Its learned part is the model that is given; without such a part there is nothing to give."""
    words = [
        "reward_source=function",
        "reward_source.parts.function.target=tests.rewards.mine.words",
    ]
    rows = rows_of(tmp_path, models, *words, name="words.jsonl")
    assert [row["score"] for row in rows] == [float(len(row["response"].split())) for row in rows]
    given = f"generate.init.reward={models / 'reward'}"
    learned = rows_of(tmp_path, models, given, name="learned.jsonl")
    both = [
        "reward_source=weighted",
        "reward_source.parts.function.target=tests.rewards.mine.words",
    ]
    both += ["reward_source.parts.function.weight=2", "reward_source.parts.learned.weight=0.5"]
    found = rows_of(tmp_path, models, given, *both, name="both.jsonl")
    assert [row["score"] for row in found] == pytest.approx(
        [0.5 * a["score"] + 2 * b["score"] for a, b in zip(learned, rows, strict=True)]
    )
    assert "score" not in rows_of(tmp_path, models, *both, name="nobody.jsonl")[0]
    unwanted = rows_of(tmp_path, models, *words, "generate.init.reward=none", name="none.jsonl")
    assert "score" not in unwanted[0]
    several = ["reward_source.parts.learned.members=3"]
    for wrong, where in ((words, "has no learned part"), (several, "is an ensemble")):
        with pytest.raises(UserError, match=rf"init\.reward must be null or none where .* {where}"):
            rows_of(tmp_path, models, given, *wrong, name="no.jsonl")


def test_the_log_says_whose_words_these_are(
    tmp_path: Path, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="rlhf_lightning")
    rows_of(tmp_path, models)
    assert f"generate: the policy is {models / 'policy'}" in caplog.messages
    own = ["model=hf", f"model.path={models / 'policy'}", "model.context_length=144"]
    rows_of(tmp_path, models, *own, "generate.init.policy=null", name="own.jsonl")
    assert any(
        line.endswith("generate.init.policy=RUN for trained ones") for line in caplog.messages
    )


@pytest.mark.parametrize("end_with_eos", [False, True])
def test_scores_and_logprobs_are_those_of_the_models(
    end_with_eos: bool, tmp_path: Path, models: Path
) -> None:
    """Greedy: each row's numbers against a plain forward pass of transformers over prompt and response.

    What was cut off is scored as it stands, or with EOS behind it where the reward reads it so.
    """
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    rows = rows_of(
        tmp_path,
        models,
        "generate.temperature=0",
        f"generate.init.reward={models / 'reward'}",
        f"reward_source.parts.learned.end_with_eos={end_with_eos}",
    )
    assert not all(row["ended"] for row in rows)
    tokenizer = AutoTokenizer.from_pretrained(models / "policy")
    policy = AutoModelForCausalLM.from_pretrained(models / "policy").eval()
    scorer = AutoModelForSequenceClassification.from_pretrained(models / "reward").eval()
    for row in rows:
        prompt = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        ids = prompt
        total = 0.0
        for _ in range(row["response_tokens"]):
            with torch.no_grad():
                logprobs = policy(ids).logits[0, -1].log_softmax(-1)
            token = int(logprobs.argmax())
            total += float(logprobs[token])
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
        assert (
            tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True) == row["response"]
        )
        assert row["logprob"] == pytest.approx(total, abs=1e-3)
        if end_with_eos and not row["ended"]:
            ids = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], 1)
        with torch.no_grad():
            assert row["score"] == pytest.approx(float(scorer(ids).logits), abs=1e-4)


def test_the_seed_decides_and_the_batch_size_does_not(tmp_path: Path, models: Path) -> None:
    def said(*overrides: str, name: str) -> list[str]:
        found = rows_of(tmp_path, models, "generate.samples=5", *overrides, name=name)
        return [row["response"] for row in found]

    one = said("generate.batch_size=1", name="a")
    assert one == said("generate.batch_size=4", name="b") == said(name="c")
    assert one != said("seed=1", name="d")
    assert len(set(one[:5])) > 1  # samples of one prompt differ


def test_a_window_ends_without_changing_the_samples(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "WINDOW", 3)
    rows = rows_of(tmp_path, models, "generate.samples=2", "generate.batch_size=2")
    assert [row["index"] for row in rows] == [0, 0, 1, 1, 2, 2]
    others = rows_of(tmp_path, models, "generate.samples=2", "generate.batch_size=3", name="b")
    assert [row["response"] for row in rows] == [row["response"] for row in others]


def test_prompts_that_are_too_long_are_left_out_and_counted(
    tmp_path: Path, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models / "policy")
    asked = [[{"role": "user", "content": text}] for text in QUESTIONS]
    lengths = [len(ids) for ids in encode_prompts(tokenizer, asked)]
    longest = max(lengths)
    assert lengths == sorted(lengths, key=lambda n: n == longest)  # the last one alone is that long
    rows = rows_of(tmp_path, models, f"generate.max_prompt_tokens={longest - 1}")
    assert [row["index"] for row in rows] == [0, 1]
    assert "1 of 3 prompts are too long and have no response" in caplog.text
    assert "in.jsonl:3)" in caplog.text
    with pytest.raises(UserError, match=r"generate\.max_prompt_tokens must leave room .* got 2 "):
        rows_of(tmp_path, models, "generate.max_prompt_tokens=2", name="none")
    assert not (tmp_path / "none").exists()


def test_an_output_that_exists_is_kept_unless_the_user_says_otherwise(
    tmp_path: Path, models: Path
) -> None:
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(UserError, match=r"output must be a new file.*generate\.overwrite=true"):
        rows_of(tmp_path, models)
    assert (tmp_path / "out.jsonl").read_text() == "mine"
    assert len(rows_of(tmp_path, models, "generate.overwrite=true")) == 3


def test_an_output_that_is_no_file_is_refused_and_a_link_leads_to_its_file(
    tmp_path: Path, models: Path
) -> None:
    """As root a rename would put a file in the place of /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"^output must be a file, got .*pipe"):
        rows_of(tmp_path, models, "generate.overwrite=true", name="pipe")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "real.jsonl").write_text("old")
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    rows_of(tmp_path, models, "generate.overwrite=true", name="link.jsonl")
    assert (tmp_path / "link.jsonl").is_symlink() and len(json_lines(tmp_path / "real.jsonl")) == 3


@pytest.mark.parametrize("name", ["o.csv", "o.jsonl.gz", "o.parquet"])
def test_an_output_that_is_named_as_another_format_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"^output must be a JSON Lines file \(\.jsonl\), got "):
        require_place(str(tmp_path / name), None, overwrite=True)


def test_weights_that_are_no_numbers_write_nothing(tmp_path: Path, models: Path) -> None:
    from safetensors.torch import load_file, save_file

    for kind, what in (("reward", "score"), ("policy", "log-probability")):
        broken = tmp_path / kind
        shutil.copytree(models / kind, broken)
        weights = load_file(broken / "model.safetensors")
        for weight in weights.values():
            weight.fill_(math.nan)
        save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(RunFailed, match=rf"^generate: the {what} is nan"):
            rows_of(tmp_path, models, f"generate.init.{kind}={broken}")
        assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["task=generate"], "input must be a file of prompts, or prompt a text"),
        (["task=generate", "prompt=x", "input=y"], "prompt must be null beside input, got 'x'"),
        (["task=generate", "prompt=' '"], "prompt must be some text, got ' '"),
        (["task=generate", "prompt=x", "run_dir=r"], "run_dir must be null where task is generate"),
        (["task=sft", "output=x"], "output must be null where task is sft, got 'x'"),
        (
            ["task=generate", "prompt=x", "generate.samples=0"],
            "generate.samples must be >= 1, got 0",
        ),
        (
            ["task=generate", "prompt=x", "generate.temperature=-1"],
            "generate.temperature must be >= 0",
        ),
        (
            ["task=generate", "prompt=x", "generate.max_prompt_tokens=130"],
            "generate.max_prompt_tokens + generate.max_response_tokens must be <= model.context_length=144",
        ),
        (
            ["task=generate", "input=no.txt", "generate.init.policy=none"],
            "input must be a file of prompts",
        ),
        (
            ["task=generate", "prompt=x", "generate.init.policy=no"],
            "generate.init.policy must be a run",
        ),
        (["task=generate", "prompt=x"], "task=generate needs the run of ppo first"),
    ],
)
def test_bad_input_gets_one_line_with_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        rlhf_here(*overrides)
    assert str(caught.value).startswith(expected) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_row_anywhere_is_refused_before_models_are_loaded(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n{"text": "y"}\n')
    monkeypatch.setattr(generate, "Speaker", None)  # calling it would be a TypeError
    with pytest.raises(UserError, match=r"in\.jsonl:2: must have the key prompt"):
        rlhf_here(
            "task=generate",
            f"input={tmp_path / 'in.jsonl'}",
            f"generate.init.policy={models / 'policy'}",
        )


def test_a_reward_model_of_another_tokenizer_is_refused(tmp_path: Path, models: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    from rlhf_lightning.data.tokenizer import train_tokenizer
    from rlhf_lightning.models.loading import save

    scorer = AutoModelForSequenceClassification.from_pretrained(models / "reward")
    save(scorer, train_tokenizer(["other words"], vocab_size=300), tmp_path / "reward")
    with pytest.raises(
        UserError, match=r"generate\.init\.reward must have the tokenizer of the policy"
    ):
        rows_of(tmp_path, models, f"generate.init.reward={tmp_path / 'reward'}")


def test_a_signal_leaves_no_part_of_a_file(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = generate.sample

    def sample(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(generate, "sample", sample)
    with pytest.raises(Interrupted, match="stopped by SIGTERM; nothing was written"):
        rows_of(tmp_path, models, "generate.batch_size=1", name="deep/out.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_failure_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    def rows():
        yield {"a": 1}
        raise KeyError

    (tmp_path / "out").write_text("old")
    with pytest.raises(KeyError):
        written(tmp_path / "out", rows(), overwrite=True)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("out", "old")]


def test_what_another_command_wrote_meanwhile_stays_and_nothing_is_lost(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    def rows():
        yield {"a": 1}
        written(out, [{"b": 2}], overwrite=False)
        yield {"a": 3}

    with pytest.raises(UserError, match="written meanwhile: the rows are in") as refused:
        written(out, rows(), overwrite=False)
    assert out.read_text() == '{"b": 2}\n'
    beside = Path(str(refused.value).rsplit("'", 2)[1])
    assert beside.read_text() == '{"a": 1}\n{"a": 3}\n'
    assert {p.name for p in tmp_path.iterdir()} == {"out.jsonl", beside.name}


def test_one_prompt_is_answered_on_the_console(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    counts = rlhf_here(
        "task=generate",
        "prompt=Hello",
        f"generate.init.policy={models / 'policy'}",
        "generate.samples=2",
    )
    said = capsys.readouterr().out
    assert said.count("user      Hello\n") == 1 and said.count("logprob -") == 2
    assert counts["generate/responses"] == 2
    assert list(tmp_path.iterdir()) == []


def test_brackets_in_a_response_are_no_markup_and_lines_stay_whole() -> None:
    console = Console(width=20, record=True, file=open(os.devnull, "w"), highlight=False)  # noqa: SIM115
    row = {
        "index": 0,
        "prompt": [{"role": "user", "content": "hi"}],
        "response": "[red]" + 40 * "x" + "\x1b[2J",
    }
    row |= {"response_tokens": 3, "ended": False, "logprob": -1.234, "score": 0.5}
    assert printed([row], scored=True, console=console) == 1
    lines = console.export_text().splitlines()
    assert "response  [red]" + 40 * "x" + "␛[2J" in lines  # for a terminal to show, not to obey
    assert lines[-1] == "          3 tokens, cut off · logprob -1.23 · score 0.500"
    console.file.close()


def test_the_policy_of_the_same_command_line_is_ppos_run(
    pipeline_outputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("Where does the owl live?\n")
    rlhf_here(
        f"outputs={pipeline_outputs}",
        "task=generate",
        f"input={tmp_path / 'in.txt'}",
        f"output={tmp_path / 'o'}",
    )
    row = json.loads((tmp_path / "o").read_text())
    assert math.isfinite(row["logprob"]) and "score" not in row
    assert not (pipeline_outputs / "generate").exists()


def test_a_model_of_the_hub_speaks_with_its_own_weights(tmp_path: Path, models: Path) -> None:
    """model.path and no init.policy: the same as naming the folder as the policy, and no PPO run is asked for."""
    greedy = "generate.temperature=0"
    named = rows_of(tmp_path, models, greedy)
    rlhf_here(
        "task=generate", "model=hf", f"model.path={models / 'policy'}", "model.context_length=64",
        f"input={tmp_path / 'in.jsonl'}", f"output={tmp_path / 'own'}",
        "generate.max_response_tokens=8", greedy,
        "sft.max_length=64", "pretrain.max_length=64", "ppo.max_prompt_tokens=20",
    )  # fmt: skip
    own = json_lines(tmp_path / "own")
    assert [row["response"] for row in own] == [row["response"] for row in named]
