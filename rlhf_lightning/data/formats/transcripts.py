"""Conversations in one text, `\\n\\nHuman: ...\\n\\nAssistant: ...`, as HH-RLHF has them."""

from __future__ import annotations

import re
from typing import TypeGuard

from rlhf_lightning.data.formats.base import turn
from rlhf_lightning.data.records import Message
from rlhf_lightning.errors import UserError

_TURNS = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_CUE = "\n\nAssistant:"


def is_transcript(value: object) -> TypeGuard[str]:
    """Whether a text begins as HH-RLHF's do, and is no text of which `Human:` is a part."""
    return (
        isinstance(value, str)
        and value.lstrip().startswith("Human:")
        and (value.startswith("\n\n") or _CUE in value)
    )


def transcript(value: object, where: str) -> list[Message]:
    """Its turns.

    Raises: UserError if it is none.
    """
    if not is_transcript(value):
        raise UserError(f"{where} must be a transcript of Human: and Assistant: turns, got no such")
    _, *parts = _TURNS.split(value)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [turn(_ROLES[speaker], said.strip()) for speaker, said in pairs]


def asked(prompt: str, where: str) -> list[Message]:
    """The turns of a prompt, which may end with the cue to speak."""
    messages = transcript(prompt, where)
    return messages[:-1] if messages[-1] == turn("assistant", "") else messages


def answered(prompt: str, answer: object, where: str) -> list[Message]:
    """The turns of a prompt and its answer.

    The answer may be the whole transcript already, may begin with the cue to speak, and goes on where the prompt has
    begun to speak.
    """
    if not isinstance(answer, str) or is_transcript(answer):
        return transcript(answer, where)
    bare = re.sub(r"\A\s*Assistant:", "", answer)
    if asked(prompt, where)[-1]["role"] == "assistant":
        return transcript(prompt + bare, where)
    return transcript(f"{prompt.rstrip().removesuffix(_CUE)}{_CUE} {bare}", where)
