"""QA-Feedback: questions with passages, four answers and six judgements between them.

Source: Wu et al. 2023, Fine-Grained Human Feedback Gives Better Rewards, arXiv:2306.01693.
"""

from __future__ import annotations

from itertools import combinations

from rlhf_lightning.data.formats.base import Adapted, Format, Removed, Row, field, text_of, turn
from rlhf_lightning.data.sentences import first_chars
from rlhf_lightning.errors import UserError

_PREDICTIONS = tuple(f"prediction {number}" for number in (1, 2, 3, 4))
_PAIRS = tuple(combinations(range(4), 2))
"""What the six labels compare, in order: 1 v. 2, 1 v. 3, 1 v. 4, 2 v. 3, 2 v. 4, 3 v. 4."""


def _qa_feedback(
    row: Row,
    where: str,
    *,
    passage_chars: int | None = None,
    instruction: str = "Answer the question from the passages.",
    answer: str = "corrected",
) -> Adapted:
    """Options: `passage_chars`, how much of all passages together is kept, whole sentences; `instruction`, said
    first; `answer`, the demonstration: corrected (the first answer as people mended it), gold, or none.
    """
    if answer not in ("corrected", "gold", "none"):
        raise UserError(f"{where}: args.answer must be corrected, gold or none, got {answer!r}")
    question = text_of(field(row, "question", where), f"{where}: question")
    if not question:
        yield Removed("empty")
        return
    passages = first_chars(_passages(field(row, "passages", where), where), passage_chars)
    parts = (instruction, passages, f"Question: {question}")
    prompt = [turn("user", "\n\n".join(part for part in parts if part))]
    gold = text_of(row.get("gold") or "", f"{where}: gold")
    meta = {"references": [gold]} if gold else {}
    yield from _compared(row, where, prompt, meta)
    mended = (row.get("feedback") or {}).get("corrected-prediction") or ""
    reply = {"corrected": text_of(mended, f"{where}: feedback"), "gold": gold}.get(answer)
    if reply:
        yield "demonstration", {"messages": [*prompt, turn("assistant", reply)], "meta": meta}
    elif answer != "none":
        yield Removed("no_answer")


def _compared(
    row: Row, where: str, prompt: list[dict[str, str]], meta: dict[str, list[str]]
) -> Adapted:
    texts = [text_of(field(row, key, where), f"{where}: {key}") for key in _PREDICTIONS]
    labels = field(row, "preference", where)
    if not isinstance(labels, list) or len(labels) != 6 or not set(labels) <= {0, 1, 2}:
        raise UserError(f"{where}: preference must be six labels 0, 1 or 2, got {labels!r:.60}")
    pairs = [
        [a, b] if label == 1 else [b, a]
        for (a, b), label in zip(_PAIRS, labels, strict=True)
        if label
    ]
    if pairs:
        yield (
            "comparison",
            {"prompt": prompt, "completions": texts, "pairs": pairs, "meta": meta},
        )
    else:
        yield Removed("all_tied")


def _passages(value: object, where: str) -> str:
    """Each passage is its title and its sentences; the first sentence may repeat the title."""
    if not isinstance(value, list) or not all(isinstance(p, list) and p for p in value):
        raise UserError(
            f"{where}: passages must be lists of title and sentences, got {value!r:.60}"
        )
    shown = []
    for title, *sentences in value:
        body = " ".join(s.strip() for s in sentences).removeprefix(title).strip()
        shown.append(f"{title}\n{body}".strip())
    return "\n\n".join(shown)


QA_FEEDBACK = (
    Format(
        "qa_feedback",
        "question, passages, prediction 1 ... prediction 4, preference",
        lambda r: {"question", "passages", "preference"} <= r.keys(),
        _qa_feedback,
    ),
)
