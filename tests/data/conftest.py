"""A tokenizer and sources small enough for unit tests."""

import pytest

from rlhf_lightning.data.tokenizer import train_tokenizer

TEXTS = [
    "the otter is quick and brown",
    "how big is the otter?",
    "the otter is small",
    "hello there",
]


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(iter(TEXTS * 20), vocab_size=290)


class Numbers:
    """A source whose record i says i. Endless unless `size` is given."""

    def __init__(
        self, size=None, kinds=("demonstration", "prompt", "text"), word="n", long_every=0
    ):
        self.kinds, self._size, self._word, self._long_every = kinds, size, word, long_every

    def size(self, kind, split):
        return self._size

    def record(self, kind, split, index):
        text = f"{self._word} {index}"
        if self._long_every and index % self._long_every == 0:
            text += " x" * 500
        user = {"role": "user", "content": text}
        if kind == "text":
            return {"text": text}
        if kind == "prompt":
            return {"prompt": [user], "meta": {"index": index}}
        return {"messages": [user, {"role": "assistant", "content": f"yes {index}"}]}

    def gold(self, meta, response):
        return len(response)

    def rank(self, record, completions, *, split, index):
        return [len(text) for text in completions]


class Plain:
    """A source without any optional member."""

    kinds = ("prompt",)

    def size(self, kind, split):
        return 3

    def record(self, kind, split, index):
        return {"prompt": [{"role": "user", "content": f"plain {index}"}]}
