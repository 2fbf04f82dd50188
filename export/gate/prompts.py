"""What the gate asks a model, read when it asks: tests shorten it, since most export something."""

# Half ask for an answer of a few words, so that ends are seen early.
PROMPTS = (
    "What is the capital of France? Answer in one word.",
    "Is ice cold? Answer yes or no.",
    "Say hello.",
    "What is 2 + 3? Give only the number.",
    "Name one color.",
    "What animal says meow? One word, please.",
    "Which planet do we live on? One word.",
    "Thank you!",
    "What day comes after Monday? One word.",
    "Translate 'water' to Spanish. Only the word.",
    "Are you a robot? Answer in one short sentence.",
    "What is the opposite of hot? One word.",
    "Why is the sky blue?",
    "Write a short poem about the sea.",
    "List three fruits.",
    "How do I boil an egg?",
    "Tell me a fun fact about bees.",
    "Write a Python function that adds two numbers.",
    "Summarize the story of Cinderella in two sentences.",
    "What should I cook tonight?",
    "Explain gravity to a child.",
    "Write an email that asks for a day off.",
    "Give me a riddle.",
    "What is a good name for a cat?",
)
MAX_TOKENS = 24  # of an answer
