"""A conversation in a terminal: streaming, Ctrl-C stops an answer, old turns are dropped.

Run it with the bundle that `make demo` exports:

    python examples/chat.py build/demo/bundle
"""

import sys

import edgelm
from edgelm.errors import ContextFull

ANSWER_TOKENS = 256


def answer(chat: edgelm.Chat, question: str) -> None:
    """Print the assistant's next turn as it is generated."""
    stream = chat.send(question, max_tokens=ANSWER_TOKENS)
    try:
        for chunk in stream:
            print(chunk.text, end="", flush=True)
    except KeyboardInterrupt:
        pass  # the chat has what was generated so far
    print()


def with_room(lm: edgelm.LanguageModel, chat: edgelm.Chat) -> edgelm.Chat:
    """The same chat without its oldest turns, if the answer would have no room in the context."""
    messages = chat.messages
    while messages and len(lm.chat_tokens(messages)) + 2 * ANSWER_TOKENS > lm.context:
        del messages[:2]
    return chat if messages == chat.messages else lm.chat(messages=messages)


def main(bundle: str) -> None:
    """Read questions until the input ends."""
    with edgelm.load(bundle) as lm:
        chat = lm.chat()
        while True:
            try:
                question = input("> ")
            except (EOFError, KeyboardInterrupt):
                return
            chat = with_room(lm, chat)
            try:
                answer(chat, question)
            except ContextFull as error:
                print(error)


if __name__ == "__main__":
    main(sys.argv[1])
