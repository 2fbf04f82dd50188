"""Stream in a worker thread and cancel from another: what a user interface with a stop button does.

Run it with the bundle that `make demo` exports; it stops after one second:

    python examples/cancel.py build/demo/bundle "Write a long story." 1.0
"""

import queue
import sys
import threading

import edgelm


def generate(
    lm: edgelm.LanguageModel, prompt: str, chunks: queue.Queue[str | None], stop: threading.Event
) -> None:
    """Put the answer into a queue, chunk by chunk; None is the end."""
    messages: list[edgelm.Message] = [{"role": "user", "content": prompt}]
    try:
        for text in lm.stream_chat(messages, cancel=stop, max_tokens=1000):
            chunks.put(text)
    finally:
        chunks.put(None)


def main(bundle: str, prompt: str, seconds: float) -> None:
    """Print what is generated until the time is over."""
    with edgelm.load(bundle) as lm:
        chunks: queue.Queue[str | None] = queue.Queue()
        stop = threading.Event()
        worker = threading.Thread(target=generate, args=(lm, prompt, chunks, stop))
        button = threading.Timer(seconds, stop.set)  # stands for the user
        button.start()
        worker.start()
        while (text := chunks.get()) is not None:
            print(text, end="", flush=True)
        worker.join()
        button.cancel()
    print("\n[stopped]" if stop.is_set() else "\n[finished]")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
