"""Records → token ids. Nothing is ever cut: what is too long is None, and the caller counts it.

A chat text is tokenised in pieces, up to each assistant turn and then the turn itself. So the ids in training are
those that the sampler sees (`encode_prompt` + `encode_completion`), and which tokens are the assistant's is exact.
BOS and other special tokens of a chat are those that the template writes, as in transformers; raw text has one BOS.
What people wrote never becomes a special token, whatever it says (`data.plain`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from rlhf_lightning.data.plain import marked_messages, plain_text
from rlhf_lightning.data.records import Message
from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]


@dataclass(slots=True)
class Encoded:
    """One document."""

    ids: Ids
    loss_mask: list[bool]
    """True where the token is a target. Never the first one: nothing predicts it."""
    replies_not_learnt: int = 0
    """Earlier answers that are no targets, because the template shows them otherwise than they were said."""

    @property
    def reply_tokens(self) -> int:
        """The last targets in a row: of a demonstration its last reply, with EOS."""
        runs = [sum(run) for target, run in groupby(self.loss_mask) if target]
        return runs[-1] if runs else 0


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> Encoded | None:
    """BOS (if the tokenizer has one) + text + EOS; every token but the first is a target."""
    return encode_texts(tokenizer, [text], max_length)[0]


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> list[Encoded | None]:
    """`encode_text` of many."""
    bos, eos = _bos(tokenizer), _eos(tokenizer)
    rows = [bos + ids + eos for ids in encode_words(tokenizer, texts)]
    return [
        Encoded(ids, [False] + [True] * (len(ids) - 1)) if len(ids) <= max_length else None
        for ids in rows
    ]


def encode_demonstration(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_length: int
) -> Encoded | None:
    """The rendered conversation; targets are the assistant's tokens and the EOS of its turns.

    Some templates (Qwen3's) rewrite earlier answers when the conversation goes on. Then the last answer alone is
    learnt, behind what the sampler would see there.

    Raises: UserError if the chat template does not even render a prompt as the beginning of its answered form.
    """
    return encode_demonstrations(tokenizer, [messages], max_length)[0]


def encode_demonstrations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    max_length: int,
) -> list[Encoded | None]:
    """`encode_demonstration` of many."""
    pieces = _pieces(tokenizer, conversations)
    tokens = iter(_tokenise(tokenizer, [piece for row in pieces for piece in row]))
    (eos,) = _eos(tokenizer)
    encoded: list[Encoded | None] = []
    for messages, row in zip(conversations, pieces, strict=True):
        document = _document([next(tokens) for _ in row], eos)
        replies = sum(message["role"] == "assistant" for message in messages)
        document.replies_not_learnt = replies - len(row) // 2
        encoded.append(document if len(document.ids) <= max_length else None)
    return encoded


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Ids:
    """The rendered prompt, ending where the assistant begins to speak."""
    return encode_prompts(tokenizer, [messages])[0]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Message]]
) -> list[Ids]:
    """`encode_prompt` of many."""
    return _tokenise(tokenizer, _render(tokenizer, prompts, generate=True))


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]
) -> list[Ids]:
    """Whole conversations as the chat template writes them, to its last character."""
    return _tokenise(tokenizer, _render(tokenizer, conversations, generate=False))


def encode_completion(tokenizer: PreTrainedTokenizerBase, text: str) -> Ids:
    """A response as the policy emits it: its tokens and EOS."""
    return encode_completions(tokenizer, [text])[0]


def encode_completions(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Ids]:
    """`encode_completion` of many."""
    eos = _eos(tokenizer)
    return [ids + eos for ids in encode_words(tokenizer, texts)]


def encode_words(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Ids]:
    """What people wrote, without any special token."""
    plain = plain_text(tokenizer)
    return _tokenise(tokenizer, [plain.marked(text) for text in texts])


def _document(pieces: Sequence[Ids], eos: int) -> Encoded:
    """Pieces prompt, reply, prompt, reply, ...: targets are each reply's tokens up to its EOS."""
    ids, loss_mask = list(pieces[0]), [False] * len(pieces[0])
    for number, piece in enumerate(pieces[1:], start=1):
        spoken = 0
        if number % 2:
            last = number == len(pieces) - 1
            if last and eos not in piece:
                piece = [*piece, eos]  # noqa: PLW2901 (a template without it: the policy must learn to stop)
            # What a template puts behind EOS (a line break) is never sampled, so it is not learnt.
            spoken = piece.index(eos) + 1 if eos in piece else len(piece)
            if last:
                piece = piece[:spoken]  # noqa: PLW2901
        ids += piece
        loss_mask += [True] * spoken + [False] * (len(piece) - spoken)
    return Encoded(ids, loss_mask)


def _pieces(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]
) -> list[list[str]]:
    """Each conversation's rendering, cut where an assistant turn begins and where it ends.

    If that of what came before is not the beginning of what follows: of the last turn alone.
    """
    turns = [
        [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        for messages in conversations
    ]
    pairs = list(zip(conversations, turns, strict=True))
    before = iter(_render(tokenizer, [m[:i] for m, t in pairs for i in t], generate=True))
    after = iter(_render(tokenizer, [m[: i + 1] for m, t in pairs for i in t], generate=False))
    pieces: list[list[str]] = []
    for messages, places in pairs:
        texts = [text for _ in places for text in (next(before), next(after))]
        row = _differences(texts) or _differences(texts[-2:])
        if row is None:
            raise UserError(
                "the tokenizer's chat_template must render a conversation as what came before plus the next turn; at"
                f" message {len(messages) - 1} it does not: {texts[-2][-40:]!r} is not in {texts[-1][:80]!r}"
            )
        pieces.append(row)
    return pieces


def _differences(texts: Sequence[str]) -> list[str] | None:
    """What each text adds to the one before; None where one does not begin with the one before."""
    if not all(text.startswith(done) for done, text in pairwise(texts)):
        return None
    return [text[len(done) :] for done, text in pairwise(["", *texts])]


def _render(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    *,
    generate: bool,
) -> list[str]:
    if not conversations:
        return []
    plain = plain_text(tokenizer)
    try:
        rendered: Any = tokenizer.apply_chat_template(
            [marked_messages(plain, messages) for messages in conversations],
            tokenize=False,
            add_generation_prompt=generate,
            enable_thinking=False,  # templates that know it put an empty thought before an answer otherwise
        )
    except TemplateError as error:
        raise UserError(
            f"the tokenizer's chat_template must render every conversation, got {error} at one of the roles"
            f" {_unlike(conversations)}"
        ) from None
    return rendered


def _unlike(conversations: Sequence[Sequence[Message]]) -> str:
    """The orders of roles that there are, a few of them."""
    orders = sorted({"-".join(m["role"] for m in messages) or "none" for messages in conversations})
    return ", ".join(orders[:4]) + (", ..." if len(orders) > 4 else "")


def _tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Ids]:
    """Ids of texts in which people's special strings are marked."""
    backend: Any = tokenizer.backend_tokenizer
    # A call tokenizer(..., padding=True) anywhere leaves these set. Set only if needed: it is a write, and a
    # prefetching thread may be reading.
    if backend.padding is not None:
        backend.no_padding()
    if backend.truncation is not None:
        backend.no_truncation()
    ids = [e.ids for e in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    plain = plain_text(tokenizer)
    for place, text in enumerate(texts):
        if plain.is_marked(text):
            ids[place] = plain.encode(text)
    return ids


def _bos(tokenizer: PreTrainedTokenizerBase) -> Ids:
    bos: Any = tokenizer.bos_token_id
    return [] if bos is None else [bos]


def _eos(tokenizer: PreTrainedTokenizerBase) -> Ids:
    eos: Any = tokenizer.eos_token_id
    if eos is None:
        raise UserError(
            "the tokenizer must have an EOS token, got none (prepare_tokenizer adds one)"
        )
    return [eos]
