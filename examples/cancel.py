"""Stream in a worker thread and cancel from another: what a user interface with a stop button does.

Run it with the bundle that `make demo` exports; it stops after one second:

    python examples/cancel.py build/demo/bundle "Write a long story." 1.0
"""

import queue
import sys
import threading

import edgelm


def read(stream: edgelm.Stream, chunks: queue.Queue[str | None]) -> None:
    """Put the answer into a queue, chunk by chunk; None is the end."""
    try:
        for chunk in stream:
            chunks.put(chunk.text)
    finally:
        chunks.put(None)


def main(bundle: str, prompt: str, seconds: float) -> None:
    """Print what is generated until the time is over."""
    with edgelm.load(bundle) as lm:
        stream = lm.chat().send(prompt, max_tokens=1000)
        chunks: queue.Queue[str | None] = queue.Queue()
        worker = threading.Thread(target=read, args=(stream, chunks))
        button = threading.Timer(seconds, stream.cancel)  # stands for the user
        button.start()
        worker.start()
        while (text := chunks.get()) is not None:
            print(text, end="", flush=True)
        worker.join()
        button.cancel()
        print("\n[stopped]" if stream.reply.finish_reason == "cancelled" else "\n[finished]")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
