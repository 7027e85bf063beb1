import pytest

from rlhf_lightning.config import (
    MixConfig,
    PPOConfig,
    PTXConfig,
    RewardConfig,
    SFTConfig,
    SourceConfig,
)
from rlhf_lightning.data import batching, collate
from rlhf_lightning.data.loader import ResumableLoader
from rlhf_lightning.data.mixture import Mixture
from rlhf_lightning.errors import UserError


def mixture(seed=0, **args):
    source = SourceConfig(target="tests.data.conftest.Numbers", args=args)
    return Mixture(MixConfig(name="t", sources={"a": source}), seed)


def sft(tokenizer, mix, split="train", kind="text", **hp):
    config = SFTConfig(max_length=64, **hp)
    return batching.sft_batches(mix, tokenizer, kind=kind, hp=config, split=split, seed=0)


def said(tokenizer, batch):
    """The documents of a packed batch as text."""
    texts = []
    for ids, number in zip(batch.ids, batch.documents, strict=True):
        for n in range(1, int(number.max()) + 1):
            texts += [tokenizer.decode(ids[number == n], skip_special_tokens=True)]
    return texts


def test_sft_steps_are_the_epochs_examples_in_global_batches(tokenizer):
    loader = sft(tokenizer, mixture(size=10), examples=50, epochs=3, global_batch_size=8)
    assert len(loader) == 4  # 3 × 10 examples: 8 + 8 + 8 + 6
    texts = [said(tokenizer, batch) for batch in loader]
    assert [len(t) for t in texts] == [8, 8, 8, 6]
    every = [text for t in texts for text in t]
    assert {every.count(f"n {i}") for i in range(10)} == {3}
    assert loader.counts == {"examples": 30, "too_long": 0}


def test_an_endless_source_repeats_the_same_examples_in_each_epoch(tokenizer):
    loader = sft(tokenizer, mixture(), examples=12, epochs=2, global_batch_size=12)
    first, second = (said(tokenizer, batch) for batch in loader)
    assert set(first) == set(second)
    assert len(set(first)) == 12


def test_a_demonstration_with_a_column_of_text_is_learned_from_its_messages(tokenizer, monkeypatch):
    mix = mixture()
    plain = mix.sources["a"].record
    monkeypatch.setattr(
        mix.sources["a"], "record", lambda *place: plain(*place) | {"text": "rendered elsewhere"}
    )
    batch = next(iter(sft(tokenizer, mix, kind="demonstration", examples=4)))
    assert "rendered" not in " ".join(said(tokenizer, batch))
    assert 0 < int(batch.loss_mask.sum()) < int((batch.documents > 0).sum())  # of the answer alone


def test_what_is_too_long_is_dropped_and_counted(tokenizer):
    loader = sft(tokenizer, mixture(long_every=4), examples=20, global_batch_size=10)
    assert sum(len(said(tokenizer, batch)) for batch in loader) == 15
    assert loader.counts == {"examples": 15, "too_long": 5}


def test_validation_takes_its_examples_once_and_starts_over(tokenizer):
    loader = sft(
        tokenizer, mixture(), split="validation", eval_examples=20, epochs=3, global_batch_size=16
    )
    assert not isinstance(loader, ResumableLoader)
    assert len(loader) == 2
    first, again = ([said(tokenizer, b) for b in loader] for _ in range(2))
    assert first == again


def test_only_too_long_examples_are_refused(tokenizer):
    loader = sft(tokenizer, mixture(long_every=1), examples=20, global_batch_size=10)
    with pytest.raises(
        UserError,
        match=r"sft.max_length must be enough .* got 64: all 10 of the first batch are longer",
    ):
        next(iter(loader))


def test_a_later_batch_may_lose_all_its_examples(tokenizer):
    """Where only some of the replies are short enough, a run must not end at an unlucky batch."""
    mix = mixture()
    record = mix.record
    mix.record = lambda kind, split, i: (
        {"text": "x" * 500} if i % 3 == 2 else record(kind, split, i)
    )
    loader = sft(tokenizer, mix, examples=6, global_batch_size=1)
    assert [bool(batch.mask.any()) for batch in loader] == [True, True, False] * 2
    assert loader.counts == {"examples": 4, "too_long": 2}


def test_missing_kinds_are_refused_before_the_first_batch(tokenizer):
    with pytest.raises(UserError, match="no source has demonstrations"):
        sft(tokenizer, mixture(kinds=("text",)), kind="demonstration")
    with pytest.raises(UserError, match="no source has prompts"):
        batching.prompt_batches(mixture(kinds=("text",)), tokenizer, hp=PPOConfig())
    with pytest.raises(UserError, match="no source has text"):
        hp = PPOConfig(ptx=PTXConfig(coef=1))
        batching.prompt_batches(mixture(kinds=("prompt",)), tokenizer, hp=hp)
    with pytest.raises(UserError, match="reward needs comparisons to learn from, got none"):
        batching.comparison_batches([], tokenizer, hp=RewardConfig(), max_length=64, seed=0)


def ppo(**settings):
    sizes = {
        "episodes_per_iteration": 8,
        "minibatch_size": 4,
        "micro_batch_size": 4,
        "eval_prompts": 8,
    }
    return PPOConfig(**{"iterations": 3, **sizes, **settings})


def indices(batch):
    return [record["meta"]["index"] for record in batch.prompts.records]


def test_ppo_prompts_are_new_ones_and_long_ones_are_replaced(tokenizer):
    hp = ppo(ptx=PTXConfig(coef=1, examples_per_episode=2))
    loader = batching.prompt_batches(mixture(long_every=5), tokenizer, hp=hp)
    batches = list(loader)
    used = [i for batch in batches for i in indices(batch)]
    # 0, 5, 10, 15, 20 of the 24 are too long; the one 24 further is not (24 is no multiple of 5)
    assert sorted(used) == sorted(i + 24 * (i % 5 == 0) for i in range(24))
    assert loader.counts["prompts"] == 24
    assert loader.counts["prompts_too_long"] == 5
    assert loader.counts["texts"] + loader.counts["texts_too_long"] == 48
    assert all(len(batch.pretraining) == hp.minibatches == 2 for batch in batches)
    assert all(text.mask.any() for batch in batches for text in batch.pretraining)


def test_ppo_texts_are_dealt_to_minibatches_before_packing_sorts_them(tokenizer):
    """Dealt after it, the first minibatch had the longest texts and the last ones none at all."""
    hp = ppo(minibatch_size=2, micro_batch_size=2, ptx=PTXConfig(coef=1, examples_per_episode=1))
    source = mixture()
    batch = next(iter(batching.prompt_batches(source, tokenizer, hp=hp)))
    texts = [source.record("text", "train", i)["text"] for i in range(8)]
    deals = [collate.encode_texts(tokenizer, texts[i::4], 140) for i in range(4)]
    for text, deal in zip(batch.pretraining, deals, strict=True):
        assert sorted(int(n) for n in (text.loss_mask.sum(1))) == [
            sum(sum(document.loss_mask) for document in deal)
        ]


def test_a_later_batch_may_lose_all_its_texts(tokenizer):
    """It would end a run in its middle, and every time again."""
    hp = ppo(max_prompt_tokens=40, max_response_tokens=8, ptx=PTXConfig(coef=1))
    source = mixture()
    record = source.record

    def only_long_ones_after_the_first_batch(kind, split, index):
        long = kind == "text" and index >= 8
        return {"text": "a b c d e f g h " * 200} if long else record(kind, split, index)

    source.record = only_long_ones_after_the_first_batch
    loader = batching.prompt_batches(source, tokenizer, hp=hp)
    first, *others = list(loader)
    assert any(text.mask.any() for text in first.pretraining)
    assert not any(text.mask.any() for batch in others for text in batch.pretraining)
    assert loader.counts["texts_too_long"] >= 16
    loader = batching.prompt_batches(source, tokenizer, hp=hp, start=24)
    with pytest.raises(UserError, match=r"^ppo\.max_prompt_tokens \+ .* all 8 of the first batch"):
        next(iter(loader))


def test_ppo_batches_can_be_made_alone(tokenizer):
    straight = list(batching.prompt_batches(mixture(long_every=5), tokenizer, hp=ppo()))
    assert straight[0].pretraining == []
    resumed = batching.prompt_batches(mixture(long_every=5), tokenizer, hp=ppo())
    resumed.load_state_dict({"position": 2, "total": 3, "counts": {}})
    assert [indices(b) for b in resumed] == [indices(straight[2])]
    other = batching.prompt_batches(mixture(), tokenizer, hp=ppo(), start=24)
    assert indices(next(iter(other))) == list(range(24, 32))


def test_prompts_that_never_fit_are_refused(tokenizer):
    with pytest.raises(UserError, match=r"ppo.max_prompt_tokens must be enough .* got [0-9]+"):
        next(iter(batching.prompt_batches(mixture(long_every=1), tokenizer, hp=ppo())))
    with pytest.raises(UserError, match=r"ppo.max_prompt_tokens must be enough .* got 96"):
        batching.first_prompts(
            mixture(long_every=1), tokenizer, split="test", count=4, max_prompt_tokens=96, say=print
        )


def test_first_prompts_are_distinct_and_as_many_as_there_are(tokenizer):
    def take(mix, **options):
        given = {"split": "test", "max_prompt_tokens": 96, "say": said.append, **options}
        return batching.first_prompts(mix, tokenizer, **given)

    said: list[str] = []
    endless = take(mixture(long_every=2), count=40)
    assert said == ["40 test prompts left out: more than 96 tokens"]
    assert [p.record["meta"]["index"] for p in endless] == list(range(1, 80, 2))
    assert [p.index for p in endless] == list(range(1, 80, 2))
    said.clear()
    assert len(take(mixture(size=10), count=40)) == 10
    assert take(mixture(), count=3, start=7)[0].index == 7
    assert said == []
    assert len(take(mixture(size=10, long_every=2), count=40)) == 5
    assert said == ["5 test prompts left out: more than 96 tokens"]


def test_prompts_that_are_cut_are_not_left_out(tokenizer, monkeypatch):
    said: list[str] = []
    source = SourceConfig(target="tests.data.conftest.Numbers", args={"long_every": 3})
    mix = Mixture(
        MixConfig(name="t", sources={"a": source}, over_long="cut"), 0
    )  # 0, 3, 6, ... are long
    cut = [{"role": "user", "content": "n"}]
    monkeypatch.setattr(
        "rlhf_lightning.data.prompts.cut_prompt",
        lambda _tokenizer, messages, _limit: cut if messages[0]["content"][2] != "3" else None,
    )
    options = {"split": "test", "max_prompt_tokens": 96, "say": said.append}
    found = batching.first_prompts(mix, tokenizer, count=6, **options)
    assert [p.index for p in found] == [0, 1, 2, 4, 5, 6]  # the last one is a cut one
    assert said == [
        f"{n} test prompts {what}: more than 96 tokens" for n, what in ((1, "left out"), (2, "cut"))
    ]


def comparison(i, ranks=(0, 1, 2)):
    prompt = [{"role": "user", "content": f"q {i}"}]
    return {"prompt": prompt, "completions": ["a", "b b", "c" * 100], "ranks": list(ranks)}


def comparisons(tokenizer, records, **options):
    hp = RewardConfig(epochs=2, global_batch_size=4)
    given = {"max_length": 200, "seed": 0, **options}
    return batching.comparison_batches(records, tokenizer, hp=hp, **given)


def test_each_epoch_sees_every_comparison_once(tokenizer):
    loader = comparisons(tokenizer, [comparison(i) for i in range(6)])
    assert len(loader) == 3
    order = [r["prompt"][0]["content"] for batch in loader for r in batch.records]
    assert sorted(order[:6]) == sorted(order[6:])
    assert order[:6] != order[6:]
    assert loader.counts == {"prompts": 12, "prompts_dropped": 0, "completions_too_long": 0}


def test_a_long_completion_goes_with_its_pairs(tokenizer):
    records = [comparison(0), comparison(1, ranks=(0, 0, 1))]
    loader = comparisons(tokenizer, records, max_length=30)
    (batch,) = loader
    # of the first prompt one pair is left; the second keeps two tied completions, so nothing to learn
    assert {r["prompt"][0]["content"] for r in batch.records} == {"q 0"}
    assert batch.pairs.tolist() == [[0, 1], [2, 3]]  # one for each of the two epochs
    assert loader.counts == {"prompts": 2, "prompts_dropped": 2, "completions_too_long": 4}


def test_a_later_batch_may_lose_all_its_comparisons(tokenizer):
    records = [comparison(i) for i in range(4)]
    records.append(comparison(4) | {"prompt": [{"role": "user", "content": "q" * 300}]})
    loader = comparisons(tokenizer, records, train=False)
    sizes = [len(batch.records) for batch in loader]
    assert sizes == [4, 0]
    assert loader.counts["prompts_dropped"] == 1


def test_evaluation_keeps_tied_prompts_and_the_order(tokenizer):
    records = [comparison(i, ranks=(1, 1, 1)) for i in range(6)]
    loader = comparisons(tokenizer, records, train=False)
    assert [r for batch in loader for r in batch.records] == records
    with pytest.raises(
        UserError, match=r"model.context_length must be enough for comparisons .* got 4"
    ):
        next(iter(comparisons(tokenizer, records, max_length=4)))
