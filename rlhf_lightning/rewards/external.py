"""A reward model of other making, as it is: its own forward pass on its own rendering of the conversation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_lightning.config import RewardPartConfig
from rlhf_lightning.data.encode import encode_conversations, encode_words
from rlhf_lightning.errors import RunFailed, UserError
from rlhf_lightning.models.head import ScalarHead
from rlhf_lightning.models.loading import context_of, refusing
from rlhf_lightning.rewards.base import Means, ScoreRequest

log = logging.getLogger("rlhf_lightning")

NO_LIMIT = 10**9
"""A tokenizer without a limit of its own says a number beyond this."""


@dataclass(frozen=True)
class _Row:
    """What the model reads of one conversation."""

    ids: list[int]
    segments: list[int] | None = None
    """Which of the two texts of a pair a token is of; None: the model is not told."""

    def __len__(self) -> int:
        return len(self.ids)

    def without(self, start: int, count: int) -> _Row:
        """The row less `count` tokens from `start` on."""

        def less(part: list[int]) -> list[int]:
            return part[:start] + part[start + count :]

        return _Row(less(self.ids), None if self.segments is None else less(self.segments))


@dataclass(frozen=True)
class _Frame:
    """What a tokenizer writes around a pair of texts."""

    before: _Row
    between: _Row
    after: _Row
    segments: tuple[int, int] | None
    """Those of the two texts."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, key: str) -> _Frame:
        """Raises: UserError if it writes nothing between them."""
        found: Any = tokenizer("a", "b")
        place = found.sequence_ids(0)  # None: of neither
        ids, types = found["input_ids"], found.get("token_type_ids")
        first, second = place.index(0), place.index(1)
        first_end, second_end = (len(place) - place[::-1].index(text) for text in (0, 1))

        def part(start: int, end: int) -> _Row:
            return _Row(ids[start:end], None if types is None else types[start:end])

        if first_end == second:
            raise UserError(
                f"{key}.reads must be chat where the tokenizer writes nothing between two texts, got 'pair'"
            )
        segments = None if types is None else (types[first], types[second])
        return cls(part(0, first), part(first_end, second), part(second_end, len(ids)), segments)

    def around(self, first: list[int], second: list[int]) -> _Row:
        """The row of two texts."""
        ids = [*self.before.ids, *first, *self.between.ids, *second, *self.after.ids]
        if self.segments is None:
            return _Row(ids)
        frame = [part.segments or [] for part in (self.before, self.between, self.after)]
        one, two = ([kind] * len(t) for kind, t in zip(self.segments, (first, second), strict=True))
        return _Row(ids, [*frame[0], *one, *frame[1], *two, *frame[2]])


class ExternalReward(nn.Module):
    """Any sequence classifier with one label; the policy's tokenizer plays no part.

    It reads the conversation in its own chat template, to the template's last character, or prompt and answer as a
    pair of texts; what people or the policy wrote never becomes a special token. An artifact of this project has
    learned to judge at EOS, so it is read up to there. Its raw logit is the score: reward_bias and reward_gain are not
    applied.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        part: RewardPartConfig,
        *,
        key: str,
        until_eos: bool = False,
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.part, self.key, self.until_eos = tokenizer, part, key, until_eos
        self.max_length = _max_length(model, tokenizer, part, key)
        self._frame = _Frame.of(tokenizer, key) if part.reads == "pair" else None
        self._means, self._warned = Means(), False

    @torch.no_grad()
    def forward(self, request: ScoreRequest) -> Tensor:
        """Scores (B,) of the record's messages with the response as the assistant's turn."""
        rows = self._fitting(self._rows(conversations(request)), request.counted)
        device = request.prompt_ids.device
        # rows of like length share a batch: little padding is computed
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        config: Any = self.model.config.get_text_config()  # type: ignore[union-attr]
        pad, size = config.pad_token_id, self.part.batch_size
        if pad is None or not 0 <= pad < config.vocab_size:
            pad, size = 0, 1  # it can find a row's last token in a batch of one only
        found = torch.empty(len(rows), device=device)
        for start in range(0, len(order), size):
            chunk = order[start : start + size]
            inputs = _right_padded([rows[i] for i in chunk], pad, device)
            # in the precision that was asked for, whatever the trainer computes in
            with torch.autocast(device.type, enabled=False):
                found[chunk] = self.model(**inputs).logits[:, 0].float()
        return found

    def _rows(self, messages: Sequence[list[dict[str, str]]]) -> list[_Row]:
        if self.part.reads == "chat":
            return [_Row(ids) for ids in self.encode(messages)]
        asked = ["\n\n".join(m["content"] for m in said[:-1]) for said in messages]
        answers = [said[-1]["content"] for said in messages]
        texts = (encode_words(self.tokenizer, part) for part in (asked, answers))
        assert self._frame is not None  # reads=pair
        return [self._frame.around(*pair) for pair in zip(*texts, strict=True)]

    def encode(self, messages: Sequence[list[dict[str, str]]]) -> list[list[int]]:
        """Token ids of whole conversations, in the model's own template."""
        try:
            rows = encode_conversations(self.tokenizer, messages)
        except UserError as error:  # a template that refuses a role
            raise RunFailed(f"{self.key}.path={self.part.path}: {error}") from error
        return [self._up_to_eos(row) for row in rows] if self.until_eos else rows

    def _up_to_eos(self, row: list[int]) -> list[int]:
        """Without what the template writes behind the last EOS."""
        eos: Any = self.tokenizer.eos_token_id
        return row[: len(row) - row[::-1].index(eos)] if eos in row else row

    def take_statistics(self) -> dict[str, float]:
        """`too_long`: share of the conversations that were longer than the model reads."""
        return self._means.take()

    def _fitting(self, rows: list[_Row], counted: Tensor | None = None) -> list[_Row]:
        """The rows, those beyond the context without their oldest tokens."""
        longest = max(map(len, rows))
        beyond = [len(row) > self.max_length for row in rows]
        self._means.add("too_long", torch.tensor(beyond, dtype=torch.float32), counted)
        if not any(beyond):
            return rows
        if self.part.too_long == "error":
            raise RunFailed(
                f"{self.key}.max_length={self.max_length}: a conversation has {longest} tokens"
                f" ({self.key}.too_long=cut reads its last ones)"
            )
        if not self._warned:
            self._warned = True
            log.warning(
                "%s: conversations beyond %d tokens lose their oldest ones (too_long in the metrics of a run)",
                self.key,
                self.max_length,
            )
        return [self._cut(row) if far else row for row, far in zip(rows, beyond, strict=True)]

    def _cut(self, row: _Row) -> _Row:
        """Its last tokens, behind the first one where that is what an encoder reads, or BOS."""
        read = row.ids[0] in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id)
        first = 1 if read and self.max_length > 1 else 0
        return row.without(first, len(row) - self.max_length)


def conversations(request: ScoreRequest) -> list[list[dict[str, str]]]:
    """The messages of each row: its record's prompt and the response."""
    return [
        [*record["prompt"], {"role": "assistant", "content": response}]
        for record, response in zip(request.records, request.responses, strict=True)
    ]


def load_external(part: RewardPartConfig, *, key: str) -> ExternalReward:
    """The model of a part of kind `model`.

    Raises: UserError that begins with `key` if there is none at its path, it has not one label, lacks weights or a chat
    template. What can be told from the config is told before the weights are read.
    """
    assert part.path is not None
    options: dict[str, Any] = {
        "revision": part.revision,
        "trust_remote_code": part.trust_remote_code,
    }
    template = _given_template(part, key)
    what = f"{key}.path must be a hub id or folder with a sequence classifier, got {part.path!r}"
    with refusing(what):
        config = AutoConfig.from_pretrained(part.path, **options)
        if config.num_labels != 1:
            raise UserError(
                f"{key}.path must be a model with one label, got {part.path!r} with {config.num_labels}"
            )
        tokenizer = AutoTokenizer.from_pretrained(part.path, **options)
        if template is not None:
            tokenizer.chat_template = template
        if part.reads == "chat" and not tokenizer.chat_template:
            raise UserError(part.without_template(key))
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise UserError(f"{key}.path must have a tokenizer.json, got {part.path!r} without one")
        # what the tokenizer cannot do is told before the weights are read
        if template is not None:
            _require_renders(tokenizer, part, key)
        if part.reads == "pair":
            _Frame.of(tokenizer, key)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            part.path,
            use_safetensors=True,
            dtype=getattr(torch, part.dtype),
            output_loading_info=True,
            **options,
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{key}.path must have all weights of a sequence classifier, got {part.path!r} without {missing[0]}"
        )
    if isinstance(head := getattr(model, "score", None), nn.Linear):
        model.score = ScalarHead.of(head)
    return ExternalReward(model, tokenizer, part, key=key, until_eos=hasattr(config, "reward_bias"))


def _given_template(part: RewardPartConfig, key: str) -> str | None:
    """The text of the part's chat template.

    Raises: UserError if it cannot be read.
    """
    if part.chat_template is None:
        return None
    try:
        found = Path(part.chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{key}.chat_template must be a readable file, got {part.chat_template!r} ({error})"
        ) from None
    if not found.strip():
        raise UserError(f"{key}.chat_template must not be empty, got {part.chat_template!r}")
    return found


def _require_renders(tokenizer: PreTrainedTokenizerBase, part: RewardPartConfig, key: str) -> None:
    """Raises: UserError if a template that was given cannot write a question and its answer."""
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        encode_conversations(tokenizer, [said])
    except (UserError, TypeError, ValueError, LookupError) as error:  # a template is a program
        raise UserError(
            f"{key}.chat_template must be a Jinja template of messages, got {part.chat_template!r} ({error})"
        ) from None


def _max_length(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: RewardPartConfig, key: str
) -> int:
    """Tokens of one conversation: what the part says, or else the model and its tokenizer.

    Raises: UserError if the part says more than the model has positions.
    """
    longest = _positions(model)
    if part.max_length is not None and part.max_length > longest:
        raise UserError(
            f"{key}.max_length must be <= {longest}, the context of {part.path}, got {part.max_length}"
        )
    return part.max_length or int(min(longest, tokenizer.model_max_length))


def _positions(model: PreTrainedModel) -> int:
    """Positions of a model that text can have; RoBERTa and its kin begin to count behind the padding's."""
    places = (m for name, m in model.named_modules() if name.endswith("position_embeddings"))
    skipped = max((getattr(m, "padding_idx", None) or -1 for m in places), default=-1) + 1
    longest = context_of(model.config)
    return NO_LIMIT if longest is None else longest - skipped


def _right_padded(rows: Sequence[_Row], pad: int, device: torch.device) -> dict[str, Tensor]:
    """The model's inputs (C, T): the first token of every row stands at position 0, as encoders want it."""
    width = max(map(len, rows))

    def padded(parts: list[list[int]], filler: int) -> Tensor:
        return torch.tensor([[*p, *[filler] * (width - len(p))] for p in parts], device=device)

    found = {
        "input_ids": padded([row.ids for row in rows], pad),
        "attention_mask": padded([[1] * len(row) for row in rows], 0),
    }
    segments = [row.segments for row in rows if row.segments is not None]
    return found | ({"token_type_ids": padded(segments, 0)} if segments else {})
