"""Several questions at once with asyncio; an answer that takes too long is cancelled.

Run it with the bundle that `make demo` exports; 30 are the seconds that an answer may take:

    python examples/asyncio_chat.py build/demo/bundle 30 "Why is the sky blue?" "What is bread?"
"""

import asyncio
import sys

import edgelm


async def ask(lm: edgelm.LanguageModel, question: str, seconds: float) -> str:
    """Answer a question as far as the time allows."""
    async with lm.chat().asend(question, max_tokens=60) as stream:
        asyncio.get_running_loop().call_later(seconds, stream.cancel)
        text = "".join([chunk.text async for chunk in stream])
    return text + (" [too slow]" if stream.reply.finish_reason == "cancelled" else "")


async def main(bundle: str, seconds: float, questions: list[str]) -> None:
    """Print the answers in the order of the questions."""
    with edgelm.load(bundle, sequences=2) as lm:
        answers = await asyncio.gather(*(ask(lm, question, seconds) for question in questions))
    for question, answer in zip(questions, answers, strict=True):
        print(f"> {question}\n{answer}\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
