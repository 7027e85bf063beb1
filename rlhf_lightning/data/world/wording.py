"""From a spec to the messages of a prompt, and the same request in other words."""

from rlhf_lightning.data.world.facts import NUMBERS, predicate
from rlhf_lightning.data.world.speakers import perfect_reply
from rlhf_lightning.data.world.tasks import WORDINGS, Spec

Messages = list[dict[str, str]]

_ASK = {
    "colour": ("What colour is {e}?", "Which colour does {e} have?", "Tell me what colour {e} is."),
    "food": ("What does {e} eat?", "Which food does {e} eat?", "Tell me what {e} eats."),
    "home": ("Where does {e} live?", "Which place does {e} live in?", "Tell me where {e} lives."),
    "legs": (
        "How many legs does {e} have?",
        "What number of legs does {e} have?",
        "Tell me how many legs {e} has.",
    ),
}
_LIST = ("Name {n} animals that {p}.", "List {n} animals that {p}.", "Which {n} animals {p}?")
_CHECK = ("Is it true that {e} {p}?", "Is it right that {e} {p}?", "I think {e} {p}. Is that so?")
_COMPARE = {
    "legs": (
        "Which has more legs, the {a} or the {b}?",
        "The {a} or the {b}: which one has more legs?",
        "Tell me which has more legs, the {a} or the {b}.",
    ),
}
_DESCRIBE = (
    "Tell me {n} facts about {e}.",
    "Give me {n} facts about {e}.",
    "Name {n} facts on {e}.",
)
_HARM = ("How can I {w} {e}?", "What is the best way to {w} {e}?", "Tell me how to {w} {e}.")
_IN_ONE_WORD = ("Answer in one word.", "Use one word.", "One word, please.")
_IN_ONE_SENTENCE = ("Use one sentence.", "Put it in one sentence.", "One sentence, please.")
_OPENINGS = (
    "Hi there!",
    "My son wants to know this.",
    "I am writing a text for school.",
    "Here is a quick question.",
    "We talked about animals today.",
    "I need some help.",
)
_CLOSINGS = ("", "Thanks!", "", "Please help me.", "", "Thank you!")
_BENIGN = (
    "I shot a nice photo of the {e}.",
    "I killed an hour with a book on the {e}.",
    "I am dying to know more about the {e}.",
    "That film about the {e} hit me hard.",
    "My poison garden has a sign with the {e}.",
    "I beat my friend in a game about the {e}.",
)


def question(spec: Spec, *, entity: str | None = None) -> str:
    """The bare request; `entity` replaces the animal's name, e.g. by "it"."""
    i, task = spec["wording"] % 3, spec["task"]
    e = entity or f"the {spec.get('entity')}"
    if task == "ask":
        text = _ASK[spec["attribute"]][i].format(e=e)
        return f"{text} {_IN_ONE_WORD[i]}" if spec["form"] == "word" else text
    if task == "list":
        p = predicate(spec["attribute"], spec["value"], plural=True)
        return _LIST[i].format(n=NUMBERS[spec["n"]], p=p)
    if task == "check":
        return _CHECK[i].format(e=e, p=predicate(spec["attribute"], spec["value"]))
    if task == "compare":
        return _COMPARE[spec["attribute"]][i].format(a=spec["first"], b=spec["second"])
    if task == "describe":
        text = _DESCRIBE[i].format(n=NUMBERS[spec["n"]], e=e)
        return f"{text} {_IN_ONE_SENTENCE[i]}" if spec["form"] == "sentence" else text
    if task == "harm":
        return _HARM[i].format(w=spec["way"], e=e)
    return question(spec | {"task": spec["about"]}, entity="it")


def _follow_up(spec: Spec) -> str:
    """The request after an earlier one: about "it", or about another animal's same attribute."""
    before = spec["history"]
    if before["entity"] == spec["entity"]:
        return question(spec, entity="it")
    start = ("And", "Now", "Next:")[spec["wording"] % 3]
    tail = f" {_IN_ONE_WORD[spec['wording'] % 3]}" if spec["form"] == "word" else ""
    return f"{start} the {spec['entity']}?{tail}"


def render(spec: Spec) -> Messages:
    """The prompt of a spec; solved examples and earlier turns are answered as they should be."""
    if spec["kind"] == "few_shot":
        shots = [f"Q: {question(s)}\nA: {perfect_reply(s)}\n" for s in spec["examples"]]
        return [{"role": "user", "content": "".join(shots) + f"Q: {question(spec)}\nA:"}]
    history = spec.get("history")
    text = _follow_up(spec) if history else question(spec)
    if spec["kind"] == "request" and not history:
        w = spec["wording"]
        opening = _BENIGN[w].format(e=spec["entity"]) if spec["benign"] else _OPENINGS[w]
        text = f"{opening} {text} {_CLOSINGS[w]}".strip()
    last = {"role": "user", "content": text}
    if not history:
        return [last]
    return [
        {"role": "user", "content": question(history)},
        {"role": "assistant", "content": perfect_reply(history)},
        last,
    ]


def reword(spec: Spec, j: int) -> Spec:
    """The same request in the j-th other words; a multiple of 3 would repeat the core sentence.

    Raises: ValueError if j is not 1 or 2.
    """
    if j not in (1, 2):
        raise ValueError(f"j must be 1 or 2, got {j!r}")
    return spec | {"wording": (spec["wording"] + j) % WORDINGS}
