"""`edge-serve`: answer OpenAI's API with a bundle."""

import argparse
import logging
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from edgelm.cli import positive_int, run_command
from edgelm.errors import GateFailed, MissingPackage
from edgelm.runtime.loading import load
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.server.settings import ServerSettings, read_api_keys
from edgelm.runtime.speculation.mode import add_speculation_option

if TYPE_CHECKING:
    import uvicorn

_DEFAULTS = ServerSettings()
_EPILOG = """\
Clients of OpenAI's API use the base_url http://127.0.0.1:8080/v1, with any API key if there is no
--api-key-file. http://127.0.0.1:8080 is a chat page.

examples:
  edge-serve bundle/ --sequences 2
  edge-serve bundle/ --host 0.0.0.0 --api-key-file keys

exit codes: 0 stopped, 1 the self-test failed, 2 bad input, 3 a bug in edgelm
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="edge-serve",
        description="Serve a bundle over OpenAI's API. Other machines need an API key.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("bundle", type=Path, help="folder that edge-export wrote")
    add("--host", default=_DEFAULTS.host, help=f"address to listen on (default: {_DEFAULTS.host})")
    add(
        "--port",
        type=_port,
        default=_DEFAULTS.port,
        metavar="N",
        help=f"port; 0 takes a free one (default: {_DEFAULTS.port})",
    )
    add("--model", metavar="NAME", help="name that clients use (default: the folder's)")
    add(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="API keys, one per line; required if --host can be reached from other machines",
    )
    add("--tls-certificate", type=Path, metavar="FILE", help="certificate chain, PEM")
    add("--tls-key", type=Path, metavar="FILE", help="its private key, PEM")
    add(
        "--sequences",
        type=positive_int,
        default=1,
        metavar="N",
        help="requests that run at the same time, each with its own cache (default: 1)",
    )
    _add_limits(parser)
    add("--max-memory", metavar="SIZE", help="reduce the context until all fits, e.g. 1.5GB")
    add("--threads", type=positive_int, metavar="N", help="CPU threads (default: physical cores)")
    add(
        "--prompt-cache",
        type=Path,
        metavar="DIR",
        help="store the state after long system messages in DIR, so that it is computed once",
    )
    add_speculation_option(parser)
    add(
        "--self-test",
        action="store_true",
        help="first compare this machine's engine with what export computed (30 s)",
    )
    add("--log-text", action="store_true", help="write prompts and answers to the log, too")
    return parser


def _add_limits(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--max-queue",
        type=_count,
        default=_DEFAULTS.max_queue,
        metavar="N",
        help=f"requests that may wait; further ones get status 429 (default: "
        f"{_DEFAULTS.max_queue})",
    )
    add(
        "--max-tokens",
        type=positive_int,
        metavar="N",
        help="maximum number of tokens of an answer (default: the context)",
    )
    add(
        "--max-body",
        type=positive_int,
        default=_DEFAULTS.max_body_bytes,
        metavar="BYTES",
        help=f"maximum size of a request in bytes (default: {_DEFAULTS.max_body_bytes})",
    )
    add(
        "--grace",
        type=_count,
        default=_DEFAULTS.grace_seconds,
        metavar="SECONDS",
        help="when the server is stopped, seconds for running answers to end (default: "
        f"{_DEFAULTS.grace_seconds})",
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point of `edge-serve`."""
    arguments = parser().parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments)
    settings.check()
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingPackage(
            f"edge-serve needs {error.name}: pip install 'edgelm[serve]'"
        ) from None
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    with load(
        arguments.bundle,
        max_memory=arguments.max_memory,
        threads=arguments.threads,
        sequences=arguments.sequences,
        prompt_cache=arguments.prompt_cache,
        speculation=arguments.speculation,
    ) as lm:
        if arguments.self_test:
            _check_engine(lm)
        serve(lm, settings)


def _check_engine(lm: LanguageModel) -> None:
    """Raise GateFailed where this machine's engine differs from what export computed."""
    from edgelm.runtime.self_test import self_test_model

    result = self_test_model(lm)
    logging.getLogger(__name__).info("%s", "\n".join(result.lines()))
    if not result.passed:
        raise GateFailed(
            f"the self-test of {lm.folder} failed, so it is not served; update or restore the "
            "driver and packages of this machine, or copy or export the bundle again"
        )


def serve(lm: LanguageModel, settings: ServerSettings) -> None:
    """Serve a model until SIGINT or SIGTERM; running answers may end first, for a while.

    Raises:
        BadInput: settings that are unsafe.
        OSError: the port is taken.
    """
    settings.check()
    _server(lm, settings).run()


def _server(lm: LanguageModel, settings: ServerSettings) -> "uvicorn.Server":
    import uvicorn

    from edgelm.runtime.server.app import make_app

    app = make_app(lm, settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=settings.grace_seconds,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.private_key,
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
            await super().startup(sockets)  # type: ignore[arg-type]
            if self.started:
                print(f"{lm!r}\nlistening on {_url(self, settings)}", flush=True)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            # uvicorn's own would raise the signal again at the end, before the model is closed.
            app.state.generations.stopping = True
            self.force_exit = self.should_exit  # a second signal does not wait for answers
            self.should_exit = True

    return Server(config)


def _url(server: "uvicorn.Server", settings: ServerSettings) -> str:
    port = server.servers[0].sockets[0].getsockname()[1]
    scheme = "http" if settings.certificate is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{scheme}://{host}:{port}"


def _settings(arguments: argparse.Namespace) -> ServerSettings:
    keys = () if arguments.api_key_file is None else read_api_keys(arguments.api_key_file)
    return ServerSettings(
        host=arguments.host,
        port=arguments.port,
        model=arguments.model or arguments.bundle.resolve().name,
        api_keys=keys,
        certificate=arguments.tls_certificate,
        private_key=arguments.tls_key,
        max_queue=arguments.max_queue,
        max_body_bytes=arguments.max_body,
        max_tokens=arguments.max_tokens,
        grace_seconds=arguments.grace,
        log_text=arguments.log_text,
    )


def _port(text: str) -> int:
    value = _count(text)
    if value > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: expected 0 to 65535")
    return value


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from zero")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
