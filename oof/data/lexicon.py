"""The words of the synthetic arena: topics, sentence frames and the odd bits that real text carries.

A topic is a set of words that belong together; a response is on topic when its words share the topic of
the prompt's words, so judging it means reading both. No word occurs in two topics.
"""

TOPICS: dict[str, tuple[str, ...]] = {
    "baking": ("oven", "flour", "dough", "yeast", "butter", "crust", "pastry", "sugar", "whisk", "cake"),
    "sailing": ("mast", "anchor", "rudder", "harbor", "deck", "keel", "tide", "rope", "buoy", "crew"),
    "garden": ("soil", "seed", "compost", "shovel", "weed", "tomato", "root", "hedge", "mulch", "blossom"),
    "music": ("guitar", "melody", "drum", "chord", "violin", "rhythm", "piano", "tempo", "choir", "song"),
    "coding": ("compiler", "loop", "function", "bug", "array", "pointer", "server", "script", "parser", "thread"),
    "space": ("orbit", "rocket", "planet", "comet", "galaxy", "telescope", "moon", "crater", "asteroid", "star"),
    "money": ("bank", "loan", "interest", "budget", "invoice", "tax", "salary", "bond", "credit", "pension"),
    "health": ("doctor", "fever", "vaccine", "nurse", "clinic", "pulse", "surgery", "allergy", "bandage", "virus"),
}

QUESTIONS = (
    "How do I choose a {} and a {}?",
    "Tell me about the {} and the {}.",
    "Why does a {} need a {}?",
    "What is the link between {} and {}?",
    "Explain {} with an example of {}.",
    "Is a {} worth more than a {}?",
)
FOLLOW_UPS = ("And what about the {}?", "Now compare it with a {}.", "Can you add the {}?")
SENTENCES = (
    "The {} goes with the {}.",
    "A good {} helps every {}.",
    "First check the {} and the {}.",
    "You need a {} for the {}.",
    "Most people forget the {} or the {}.",
    "Keep the {} close to a {}.",
)
REFUSAL = "I am sorry, but I cannot help with that."
# Decorations that mean nothing for the verdict, as real text has them.
UNICODE = ("naïve café", "数据", "🙂", "Привет", "½ “quoted”", "e\u0301t\u00e9")
POLITE = ("Please, {}", "{} Thanks!", "  {}", "{} please", "hello, {}")
