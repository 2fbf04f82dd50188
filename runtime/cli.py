"""`edge-run`: answer a prompt with a bundle, or chat with it."""

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

from edgelm.cli import positive_int, run_command
from edgelm.errors import BadInput, ContextFull
from edgelm.reasons import reason
from edgelm.runtime.generation.interrupts import Interrupts
from edgelm.runtime.loading import load
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.speculation.mode import add_speculation_option
from edgelm.runtime.terminal.conversation import COMMANDS, Conversation
from edgelm.runtime.terminal.line_editor import LineEditor
from edgelm.runtime.terminal.printer import Printer
from edgelm.runtime.terminal.settings import (
    SAMPLING,
    Settings,
    sampling_default,
    sampling_type,
    settings_of,
)
from edgelm.runtime.terminal.vectors import print_vector

_EPILOG = """\
Without a prompt and on a terminal, edge-run starts a conversation: /help lists its commands,
Ctrl-C stops an answer, Ctrl-D ends. Piped text is the prompt. A model without a chat template
continues the prompt as it is.

Sampling options that are not given come from the bundle (generation_config.json); the defaults
above apply if it has none.

examples:
  edge-run bundle/ "Why is the sky blue?"
  edge-run bundle/ "Summarize:" - < report.txt
  edge-run bundle/ "Name and age of Ada, 36?" --json-schema person.json

exit codes: 0 done, 1 the self-test failed, 2 bad input, 3 a bug in edgelm
"""
_MAX_FILE_BYTES = 2**20


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
    add("prompt", nargs="*", help="prompt; - is replaced by standard input")
    add(
        "--chat",
        action="store_true",
        help="converse, with the prompt as the first message",
    )
    add("--raw", action="store_true", help="continue the prompt without the chat template")
    add("--system", help="system message of the conversation")
    _add_answer_options(parser)
    _add_sampling_options(parser)
    add("--max-memory", metavar="SIZE", help="reduce the context until the model fits, e.g. 1.5GB")
    add(
        "--prompt-cache",
        type=Path,
        metavar="DIR",
        help="store the state after long system messages in DIR, so that it is computed once",
    )
    add("--threads", type=positive_int, metavar="N", help="CPU threads (default: physical cores)")
    add_speculation_option(parser)
    add("--json", action="store_true", help="print each answer as a line of JSON, with its figures")
    add(
        "--stats",
        action="store_const",
        const=True,
        help="print tokens and speed to standard error",
    )
    add(
        "--self-test",
        action="store_true",
        help="compare this machine's engine with what export computed, and exit (30 s)",
    )
    add("--no-history", action="store_true", help="do not save the lines that are typed")
    return parser


def _add_answer_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "-n",
        "--max-tokens",
        "--max-new-tokens",
        type=positive_int,
        default=256,
        metavar="N",
        help="generate at most N tokens (default: 256)",
    )
    add("--json-schema", metavar="FILE", help="answer with JSON that matches this schema")
    add("--regex", metavar="REGEX", help="answer with a text that this regular expression matches")
    add("--tools", metavar="FILE", help="JSON list of functions that the model may call")
    add("--adapter", metavar="NAME", help="answer with this adapter of the bundle")
    add("--reasoning-budget", type=int, metavar="N", help="end the reasoning after N tokens")
    add(
        "--template-arguments",
        metavar="JSON",
        help="for the chat template, e.g. '{\"enable_thinking\": false}'",
    )


def _add_sampling_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    for name, meaning in SAMPLING.items():
        default = sampling_default(name)
        add(
            f"--{name}",
            type=sampling_type(name),
            metavar="X",
            help=f"{meaning} (default: {default})",
        )
    add("--seed", type=int, metavar="N", help="random seed: the same seed gives the same text")
    add("--stop", action="append", default=[], metavar="TEXT", help="stop before this text")


def main(argv: list[str] | None = None) -> int:
    """Entry point of `edge-run`."""
    # Intermixed: the optional prompt may come after options.
    arguments = parser().parse_intermixed_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int | None:
    _print_anything()
    if arguments.self_test:
        if arguments.prompt or arguments.chat:
            raise BadInput("--self-test asks its own questions; leave out the prompt and --chat")
        return _self_test(arguments)
    prompt = _prompt(arguments)
    settings = _settings(arguments)
    with load(
        arguments.bundle,
        max_memory=arguments.max_memory,
        threads=arguments.threads,
        prompt_cache=arguments.prompt_cache,
        speculation=arguments.speculation,
        compile_engine=True,
    ) as model:
        if model.embeds:
            print_vector(model, prompt, as_json=arguments.json)
            return None
        printer = Printer(as_json=arguments.json)
        with Interrupts() as interrupts:
            if arguments.chat or prompt is None:
                conversation = Conversation(
                    model, settings, printer, interrupts, system=arguments.system
                )
                _converse(conversation, interrupts, prompt, history=not arguments.no_history)
                return None
            chat = not arguments.raw and (arguments.bundle / "chat_template.jinja").is_file()
            options = settings.options(chat=chat)
            options["cancel"] = interrupts.pressed
            system = [{"role": "system", "content": arguments.system}] if arguments.system else []
            messages: Any = [*system, {"role": "user", "content": prompt}]
            with model.stream(messages if chat else prompt, **options) as stream:
                printer.show(stream, stats=settings.stats)
    return None


def _self_test(arguments: argparse.Namespace) -> int:
    """Print the verdict; 1 if this machine's engine differs from what export computed."""
    from edgelm.runtime.self_test import self_test

    result = self_test(arguments.bundle, threads=arguments.threads)
    if arguments.json:
        import msgspec

        print(msgspec.json.encode(result).decode())
    else:
        print("\n".join(result.lines()))
    return 0 if result.passed else 1


def _converse(
    conversation: Conversation, interrupts: Interrupts, first: str | None, *, history: bool
) -> None:
    terminal = sys.stdin.isatty()
    editor = LineEditor(interrupts, list(COMMANDS), history=history)
    if terminal:
        print(_banner(conversation.model, conversation.settings))
    if first is not None:
        _say(conversation, first, terminal)
    for text in editor.messages():
        _say(conversation, text, terminal)
        if conversation.ended:
            break
    editor.save()


def _say(conversation: Conversation, text: str, terminal: bool) -> None:
    try:
        conversation.handle(text)
    except ContextFull as error:
        print(f"{error}; /reset starts over", file=sys.stderr)
    except BadInput as error:
        if not terminal:
            raise
        print(f"error: {error}", file=sys.stderr)


def _banner(model: LanguageModel, settings: Settings) -> str:
    manifest = model.manifest
    sampling = "sampling as set" if set(SAMPLING) & set(settings.values) else model.sampling_words
    return (
        f"{model.folder.resolve().name} for {manifest.target} on {manifest.engine.name}, context "
        f"{model.context} tokens, {sampling}\n/help lists the commands, Ctrl-C stops an answer, "
        "Ctrl-D ends"
    )


def _prompt(arguments: argparse.Namespace) -> str | None:
    """The prompt, with standard input for each `-`; None begins a conversation."""
    words = arguments.prompt
    if not words and not arguments.chat and not sys.stdin.isatty():
        words = ["-"]
    if not words:
        return None
    typed = [_standard_input() if word == "-" else word for word in words]
    # Text of a file is not the continuation of a sentence.
    prompt = ("\n\n" if "-" in words else " ").join(typed)
    if not prompt.strip():
        raise BadInput("the prompt is empty; give one, or pipe a text to edge-run")
    return prompt


def _settings(arguments: argparse.Namespace) -> Settings:
    settings = settings_of(arguments)
    if arguments.json_schema and arguments.regex:
        raise BadInput("give either --json-schema or --regex")
    if arguments.json_schema:
        schema = _json_file(arguments.json_schema)
        settings.fixed["response_format"] = {
            "type": "json_schema",
            "json_schema": {"schema": schema, "strict": True},
        }
    if arguments.regex:
        settings.fixed["response_format"] = {"type": "regex", "regex": arguments.regex}
    if arguments.tools:
        settings.fixed["tools"] = _json_file(arguments.tools)
    if arguments.template_arguments:
        given = _json_text("--template-arguments", arguments.template_arguments)
        if not isinstance(given, dict):
            raise BadInput(
                "--template-arguments is not a JSON object; expected e.g. "
                "'{\"enable_thinking\": false}'"
            )
        settings.fixed["chat_template_kwargs"] = given
    return settings


def _json_file(path: str) -> Any:
    try:
        with Path(path).open("rb") as file:
            text = file.read(_MAX_FILE_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {reason(error)}") from None
    return _json_text(path, text)


def _json_text(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{name} is not JSON: {reason(error)}") from None


def _print_anything() -> None:
    """Print a question mark, not a traceback, where the terminal lacks a character."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise BadInput(f"standard input is not text: {error}") from None


if __name__ == "__main__":
    raise SystemExit(main())
