"""Rewards whose every point can be explained: nearness to reference texts, the valence of the words, too few words.

For `reward_source.parts.NAME.target` and `evaluate.known.NAME.target`; pure functions of the text, no network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError

ROUGE_KINDS = ("rouge1", "rouge2", "rougeL")


class RougeLength:
    """Nearness to the record's references, less what the length is off.

    score = max over references of the mean F1 of `kinds` − length_weight · min(1, |words/target_words − 1|).
    Between −length_weight and 1. F1 is torchmetrics' ROUGE without stemming: words are runs of a-z and 0-9 in lower
    case. References are record["meta"]["references"]; words of the response are counted between white space.
    Raises: UserError for a kind or number out of range, and for a record without references.
    Source: Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries.
    """

    def __init__(
        self,
        *,
        target_words: int,
        length_weight: float = 0.5,
        kinds: Sequence[str] = ROUGE_KINDS,
    ) -> None:
        unknown = [kind for kind in kinds if kind not in ROUGE_KINDS]
        if unknown or not kinds:
            raise UserError(f"kinds must be of {', '.join(ROUGE_KINDS)}, got {list(kinds)}")
        if target_words < 1:
            raise UserError(f"target_words must be >= 1, got {target_words}")
        if length_weight < 0:
            raise UserError(f"length_weight must be >= 0, got {length_weight}")
        self.target_words, self.length_weight, self.kinds = (
            target_words,
            length_weight,
            tuple(kinds),
        )

    def __call__(self, prompt: str, response: str, *, record: Mapping[str, Any]) -> float:
        """The score of one response."""
        references = record.get("meta", {}).get("references")
        if not isinstance(references, list) or not references:
            raise UserError(
                "RougeLength needs records whose meta.references is a list of texts, got"
                f" {references!r:.60} from source {record.get('source')!r}"
            )
        near = max(self._f1(response, reference) for reference in references)
        off = min(1.0, abs(len(response.split()) / self.target_words - 1))
        return near - self.length_weight * off

    def _f1(self, response: str, reference: str) -> float:
        from torchmetrics.functional.text import rouge_score

        found = rouge_score(response, reference, rouge_keys=self.kinds, accumulate="best")
        return sum(float(found[f"{kind}_fmeasure"]) for kind in self.kinds) / len(self.kinds)


class TooShort:
    """What a response is short of so many words, between −1 (no word at all) and 0.

    score = min(0, words/min_words − 1); words are counted between white space. Beside a reward model, which has seen no
    empty completion and may say anything of one, it closes that way out (`reward_source=weighted`).
    Raises: UserError for a number below 1.
    """

    def __init__(self, *, min_words: int) -> None:
        if min_words < 1:
            raise UserError(f"min_words must be >= 1, got {min_words}")
        self.min_words = min_words

    def __call__(self, prompt: str, response: str) -> float:
        """The score of one response."""
        return min(0.0, len(response.split()) / self.min_words - 1)


WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
NEGATIONS = frozenset(
    {"no", "not", "never", "none", "nobody", "nothing", "neither", "nor", "nowhere"}
    | {"hardly", "scarcely", "without", "cannot", "cant"}
)
NEGATION_REACH = 3
"""Words before a word in which a negation turns it."""
NEGATED = -0.74
"""A negated word counts this times its valence: “not good” is bad, but less so than “bad” (VADER's number)."""


class LexiconSentiment:
    """Mean valence of the response's words that a lexicon knows, squashed to (−1, 1).

    score = tanh(m / 2), m the mean over found words of valence, times −0.74 after a negation among the three words
    before; a word that none knows counts for nothing, and a response without any known word has 0. A response with
    fewer than `min_words` words has −1: to say nothing must not be the way out of saying something bad.
    `path` is a file of lines WORD tab VALENCE (tab ...), valences −4 … 4, as VADER's lexicon is.
    Of VADER itself only lexicon and negation are taken: no boosters, no capitals, no punctuation, no idioms.
    Raises: UserError if the file is not there or not such a file.
    Source: Hutto and Gilbert 2014, VADER.
    """

    def __init__(self, *, path: str, min_words: int = 1) -> None:
        self.valences, self.min_words = read_lexicon(path), min_words

    def __call__(self, prompt: str, response: str) -> float:
        """The score of one response."""
        words = [word.lower().replace("’", "'") for word in WORD.findall(response)]
        if len(words) < self.min_words:
            return -1.0
        found = [self._valence(words, i) for i in range(len(words)) if words[i] in self.valences]
        return math.tanh(sum(found) / len(found) / 2) if found else 0.0

    def _valence(self, words: list[str], place: int) -> float:
        before = words[max(0, place - NEGATION_REACH) : place]
        negated = any(word in NEGATIONS or word.endswith("n't") for word in before)
        return self.valences[words[place]] * (NEGATED if negated else 1.0)


def read_lexicon(path: str) -> dict[str, float]:
    """Word → mean valence, of a tab-separated file in VADER's format.

    Raises: UserError with file and line.
    """
    file, valences = Path(path).expanduser(), {}
    if not file.is_file():
        raise UserError(f"path must be a lexicon file, got {path!r}, which does not exist")
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        word, _, rest = line.partition("\t")
        try:
            valences[word.lower()] = float(rest.split("\t")[0])
        except ValueError:
            raise UserError(f"{path}:{number}: must be WORD tab NUMBER, got {line!r:.60}") from None
    if not valences:
        raise UserError(f"{path}: must hold at least one word, got an empty file")
    return valences
