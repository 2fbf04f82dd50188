"""What the gate asks a model, read when it asks: tests shorten it, since most export something."""

# Every other one asks for an answer of a few words, so that ends are seen early.
PROMPTS = (
    "What is the capital of France? Answer in one word.",
    "Why is the sky blue?",
    "Is ice cold? Answer yes or no.",
    "Write a short poem about the sea.",
    "Say hello.",
    "List three fruits.",
    "What is 2 + 3? Give only the number.",
    "How do I boil an egg?",
    "Name one color.",
    "Tell me a fun fact about bees.",
    "What animal says meow? One word, please.",
    "Write a Python function that adds two numbers.",
    "Which planet do we live on? One word.",
    "Summarize the story of Cinderella in two sentences.",
    "Thank you!",
    "What should I cook tonight?",
    "What day comes after Monday? One word.",
    "Explain gravity to a child.",
    "Translate 'water' to Spanish. Only the word.",
    "Write an email that asks for a day off.",
    "Are you a robot? Answer in one short sentence.",
    "Give me a riddle.",
    "What is the opposite of hot? One word.",
    "What is a good name for a cat?",
)
MAX_TOKENS = 16  # of an answer
# Asked first. The others follow where the verdict depends on them: docs/decisions/gates.md.
FIRST = 16
