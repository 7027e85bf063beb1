"""A few rows of every public format, written for these tests, and what they should become."""

from __future__ import annotations

U = {"role": "user", "content": "Name a bird of the night."}
A = {"role": "assistant", "content": "The owl."}
B = {"role": "assistant", "content": "The hen."}


def node(role, text, *replies, **more):
    return {"role": role, "text": text, "lang": "en", "replies": list(replies), **more}


TREE = {
    "message_tree_id": "t",
    "prompt": node(
        "prompter",
        "Name a bird of the night.",
        node("assistant", "The hen.", rank=1),
        node(
            "assistant",
            "The owl.",
            node(
                "prompter",
                "What does it eat?",
                node("assistant", "Mice.", rank=1),
                node("assistant", "Small animals.", rank=0),
                node("assistant", "Buy my mice!", rank=2, labels={"spam": {"value": 0.8}}),
            ),
            node("prompter", "Thanks!"),
            rank=0,
        ),
        node("assistant", "Gone.", rank=2, deleted=True),
    ),
}
QA = {
    "question": "When does the owl hunt?",
    "passages": [["Owl", "Owl\n\nThe owl hunts at night.", "It sleeps by day."]],
    "gold": "At night, as the passage says.",
    "prediction 1": "By day.",
    "prediction 2": "At night.",
    "prediction 3": "Never.",
    "prediction 4": "At night, it says.",
    "feedback": {"errors": [], "corrected-prediction": "It hunts at night."},
    "preference": [2, 0, 2, 1, 0, 2],
}
HH = {
    "chosen": "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: Name a bird.\n\nAssistant: The owl.",
    "rejected": "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: Name a bird.\n\nAssistant: No.",
}
MORE = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Name a bird."},
]

EXAMPLES = {
    "messages": ({"messages": [U, A]}, {"demonstration": [{"messages": [U, A]}]}),
    "comparison": (
        {"prompt": [U], "completions": ["The owl.", "The hen.", "No."], "ranks": [0, 1, 1]},
        {
            "comparison": [
                {"prompt": [U], "completions": ["The owl.", "The hen.", "No."], "ranks": [0, 1, 1]}
            ]
        },
    ),
    "prompt": ({"prompt": "Name a bird of the night."}, {"prompt": [{"prompt": [U]}]}),
    "text": ({"text": "The owl flies."}, {"text": [{"text": "The owl flies."}]}),
    "prompt_completion": (
        {"prompt": U["content"], "completion": " The owl.<|endoftext|>"},
        {"demonstration": [{"messages": [U, A]}]},
    ),
    "preference": (
        {"prompt": U["content"], "chosen": "The owl.", "rejected": "The hen."},
        {"comparison": [{"prompt": [U], "completions": ["The owl.", "The hen."], "ranks": [0, 1]}]},
    ),
    "hh": (
        HH,
        {"comparison": [{"prompt": MORE, "completions": ["The owl.", "No."], "ranks": [0, 1]}]},
    ),
    "alpaca": (
        {"instruction": "Name a bird", "input": "of the night.", "output": "The owl."},
        {
            "demonstration": [
                {"messages": [{"role": "user", "content": "Name a bird\n\nof the night."}, A]}
            ]
        },
    ),
    "self_instruct": (
        {
            "instruction": "Name a bird of the night.",
            "instances": [{"input": "", "output": "The owl."}, {"input": "", "output": "The hen."}],
        },
        {"demonstration": [{"messages": [U, A]}, {"messages": [U, B]}]},
    ),
    "sharegpt": (
        {
            "conversations": [
                {"from": "human", "value": U["content"]},
                {"from": "gpt", "value": "The owl."},
            ]
        },
        {"demonstration": [{"messages": [U, A]}]},
    ),
    "scitldr": (
        {"source": ["Owls hunt.", "We watched."], "target": ["Owls hunt at night.", "On owls."]},
        {
            "demonstration": [
                {
                    "messages": [
                        {
                            "role": "user",
                            "content": "Summarize this paper in one sentence.\n\nOwls hunt. We watched.",
                        },
                        {"role": "assistant", "content": "Owls hunt at night."},
                    ],
                    "meta": {"references": ["Owls hunt at night.", "On owls."]},
                }
            ]
        },
    ),
    "qa_feedback": (
        QA,
        {
            # 2 over 1, 4 over 1, 2 over 3, 4 over 3; the zeros say nothing
            "comparison": [[[1, 0], [3, 0], [1, 2], [3, 2]]],
            "demonstration": ["It hunts at night."],
        },
    ),
    "oasst": (
        TREE,
        {"comparison": [[["Mice.", "Small animals."], [1, 0]], [["The hen.", "The owl."], [1, 0]]]},
    ),
}
"""Format → (row, kind → the records it gives; of the last two only what is said in the tests)."""

CSV = (
    "prompt",
    "text",
    "prompt_completion",
    "preference",
    "hh",
    "alpaca",
    "comparison",
    "messages",
    "self_instruct",
    "sharegpt",
    "scitldr",
    "qa_feedback",
    "oasst",
)
