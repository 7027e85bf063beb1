"""Tokenizers: the built-in byte-level one, what any tokenizer must have, and a fingerprint to compare two.

Nothing here imports transformers until a tokenizer is made.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.foreign import object_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

log = logging.getLogger("rlhf_lightning")

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
SPECIAL_TOKENS = (PAD, BEGIN, END, "<|system|>", "<|user|>", "<|assistant|>")
"""Ids 0..5 of the built-in tokenizer. <|end|> is EOS and ends every turn."""

BUILT_IN_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""<|begin|><|user|>Hello.<|end|><|assistant|>Good day.<|end|>"""

DEFAULT_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)
"""For base models, which know no role tokens: `User:`, a line break, the text, an empty line; EOS ends a reply."""

_KNOWN_PADS = (PAD, "<pad>", "[PAD]", "<|endoftext|>", "<|finetune_right_pad_id|>")


_LEARNED = 1000
_LONG = re.compile(
    "|".join(f"{kind}{{{_LEARNED},}}" for kind in (r"[^\W\d_]", r"\d", r"(?:[^\w\s]|_)", r"\s"))
)
"""Letters, digits, signs or white space in a row, of which a tokenizer learns the beginning only. Sentences in a script
without spaces are no such row: marks part them."""


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE that carries any text, with a chat template. The same texts give the same tokenizer.

    All 256 bytes are in the vocabulary, so there is no unknown token. `encode` adds nothing: BOS and EOS are put where
    they belong by `data.encode` and by the template. Few texts may give fewer than `vocab_size` tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # BPE takes the square of a word's length
    shorter = (_LONG.sub(lambda word: word[0][:_LEARNED], text) for text in texts)
    backend.train_from_iterator(shorter, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        chat_template=BUILT_IN_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> int:
    """Give a tokenizer what training needs, in place; returns how many tokens were added (embeddings must grow).

    EOS if it has none, and the one that its chat template writes behind an answer if that is another: it is where a
    response ends. A pad token that is not EOS (one that the vocabulary has already, if there is one); the default
    chat template where there is none.
    """
    added = 0
    special = {role: getattr(tokenizer, role) for role in _COMPARED}
    if (end := turn_end(tokenizer.chat_template, special, _special_strings(tokenizer))) is not None:
        if end != tokenizer.eos_token:
            log.info(
                "%s ends a response: the chat template writes it behind an answer, not %s",
                end,
                tokenizer.eos_token,
            )
        tokenizer.eos_token = end
    if tokenizer.eos_token_id is None:
        added += tokenizer.add_special_tokens({"eos_token": END})
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        pad = _pad_for(tokenizer.get_vocab(), tokenizer.eos_token, tokenizer.bos_token)
        added += tokenizer.add_special_tokens({"pad_token": pad})
    if not tokenizer.chat_template:
        tokenizer.chat_template = DEFAULT_TEMPLATE
    tokenizer.padding_side = "left"
    return added


def _special_strings(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


_ANSWER = "\ufdd0"


def turn_end(
    template: str | Mapping[str, str] | None, special: Mapping[str, Any], strings: Iterable[str]
) -> str | None:
    """The special token that a chat template writes behind an answer; None: none, or it cannot be told.

    Some models end their turns with another token than their tokenizer's EOS (Gemma's <end_of_turn>, Phi-3's <|end|>,
    base models that have a chat template). `special` are the named tokens, `strings` all special ones.
    """
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    chosen = template if isinstance(template, str) else (template or {}).get("default")
    if not chosen:
        return None
    # the mark of what an assistant says is transformers' own, and writes nothing
    text = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", chosen)
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.globals["strftime_now"] = lambda _format: ""
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    for turns in (said, [{"role": "system", "content": "?"}, *said]):
        try:
            rendered = environment.from_string(text).render(messages=turns, **special)
        except Exception:  # noqa: S112 (whatever a template of other making does)
            continue
        before, found, behind = rendered.rpartition(_ANSWER)
        ends = (s for s in strings if found and s and behind.lstrip().startswith(s))
        # what stands before an answer too opens a turn, of which this template begins the next one
        opens, eos = before.rstrip(), special.get("eos_token")
        return max((s for s in ends if s == eos or not opens.endswith(s)), key=len, default=None)
    return None


def _pad_for(vocabulary: Container[str], *taken: object) -> str:
    """A pad token that the vocabulary has already, or the one that is to be added."""
    return next((p for p in _KNOWN_PADS if p in vocabulary and p not in taken), PAD)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase | str | Path) -> str:
    """sha256 over tokens and their ids, merges, special tokens and chat template.

    Of a tokenizer as it is, or of a folder that holds one, read without loading transformers, as it is after
    `prepare_tokenizer`: a model of other making has the same one as what was trained from it.
    Raises: UserError for a folder without tokenizer.json.
    """
    if isinstance(tokenizer, str | Path):
        parts = _prepared_parts(Path(tokenizer))
    else:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
        special = {role: getattr(tokenizer, role) for role in _COMPARED}
        parts = _parts(backend["model"], _ids(backend), special, tokenizer.chat_template)  # type: ignore[arg-type]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


_COMPARED = ("bos_token", "eos_token", "pad_token")
_ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""Special tokens in the order in which transformers adds those that a vocabulary lacks."""

_ENDOFTEXT = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
_CLASS_TOKENS: dict[str, dict[str, str | None]] = {
    "gpt2": {**_ENDOFTEXT},
    "gptneox": {**_ENDOFTEXT, "pad_token": "<|padding|>"},
    "qwen2": {**_ENDOFTEXT, "bos_token": None, "pad_token": "<|endoftext|>"},
    "qwen3": {**_ENDOFTEXT, "bos_token": None, "pad_token": "<|endoftext|>"},
}
"""What the tokenizer classes of transformers fill in where a folder does not say it, by class or model type."""


def _prepared_parts(folder: Path) -> dict[str, Any]:
    """Loading the folder and `prepare_tokenizer`, on plain JSON; a test holds both to the same result."""
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder}: must hold a tokenizer, got no tokenizer.json")
    backend, config = _json(folder / "tokenizer.json"), _json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:  # older folders keep their special tokens apart
        config |= _json(folder / "special_tokens_map.json")
    kind = config.get("tokenizer_class") or _json(folder / "config.json").get("model_type") or ""
    family = kind.removesuffix("Fast").removesuffix("Tokenizer").replace("_", "").lower()
    special = {r: _content(config.get(r, _CLASS_TOKENS.get(family, {}).get(r))) for r in _ROLES}
    ids = _ids(backend)

    def add(token: str | None) -> None:
        if token is not None:
            ids.setdefault(token, max(ids.values(), default=-1) + 1)

    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    decoder = sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
    for token in (*(t for _, t in decoder), *special.values(), *extra):
        add(_content(token))
    marked = [*backend["added_tokens"], *(token for _, token in decoder)]  # the latter has its way
    flags = {token["content"]: token.get("special", False) for token in marked}
    flags |= dict.fromkeys(
        (_content(t) for t in (*special.values(), *extra) if t is not None), True
    )
    strings = [content for content, is_special in flags.items() if is_special]
    template = _template(folder, config)
    named = {role: special[role] for role in _COMPARED}
    special["eos_token"] = turn_end(template, named, strings) or special["eos_token"]
    if special["eos_token"] is None:
        special["eos_token"] = END
        add(END)
    if special["pad_token"] in (None, special["eos_token"]):
        special["pad_token"] = _pad_for(ids, special["eos_token"], special["bos_token"])
        add(special["pad_token"])
    compared = {role: special[role] for role in _COMPARED}
    return _parts(backend["model"], ids, compared, template or DEFAULT_TEMPLATE)


def _json(path: Path) -> dict[str, Any]:
    return object_of(path) if path.is_file() else {}


def _content(token: str | dict[str, Any] | None) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _ids(backend: dict[str, Any]) -> dict[str, int]:
    """Every token's id; a vocabulary with scores is a list of pairs."""
    vocab = backend["model"].get("vocab") or {}
    own = vocab if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
    return own | {t["content"]: t["id"] for t in backend["added_tokens"]}


def has_chat_template(folder: Path) -> bool:
    """Whether a folder's tokenizer has a chat template of its own."""
    return bool(_template(folder, _json(folder / "tokenizer_config.json")))


def _template(folder: Path, config: dict[str, Any]) -> str | dict[str, str] | None:
    """The chat template, or several by name."""
    found = config.get("chat_template")
    if isinstance(found, list):
        found = {named["name"]: named["template"] for named in found}
    files = {f.stem: f.read_text("utf-8") for f in folder.glob("additional_chat_templates/*.jinja")}
    if (folder / "chat_template.jinja").is_file():
        found = {"default": (folder / "chat_template.jinja").read_text("utf-8"), **files}
    return found["default"] if isinstance(found, dict) and set(found) == {"default"} else found


def _parts(
    model: dict[str, Any],
    ids: dict[str, int],
    special: dict[str, Any],
    template: str | dict[str, str] | None,
) -> dict[str, Any]:
    merges = [m.split(" ", 1) if isinstance(m, str) else m for m in model.get("merges", [])]
    scores = model["vocab"] if isinstance(model.get("vocab"), list) else None
    return {
        "ids": ids,
        "scores": scores,
        "merges": merges,
        "special": special,
        "template": template,
    }
