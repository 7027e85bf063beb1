"""Tokenizers: the built-in byte-level one, what any tokenizer must have, and a fingerprint to compare two.

Nothing here imports transformers until a tokenizer is made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

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
    backend.train_from_iterator(texts, trainer)
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

    EOS if it has none; a pad token that is not EOS (one that the vocabulary has already, if there is one); the
    default chat template where there is none.
    """
    added = 0
    if tokenizer.eos_token_id is None:
        added += tokenizer.add_special_tokens({"eos_token": END})
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        vocabulary = tokenizer.get_vocab()
        taken = (tokenizer.eos_token, tokenizer.bos_token)
        pad = next((p for p in _KNOWN_PADS if p in vocabulary and p not in taken), PAD)
        added += tokenizer.add_special_tokens({"pad_token": pad})
    if not tokenizer.chat_template:
        tokenizer.chat_template = DEFAULT_TEMPLATE
    tokenizer.padding_side = "left"
    return added


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase | str | Path) -> str:
    """sha256 over vocabulary, merges, special tokens and chat template.

    Of a tokenizer, or of a folder that one was saved to (read without loading transformers): both give the same.
    Policy and reward model must have the same one.
    Raises: UserError for a folder without tokenizer.json.
    """
    if isinstance(tokenizer, str | Path):
        parts = _parts_of_folder(Path(tokenizer))
    else:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
        special = {key: getattr(tokenizer, key) for key in _ROLES}
        parts = _parts(backend, special, tokenizer.chat_template)  # type: ignore[arg-type]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


_ROLES = ("bos_token", "eos_token", "pad_token")


def _parts_of_folder(folder: Path) -> dict[str, Any]:
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder}: must hold a tokenizer, got no tokenizer.json")
    backend = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    template_file = folder / "chat_template.jinja"
    template = (
        template_file.read_text("utf-8") if template_file.exists() else config.get("chat_template")
    )
    tokens = {key: config.get(key) for key in _ROLES}
    special = {key: t["content"] if isinstance(t, dict) else t for key, t in tokens.items()}
    return _parts(backend, special, template)


def _parts(
    backend: dict[str, Any], special: dict[str, Any], template: str | None
) -> dict[str, Any]:
    model = backend["model"]
    merges = [m.split(" ", 1) if isinstance(m, str) else m for m in model.get("merges", [])]
    return {
        "vocab": model.get("vocab"),
        "merges": merges,
        "added": sorted([t["id"], t["content"]] for t in backend["added_tokens"]),
        "special": special,
        "template": template,
    }
