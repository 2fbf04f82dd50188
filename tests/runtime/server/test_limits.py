"""Who may ask, how much, and what becomes of a client that leaves."""

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgelm.errors import BadInput
from edgelm.runtime import LanguageModel
from edgelm.runtime.server.settings import ServerSettings, is_loopback, read_api_keys
from tests.runtime.server.running import running, wait_until

KEY = "0123456789abcdef0123"
HELLO: Any = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
OPEN = {"2": -100, "3": -100}
STREAMED = {**HELLO, "logit_bias": OPEN, "stream": True}  # up to the end of the context
CHAT = "/v1/chat/completions"


@pytest.fixture
def slowed(served: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    for slot in served._sequences.slots:
        advance = slot.session.advance

        def late(*given: Any, advance: Any = advance, **named: Any) -> Any:
            time.sleep(0.25)  # up to the end of the context: more than half a minute
            return advance(*given, **named)

        monkeypatch.setattr(slot.session, "advance", late)
    return served


@contextmanager
def started(http: httpx.Client, count: int) -> Iterator[None]:
    """Streams that have begun or wait; they are left at the end."""
    done = threading.Event()

    def hold() -> None:
        with (
            httpx.Client(base_url=http.base_url, timeout=60) as client,
            client.stream("POST", CHAT, json=STREAMED),
        ):
            done.wait(60)

    threads = [threading.Thread(target=hold) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(60)


def test_a_client_that_leaves_frees_its_sequence(http: httpx.Client, slowed: LanguageModel) -> None:
    with http.stream("POST", CHAT, json=STREAMED) as answer:
        next(answer.iter_lines())
        wait_until(lambda: slowed.running == 1)
    wait_until(lambda: slowed.running == 0, seconds=20)


def test_a_client_that_leaves_before_the_answer(url: str, slowed: LanguageModel) -> None:
    """Of an answer that is not a stream, while it is generated."""
    body = json.dumps({**HELLO, "logit_bias": OPEN}).encode()
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as plain:
        plain.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        wait_until(lambda: slowed.running == 1)
    wait_until(lambda: slowed.running == 0, seconds=20)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_it_waits(
    http: httpx.Client, url: str, slowed: LanguageModel, stream: bool
) -> None:
    body = json.dumps({**HELLO, "logit_bias": OPEN, "stream": stream}).encode()
    host, _, port = url.removeprefix("http://").partition(":")
    with started(http, 2):
        wait_until(lambda: slowed.running == 2)
        with socket.create_connection((host, int(port))) as plain:
            plain.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (len(body), body)
            )
            wait_until(lambda: slowed.waiting == 1)
        wait_until(lambda: slowed.waiting == 0, seconds=20)
        assert slowed.running == 2
    wait_until(lambda: slowed.running == 0)


def test_a_full_queue_says_when_to_come_again(http: httpx.Client, slowed: LanguageModel) -> None:
    with started(http, 5):  # two run, three wait
        wait_until(lambda: slowed.waiting == 3)
        refused = http.post(CHAT, json=HELLO)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
    wait_until(lambda: slowed.running == slowed.waiting == 0)
    assert http.post(CHAT, json={**HELLO, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize(
    ("path", "more"),
    [(CHAT, {"n": 7}), ("/v1/completions", {"n": 7}), ("/v1/completions", {"prompt": ["a"] * 7})],
)
def test_a_request_may_have_more_answers_than_may_wait(
    http: httpx.Client, path: str, more: dict[str, Any]
) -> None:
    prompt = {"messages": HELLO["messages"]} if path == CHAT else {"prompt": "hello"}
    answer = http.post(path, json={"model": "tiny", "max_tokens": 2, **prompt, **more})
    assert answer.status_code == 200
    assert len(answer.json()["choices"]) == 7


def test_no_answer_of_an_accepted_request_is_refused(
    http: httpx.Client, slowed: LanguageModel
) -> None:
    """The second answer of a stream begins while the queue is full."""
    body = {**HELLO, "logit_bias": OPEN, "max_tokens": 8, "n": 2, "stream": True}
    with http.stream("POST", CHAT, json=body) as answer:
        lines = answer.iter_lines()
        begun = next(lines)
        with started(http, 4):
            wait_until(lambda: slowed.running + slowed.waiting == 5)
            assert http.post(CHAT, json=HELLO).status_code == 429
        events = [json.loads(line[6:]) for line in [begun, *lines] if line.startswith("data: {")]
    assert {choice["index"] for one in events for choice in one["choices"]} == {0, 1}


def test_all_answers_of_a_request_end_with_it(http: httpx.Client, slowed: LanguageModel) -> None:
    with pytest.raises(httpx.ReadTimeout):
        http.post(CHAT, json={**HELLO, "logit_bias": OPEN, "n": 6}, timeout=1)
    wait_until(lambda: slowed.running == slowed.waiting == 0, seconds=20)


BODIES: dict[str, tuple[bytes, dict[str, str], int]] = {
    "no json": (b"hello", {}, 400),
    "another type": (json.dumps(HELLO).encode(), {"Content-Type": "text/plain"}, 415),
    "compressed": (gzip.compress(json.dumps(HELLO).encode()), {"Content-Encoding": "gzip"}, 415),
    "deep": (b"[" * 100_000, {}, 400),
    "list": (b"[]", {}, 400),
    "not utf-8": (b'{"model": "\xff"}', {}, 400),
    "surrogate": (
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        {},
        400,
    ),
    "huge number": (b'{"model": "tiny", "messages": [], "max_tokens": 1e400}', {}, 400),
}


@pytest.mark.parametrize(("body", "headers", "status"), BODIES.values(), ids=BODIES)
def test_bodies_that_cannot_be_used(
    http: httpx.Client, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = http.post(CHAT, content=body, headers={"Content-Type": "application/json", **headers})
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"cut \\ud83d", True),
        (b"cut \\uD83D and more text behind it", True),
        (b"whole \\ud83d\\ude00", False),
    ],
)
def test_half_of_a_surrogate_pair_is_named(http: httpx.Client, text: bytes, named: bool) -> None:
    body = b'{"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": "%s"}]}'
    answer = http.post(CHAT, content=body % text, headers={"Content-Type": "application/json"})
    assert answer.status_code == (400 if named else 200)
    assert ("half of a surrogate pair" in answer.text) == named


def test_an_escaped_backslash_before_a_u_is_no_surrogate(http: httpx.Client) -> None:
    answer = http.post(
        CHAT, content=rb'{"a": "\\ud83d" oops}', headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert "surrogate" not in answer.text


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (CHAT, "functions", [{"name": "f"}]),
        (CHAT, "modalities", ["text", "audio"]),
        (CHAT, "web_search_options", {}),
        ("/v1/responses", "conversation", "conv_1"),
        ("/v1/responses", "previous_response_id", "resp_1"),
        ("/v1/responses", "prompt", {"id": "pmpt_1"}),
    ],
)
def test_fields_that_would_change_the_answer_are_not_ignored(
    http: httpx.Client, path: str, field: str, value: Any
) -> None:
    body = {"model": "tiny", "max_tokens": 1} if path == CHAT else {"model": "tiny"}
    body |= {"messages": HELLO["messages"]} if path == CHAT else {"input": "Hello"}
    assert http.post(path, json=body | {field: None}).status_code == 200
    assert http.post(path, json=body | {field: value}).status_code == 400


def test_large_and_slow_bodies(served: LanguageModel) -> None:
    settings = ServerSettings(model="tiny", max_body_bytes=1000, body_seconds=0.2)
    with running(served, settings) as (url, _), httpx.Client(base_url=url, timeout=60) as client:
        large = json.dumps({**HELLO, "user": "x" * 1000}).encode()
        kind = {"Content-Type": "application/json"}
        assert client.post(CHAT, content=large, headers=kind).status_code == 413
        parts = (large[at : at + 100] for at in range(0, len(large), 100))
        assert client.post(CHAT, content=parts, headers=kind).status_code == 413

        def dripping() -> Iterator[bytes]:
            yield b"{"
            time.sleep(1)
            yield b"}"

        assert client.post(CHAT, content=dripping(), headers=kind).status_code == 408


def test_keys(served: LanguageModel) -> None:
    settings = ServerSettings(model="tiny", api_keys=("another-key-1234567", KEY))
    with running(served, settings) as (url, _), httpx.Client(base_url=url, timeout=60) as client:
        for path in ("/v1/models", "/metrics"):
            refused = client.get(path)
            assert refused.status_code == 401
            assert refused.headers["WWW-Authenticate"] == "Bearer"
            for wrong in (f"Bearer {KEY}x", f"Basic {KEY}", "Bearer", f"Bearer {KEY[:-1]}"):
                assert client.get(path, headers={"Authorization": wrong}).status_code == 401
            assert client.get(path, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        assert client.get("/health").status_code == 200
        assert client.get("/").status_code == 200


@pytest.mark.parametrize("name", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example"])
def test_another_name_of_this_machine_is_refused(http: httpx.Client, name: str) -> None:
    assert http.get("/v1/models", headers={"Host": name}).status_code == 421
    assert http.get("/v1/models", headers={"Host": "localhost:1"}).status_code == 200


def test_other_origins_cannot_read(http: httpx.Client) -> None:
    asked = http.options(CHAT, headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in asked.headers


def test_the_limit_of_tokens_holds_for_all(served: LanguageModel) -> None:
    settings = ServerSettings(model="tiny", max_tokens=3)
    with running(served, settings) as (url, _), httpx.Client(base_url=url, timeout=60) as client:
        for asked in ({}, {"max_tokens": 50}):
            answer = client.post(CHAT, json={**HELLO, "logit_bias": OPEN, **asked}).json()
            assert answer["usage"]["completion_tokens"] == 3


def test_stopping_refuses_new_requests(served: LanguageModel) -> None:
    with (
        running(served, ServerSettings(model="tiny")) as (url, app),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        app.state.generations.stopping = True
        for refused in (client.post(CHAT, json=HELLO), client.get("/health")):
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) > 0


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1/chat/completions", "/v1/models/nothing", "/v1/models/a/b"]
)
def test_paths_and_methods_that_are_not_there(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code in (404, 405)
    assert answer.json()["error"]["message"]


def test_metrics(http: httpx.Client, served: LanguageModel) -> None:
    http.post(CHAT, json={**HELLO, "max_tokens": 2, "logit_bias": OPEN})
    text = http.get("/metrics").text
    for line in (
        'edgelm_requests_total{path="/v1/chat/completions",status="200"}',
        "edgelm_generated_tokens_total",
        "edgelm_first_token_seconds_bucket",
        "edgelm_sequences 2.0",
        "edgelm_waiting 0.0",
        f"edgelm_cache_bytes {float(served.cache_bytes)}",
        "process_resident_memory_bytes",
        "edgelm_sensor",
    ):
        assert line in text


def test_an_internal_error_tells_nothing(
    served: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    with (
        running(served, ServerSettings(model="tiny")) as (url, _),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        monkeypatch.setattr(LanguageModel, "answer", fail)
        answer = client.post(CHAT, json=HELLO)
        assert answer.status_code == 500
        assert "secret" not in answer.text
        monkeypatch.undo()
        assert client.post(CHAT, json={**HELLO, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "0.0.0.0"}, "can be reached from other machines: give --api-key-file"),
        ({"host": "::"}, "can be reached from other machines"),
        ({"certificate": Path("a")}, "TLS needs both"),
        ({"certificate": Path("a"), "private_key": Path("b")}, "a is not a file"),
    ],
)
def test_unsafe_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ServerSettings(**settings).check()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "192.168.1.2", "example.com", "")),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


KEY_FILES = {
    "empty": ("", "has no key; make one: openssl"),
    "comment": ("# none\n\n", "has no key"),
    "short": ("hunter2\n", "a key of 7 characters, expected at least 16"),
    "not ascii": (f"{KEY}é", "other than ASCII"),
    "comment behind a key": (f"{KEY}  # of the robot", "a key with a space"),
    "control character": (f"{KEY}\0", "a key with a space or a control character"),
    "large": (f"{KEY}\n" * 4000, "has more than 65536 bytes"),
}


@pytest.mark.parametrize(("content", "message"), KEY_FILES.values(), ids=KEY_FILES)
def test_key_files_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content, encoding="utf-8")
    path.chmod(0o600)
    with pytest.raises(BadInput, match=message):
        read_api_keys(path)


def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with pytest.raises(BadInput, match="cannot be read"):
        read_api_keys(path)
    path.write_text(f"# of the kitchen\n{KEY}\n\n  second-{KEY}  \n")
    path.chmod(0o644)
    with pytest.raises(BadInput, match="other users can read"):
        read_api_keys(path)
    path.chmod(0o600)
    assert read_api_keys(path) == (KEY, f"second-{KEY}")
