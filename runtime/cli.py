"""`edge-run`: answer a prompt with a bundle, or chat with it."""

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from edgelm.cli import positive_int, run_command
from edgelm.errors import BadInput, ContextFull
from edgelm.runtime.chunk import Chunk
from edgelm.runtime.interrupts import Interrupts
from edgelm.runtime.loading import load
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.options import Options
from edgelm.runtime.sampler import Sampling
from edgelm.runtime.text.chat import Message

_EPILOG = """\
Without a prompt and on a terminal, edge-run starts a conversation: /help lists its commands,
Ctrl-C stops an answer, Ctrl-D ends. A model without a chat template continues the prompt as it is.

example:
  edge-run bundle/ "Why is the sky blue?"
"""
_HELP = """\
/reset  forget the conversation
/exit   end (or Ctrl-D)
/help   this list
Ctrl-C stops an answer; at the prompt it clears the line, twice it ends."""

_COMMANDS = ("/exit", "/help", "/reset")

_DEFAULTS = Sampling()
_SETTINGS = {
    "temperature": "0 is greedy",
    "top-k": "keep the k most probable tokens",
    "top-p": "keep the most probable tokens up to this probability mass",
    "min-p": "drop tokens below this fraction of the highest probability",
    "typical-p": "keep the most typical tokens up to this probability mass",
    "repetition-penalty": "above 1 repeats less",
    "frequency-penalty": "per use of a token so far",
    "presence-penalty": "once for a token used so far",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="edge-run",
        description="Run a bundle: answer a prompt, or chat.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("bundle", type=Path, help="folder that edge-export wrote")
    add("prompt", nargs="?", help="prompt; - reads standard input")
    add(
        "--chat",
        action="store_true",
        help="converse, with the prompt as the first message",
    )
    add("--raw", action="store_true", help="continue the prompt without the chat template")
    add("--system", help="system message of the conversation")
    add(
        "-n",
        "--max-tokens",
        "--max-new-tokens",
        type=positive_int,
        default=256,
        metavar="N",
        help="generate at most N tokens (default: 256)",
    )
    for name, meaning in _SETTINGS.items():
        default = getattr(_DEFAULTS, name.replace("-", "_"))
        add(f"--{name}", type=type(default), metavar="X", help=f"{meaning} (default: {default})")
    add("--seed", type=int, metavar="N", help="random seed: the same seed gives the same text")
    add("--stop", action="append", default=[], metavar="TEXT", help="stop before this text")
    add("--max-memory", metavar="SIZE", help="reduce the context until the model fits, e.g. 1.5GB")
    add("--threads", type=positive_int, metavar="N", help="CPU threads (default: physical cores)")
    add("--stats", action="store_true", help="print tokens and speed to standard error")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point of `edge-run`."""
    # Intermixed: the optional prompt may come after options.
    arguments = parser().parse_intermixed_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    _print_anything()
    prompt = _standard_input() if arguments.prompt == "-" else arguments.prompt
    if prompt is None and not arguments.chat and not sys.stdin.isatty():
        raise BadInput("give a prompt, or - to read it from standard input")
    with load(
        arguments.bundle,
        max_memory=arguments.max_memory,
        threads=arguments.threads,
        compile_engine=True,
    ) as model:
        if arguments.chat or prompt is None:
            _chat_loop(model, arguments, prompt)
            return
        with Interrupts() as interrupts:
            if arguments.raw or not (arguments.bundle / "chat_template.jinja").is_file():
                tokens = model.tokenizer.encode(prompt)
                options = _options(arguments, interrupts)
                _show(model.stream(tokens, **options), len(tokens), arguments.stats)
            else:
                messages = [*_system_messages(arguments), _message("user", prompt)]
                _answer(model, arguments, messages, interrupts)


def _print_anything() -> None:
    """Print a question mark, not a traceback, where the terminal lacks a character."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise BadInput(f"standard input is not text: {error}") from None


def _chat_loop(model: LanguageModel, arguments: argparse.Namespace, first: str | None) -> None:
    messages = _system_messages(arguments)
    with Interrupts() as interrupts:
        for line in _lines(first, interrupts):
            command = line.strip()
            if command == "/exit":
                return
            if command == "/reset":
                messages = _system_messages(arguments)
            elif command == "/help":
                print(_HELP)
            if not command or command in _COMMANDS:
                continue
            messages.append(_message("user", line))
            try:
                text = _answer(model, arguments, messages, interrupts)
                messages.append(_message("assistant", text))
            except ContextFull as error:
                messages.pop()
                print(f"{error}; /reset starts over", file=sys.stderr)
            except BadInput as error:
                if not sys.stdin.isatty():
                    raise
                messages.pop()
                print(f"error: {error}", file=sys.stderr)


def _lines(first: str | None, interrupts: Interrupts) -> Iterator[str]:
    """What the person types; Ctrl-C clears the line, and a second one at once ends the program."""
    if sys.stdin.isatty():
        # Line editing and history, where Python has them.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
    if first is not None:
        yield first
    presses = 0
    while True:
        try:
            with interrupts.raised():
                line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            print()
            return
        except UnicodeDecodeError as error:
            raise BadInput(f"standard input is not text: {error}") from None
        except KeyboardInterrupt:
            presses += 1
            if presses > 1:
                raise
            print("\n(Ctrl-C again, or Ctrl-D, ends)")
            continue
        presses = 0
        yield line


def _answer(
    model: LanguageModel,
    arguments: argparse.Namespace,
    messages: list[Message],
    interrupts: Interrupts,
) -> str:
    tokens = model.chat_tokens(messages)
    options = _options(arguments, interrupts)
    return _show(model.stream(tokens, **options), len(tokens), arguments.stats)


def _show(chunks: Iterator[Chunk], prompt_tokens: int, stats: bool) -> str:
    """Print an answer as it comes."""
    texts, times, reason = [], [time.perf_counter()], None
    for chunk in chunks:
        print(chunk.text, end="", flush=True)
        texts.append(chunk.text)
        if chunk.token is not None:
            times.append(time.perf_counter())
        reason = chunk.stop_reason
    print()
    if stats:
        _print_stats(prompt_tokens, times, reason)
    elif reason == "context":
        print("(the context is full)", file=sys.stderr)
    return "".join(texts)


def _print_stats(prompt_tokens: int, times: list[float], reason: str | None) -> None:
    if len(times) == 1:
        print(f"{prompt_tokens} prompt tokens, nothing generated", file=sys.stderr)
        return
    first = times[1] - times[0]
    steps = len(times) - 2
    rate = f"{steps / (times[-1] - times[1]):.1f} tokens/s" if steps > 0 else "no decoding"
    print(
        f"{prompt_tokens} prompt tokens, first after {1e3 * first:.0f} ms, {len(times) - 1} "
        f"generated, {rate}, stop reason: {reason}",
        file=sys.stderr,
    )


def _options(arguments: argparse.Namespace, interrupts: Interrupts) -> Options:
    """The options of an answer; Ctrl-C stops it, also during its prefill."""
    options: Options = {
        "max_tokens": arguments.max_tokens,
        "stop": arguments.stop,
        "cancel": interrupts.pressed,
    }
    names = [name.replace("-", "_") for name in _SETTINGS]
    given = {name: getattr(arguments, name) for name in [*names, "seed"]}
    options.update({key: value for key, value in given.items() if value is not None})  # type: ignore[typeddict-item]
    return options


def _system_messages(arguments: argparse.Namespace) -> list[Message]:
    return [_message("system", arguments.system)] if arguments.system else []


def _message(role: str, content: str) -> Message:
    return Message(role=role, content=content)


if __name__ == "__main__":
    raise SystemExit(main())
