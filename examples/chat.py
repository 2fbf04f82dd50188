"""A conversation in a terminal: history, streaming, Ctrl-C stops an answer, old turns are dropped.

Run it with the bundle that `make demo` exports:

    python examples/chat.py build/demo/bundle
"""

import sys

import edgelm
from edgelm.errors import ContextFull

ANSWER_TOKENS = 256


def answer(lm: edgelm.LanguageModel, messages: list[edgelm.Message]) -> str:
    """Print the assistant's next turn as it is generated, and return it."""
    text = ""
    try:
        for chunk in lm.stream_chat(messages, max_tokens=ANSWER_TOKENS):
            print(chunk, end="", flush=True)
            text += chunk
    except KeyboardInterrupt:
        pass  # keep what was generated so far
    print()
    return text


def fit(lm: edgelm.LanguageModel, messages: list[edgelm.Message]) -> None:
    """Drop the oldest turns until the answer has room in the context, too."""
    while len(messages) > 1 and len(lm.chat_tokens(messages)) + ANSWER_TOKENS > lm.context:
        del messages[0]


def main(bundle: str) -> None:
    """Read questions until the input ends."""
    with edgelm.load(bundle) as lm:
        messages: list[edgelm.Message] = []
        while True:
            try:
                messages.append({"role": "user", "content": input("> ")})
            except (EOFError, KeyboardInterrupt):
                return
            fit(lm, messages)
            try:
                messages.append({"role": "assistant", "content": answer(lm, messages)})
            except ContextFull as error:
                print(error)
                messages.pop()


if __name__ == "__main__":
    main(sys.argv[1])
