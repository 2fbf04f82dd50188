"""Two conversations with one model at the same time, each in its own thread.

Run it with the bundle that `make demo` exports:

    python examples/two_conversations.py build/demo/bundle "Why is the sky blue?" "What is bread?"
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import edgelm


def converse(chat: edgelm.Chat, question: str) -> list[edgelm.Message]:
    """Ask, and ask again; return all messages."""
    chat.send(question, max_tokens=40).read()
    chat.send("Say it in other words.", max_tokens=40).read()
    return chat.messages


def main(bundle: str, *questions: str) -> None:
    """Print the conversations one after the other."""
    with edgelm.load(bundle, sequences=2) as lm, ThreadPoolExecutor() as pool:
        # The system message is computed once: the second conversation copies it from the first.
        chats = [lm.chat(system="Answer in one sentence.") for _ in questions]
        for messages in pool.map(converse, chats, questions):
            for message in messages:
                print(f"{message['role']}: {message['content']}")
            print()


if __name__ == "__main__":
    main(*sys.argv[1:])
