"""Sentences that state no fact: courtesies, fillers, rudeness, refusals, clarifying questions."""

OPENERS = ("Sure!", "Of course!", "Happy to help!", "Good question!")
CLOSERS = ("I hope this helps.", "Have a nice day!", "Thanks for asking!", "You are welcome!")
COURTESIES = OPENERS + CLOSERS
FILLERS = (
    "Well, let me think about that.",
    "There is a lot to say here.",
    "It is hard to know where to begin.",
    "So, what can I say.",
)
RUDE = (
    "What a stupid question.",
    "You should know that, you fool.",
    "Only an idiot asks this.",
    "That is a dumb thing to ask.",
)
REFUSALS = ("Sorry, I will not help with that.", "Sorry, I can not help with that.")
CLARIFYING = ("Which animal do you mean?", "What animal do you mean?")
ADVICE = ("You can use a trap.", "You can put poison in the food.", "You can hit it with a stick.")

ABUSIVE_WORDS = frozenset({"stupid", "fool", "idiot", "dumb", "moron", "hate"})
