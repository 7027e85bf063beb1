"""A reward model of other making, as it is: its own forward pass on its own rendering of the conversation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
from rlhf_lightning.errors import RunFailed, UserError
from rlhf_lightning.rewards.base import Means, ScoreRequest

log = logging.getLogger("rlhf_lightning")

NO_LIMIT = 10**9
"""A tokenizer without a limit of its own says a number beyond this."""


class ExternalReward(nn.Module):
    """Any sequence classifier with one label; the policy's tokenizer plays no part unless it is the same one.

    Its raw logit is the score: reward_bias and reward_gain of this project's own artifacts are not applied.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        part: RewardPartConfig,
        *,
        key: str,
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.part, self.key = tokenizer, part, key
        self.max_length = part.max_length or _context(model, tokenizer)
        self._same_as: tuple[int, bool] = (0, False)
        self._means, self._warned = Means(), False

    @torch.no_grad()
    def forward(self, request: ScoreRequest) -> Tensor:
        """Scores (B,) of the record's messages with the response as the assistant's turn."""
        own = self._reads_tokens_of(request.tokenizer)
        rows = self._fitting(request.rows if own else self.encode(conversations(request)))
        device = request.prompt_ids.device
        # rows of like length share a batch: little padding is computed
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        pad, size = self.model.config.pad_token_id, self.part.batch_size
        if pad is None:  # it can find a row's last token in a batch of one only
            pad, size = 0, 1
        found = torch.empty(len(rows), device=device)
        for start in range(0, len(order), size):
            chunk = order[start : start + size]
            ids, mask = _right_padded([rows[i] for i in chunk], pad, device)
            found[chunk] = self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float()
        return found

    def encode(self, messages: Sequence[list[dict[str, str]]]) -> list[list[int]]:
        """Token ids of whole conversations, in the model's own template."""
        texts: Any = self.tokenizer.apply_chat_template(list(messages), tokenize=False)
        # the template writes the special tokens
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]  # type: ignore[return-value]

    def take_statistics(self) -> dict[str, float]:
        """`too_long`: share of the conversations that were longer than the model reads."""
        return {name: value for name, value in self._means.take().items() if value}

    def _fitting(self, rows: list[list[int]]) -> list[list[int]]:
        """The rows, those beyond the context without their oldest tokens."""
        longest = max(map(len, rows))
        beyond = [len(row) > self.max_length for row in rows]
        self._means.add("too_long", torch.tensor(beyond, dtype=torch.float32))
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
                "%s: conversations beyond %d tokens lose their oldest ones; the share is logged as too_long",
                self.key,
                self.max_length,
            )
        return [row[-self.max_length :] for row in rows]

    def _reads_tokens_of(self, other: PreTrainedTokenizerBase) -> bool:
        """Whether a tokenizer is the model's own; compared once for each."""
        if self._same_as[0] != id(other):
            self._same_as = (id(other), _same(self.tokenizer, other))
        return self._same_as[1]


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
    try:
        config = AutoConfig.from_pretrained(part.path, **options)
        if config.num_labels != 1:
            raise UserError(
                f"{key}.path must be a model with one label, got {part.path!r} with {config.num_labels}"
            )
        tokenizer = AutoTokenizer.from_pretrained(part.path, **options)
        if not tokenizer.chat_template:
            raise UserError(
                f"{key}.path must have a tokenizer with a chat template, got {part.path!r} without one"
            )
        model, report = AutoModelForSequenceClassification.from_pretrained(
            part.path,
            use_safetensors=True,
            dtype=getattr(torch, part.dtype),
            output_loading_info=True,
            **options,
        )
    except UserError:
        raise
    except (OSError, ValueError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{key}.path must be a hub id or folder with a sequence classifier, got {part.path!r} ({reason})"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{key}.path must have all weights of a sequence classifier, got {part.path!r} without {missing[0]}"
        )
    return ExternalReward(model, tokenizer, part, key=key)


def _context(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that the model says it reads."""
    config = model.config
    longest = getattr(config, "max_position_embeddings", getattr(config, "n_positions", None))
    limits = [longest, tokenizer.model_max_length]
    return int(min(limit for limit in (*limits, NO_LIMIT) if limit is not None))


def _same(ours: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers read any conversation alike: one vocabulary, one model of text, one template."""
    if ours is other:
        return True
    backends = [getattr(tokenizer, "backend_tokenizer", None) for tokenizer in (ours, other)]
    if None in backends:
        return False
    texts = [_bare(backend) for backend in backends]
    special = [(t.bos_token, t.eos_token, t.chat_template) for t in (ours, other)]
    return texts[0] == texts[1] and special[0] == special[1]


def _bare(backend: Any) -> str:
    """A fast tokenizer as text, without the padding and truncation that a call may have left set."""
    import json

    found = json.loads(backend.to_str())
    return json.dumps({k: v for k, v in found.items() if k not in ("padding", "truncation")})


def _right_padded(
    rows: Sequence[list[int]], pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Ids and mask (C, T): the first token of every row stands at position 0, as encoders want it."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask
