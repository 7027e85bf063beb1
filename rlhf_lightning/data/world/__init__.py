"""The built-in world (`mix=demo`): generated, small and closed, so that its truth is known.

facts.py      12 animals × 4 attributes, and how a fact is said
tasks.py      specs of what can be asked, split by entity-task combination
wording.py    a spec → the messages of a prompt, and the same in other words
speakers.py   imperfect speakers; phrases.py is what they say beside facts
parse.py      a reply → sentences and claims;  judge.py: the gold score of a reply
labelers.py   simulated labelers: tastes and noise
prose.py      raw text;  corpora.py: `World`, random access to the four corpora
"""

from rlhf_lightning.data.world.corpora import World
from rlhf_lightning.data.world.judge import Gold, answer_items, gold
from rlhf_lightning.data.world.labelers import HELD_OUT_LABELERS, LABELERS, TRAIN_LABELERS
from rlhf_lightning.data.world.parse import is_refusal

__all__ = [
    "HELD_OUT_LABELERS",
    "LABELERS",
    "TRAIN_LABELERS",
    "Gold",
    "World",
    "answer_items",
    "gold",
    "is_refusal",
]
