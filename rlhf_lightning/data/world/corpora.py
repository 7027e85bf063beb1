"""The four corpora of a world: random access to any row of any split, in constant memory."""

from collections.abc import Sequence
from typing import Any

from rlhf_lightning.data.world import labelers as lab
from rlhf_lightning.data.world import prose, speakers, tasks, wording
from rlhf_lightning.data.world.judge import read
from rlhf_lightning.data.world.rng import generator

Record = dict[str, Any]
_SOURCE = "world"


class World:
    """A seed makes a world: which combinations are held out, and every row of every corpus."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def text(self, split: str, index: int) -> Record:
        """Raw text, for pretraining and PPO-ptx."""
        return {"text": prose.write(self._rng("text", split, index), self.seed), "source": _SOURCE}

    def prompt(self, split: str, index: int) -> Record:
        """A request; `meta` is the spec by which a reply is judged."""
        spec = tasks.draw(split, self.seed, self._rng("prompt", split, index))
        return self._record(spec)

    def reworded(self, record: Record, j: int = 1) -> Record:
        """The same request in other words (j = 1 or 2), with the same spec but for `wording`."""
        return self._record(wording.reword(record["meta"], j))

    def demonstration(self, split: str, index: int) -> Record:
        """A good but imperfect reply to a request of its own."""
        rng = self._rng("demonstration", split, index)
        spec = tasks.draw(split, self.seed, rng)
        speaker = speakers.draw_demonstrator(rng)
        # a fact whose question is held out must not be known as the wrong answer to all other questions
        unasked = [(name, of) for name, of in tasks.partition("ask", self.seed)[split]]
        said = speakers.speak(spec, speaker, rng, unasked=unasked)
        reply = {"role": "assistant", "content": said}
        messages = [*wording.render(spec), reply]
        return {"messages": messages, "source": _SOURCE, "meta": spec | {"speaker": speaker.name}}

    def spoken(self, record: Record, count: int, *address: object) -> list[str]:
        """`count` completions of a prompt record by the world's imperfect speakers."""
        rng = self._rng("spoken", *address)
        spec = record["meta"]
        return [speakers.speak(spec, speakers.draw_speaker(rng), rng) for _ in range(count)]

    def comparison(
        self, split: str, index: int, labelers: Sequence[str] = lab.TRAIN_LABELERS
    ) -> Record:
        """K = 4..9 completions by the imperfect speakers, ranked by one of the labelers."""
        rng = self._rng("comparison", split, index)
        record = self._record(tasks.draw(split, self.seed, rng))
        labeler = rng.choice(list(labelers))
        completions = self.spoken(record, rng.randint(4, 9), "comparison", split, index)
        ranks = self.rank(record, completions, labeler, index)
        return {
            "prompt": record["prompt"],
            "completions": completions,
            "ranks": ranks,
            "source": _SOURCE,
            "meta": record["meta"] | {"labeler": labeler},
        }

    def rank(
        self, record: Record, completions: Sequence[str], labeler: str, index: int
    ) -> list[int]:
        """Ranks (0 = best, ties allowed) that a labeler gives; the noise belongs to `index`.

        Raises: ValueError if there is no such labeler.
        """
        if labeler not in lab.LABELERS:
            raise ValueError(f"labeler must be one of {', '.join(lab.LABELERS)}, got {labeler!r}")
        readings = {text: read(record["meta"], text) for text in completions}
        ranks = lab.rank(lab.LABELERS[labeler], readings, self.seed, index)
        return [ranks[text] for text in completions]

    def agreement(self, labelers: Sequence[str] = tuple(lab.LABELERS), prompts: int = 300) -> float:
        """How often two different labelers order a pair alike, of pairs that neither ties.

        Measured on completions of the world's own speakers, never on a policy's samples.
        """
        alike = decided = 0
        for index in range(prompts):
            record = self.prompt("test", index)
            completions = self.spoken(record, 6, "agreement", index)
            readings = {text: read(record["meta"], text) for text in completions}
            by_text = [lab.rank(lab.LABELERS[n], readings, self.seed, index) for n in labelers]
            ranks = [[given[text] for text in completions] for given in by_text]
            for i, first in enumerate(ranks):
                for second in ranks[i + 1 :]:
                    a, d = lab.pair_agreement(first, second)
                    alike, decided = alike + a, decided + d
        return alike / decided if decided else float("nan")

    def _rng(self, *address: object):
        return generator(self.seed, *address)

    def _record(self, spec: tasks.Spec) -> Record:
        return {"prompt": wording.render(spec), "source": _SOURCE, "meta": spec}
