"""Many clients at once, some of which misbehave: every answer is the right one, and memory is flat.

python -m tests.runtime.server.stress BUNDLE [REQUESTS]

prints the numbers of answers by status, the time to the first token, and the growth of memory.
"""

import asyncio
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

import edgelm
from edgelm.runtime import LanguageModel
from edgelm.runtime.server.settings import ServerSettings
from tests.runtime.server.running import running, wait_until

CLIENTS = 16
COUNT = 8
OPEN = {2: -100.0, 3: -100.0}
PROMPTS = [f"{number} The miller {number * 7} waits" for number in range(60)]
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "a", "schema": {"enum": ["red", "blue"]}},
}


@dataclass
class Result:
    """What happened: `wrong` lists answers that belong to no or another request."""

    statuses: Counter[int | str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    first_token_ms: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)


def stress(lm: LanguageModel, requests: int) -> Result:
    """Send requests of all kinds from 16 clients."""
    expected = {
        prompt: lm.generate(prompt, max_tokens=COUNT, logit_bias=OPEN).text for prompt in PROMPTS
    }
    result = Result()
    settings = ServerSettings(model="tiny", max_queue=CLIENTS)
    with running(lm, settings) as (url, _):
        asyncio.run(_all(url, requests, expected, result))
        wait_until(lambda: lm.running == 0 and lm.waiting == 0)
    return result


async def _all(url: str, requests: int, expected: dict[str, str], result: Result) -> None:
    left = iter(range(requests))

    async def client(number: int) -> None:
        chance = random.Random(number)
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            for done in left:
                kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
                prompt = chance.choice(PROMPTS)
                result.statuses[await kind(http, prompt, expected[prompt], result)] += 1
                if done % 500 == 0:
                    result.rss_mb.append(_rss_mb())

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))


def _body(prompt: str, **more: Any) -> dict[str, Any]:
    bias = {str(token): value for token, value in OPEN.items()}
    return {"model": "tiny", "prompt": prompt, "max_tokens": COUNT, "logit_bias": bias, **more}


async def _whole(http: httpx.AsyncClient, prompt: str, text: str, result: Result) -> int | str:
    answer = await http.post("/v1/completions", json=_body(prompt))
    if answer.status_code == 200 and answer.json()["choices"][0]["text"] != text:
        result.wrong.append(f"{prompt}: {answer.text}")
    return answer.status_code


async def _stream(http: httpx.AsyncClient, prompt: str, text: str, result: Result) -> int | str:
    started, said = time.perf_counter(), ""
    async with http.stream("POST", "/v1/completions", json=_body(prompt, stream=True)) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                if not said:
                    result.first_token_ms.append(1e3 * (time.perf_counter() - started))
                choices = json.loads(line[6:]).get("choices", [])
                said += "".join(choice["text"] for choice in choices)
    if answer.status_code == 200 and said != text:
        result.wrong.append(f"{prompt}: {said!r}")
    return answer.status_code


async def _leave(http: httpx.AsyncClient, prompt: str, text: str, _: Result) -> int | str:
    body = _body(prompt, stream=True, max_tokens=90)
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        async for _line in answer.aiter_lines():
            break
    return "left"


async def _give_up(http: httpx.AsyncClient, prompt: str, text: str, _: Result) -> int | str:
    try:
        await http.post("/v1/completions", json=_body(prompt, max_tokens=90), timeout=0.02)
    except httpx.TimeoutException:
        return "gave up"
    return "was in time"


async def _formed(http: httpx.AsyncClient, prompt: str, text: str, result: Result) -> int | str:
    messages = [{"role": "user", "content": prompt}]
    body = {"model": "tiny", "messages": messages, "response_format": SCHEMA, "max_tokens": 30}
    answer = await http.post("/v1/chat/completions", json=body)
    if answer.status_code == 200:
        said = json.loads(answer.json()["choices"][0]["message"]["content"])
        if said not in ("red", "blue"):
            result.wrong.append(f"{prompt}: {said!r}")
    return answer.status_code


def _refused(path: str, body: bytes) -> "Kind":
    async def send(http: httpx.AsyncClient, prompt: str, text: str, result: Result) -> int | str:
        answer = await http.post(path, content=body, headers={"Content-Type": "application/json"})
        if answer.status_code not in (400, 404, 429):
            result.wrong.append(f"{body[:50]!r} got {answer.status_code}")
        return answer.status_code

    return send


Kind = Callable[[httpx.AsyncClient, str, str, Result], Awaitable[int | str]]
_BAD_SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}}
# How often each is sent.
KINDS: dict[Kind, int] = {
    _whole: 30,
    _stream: 30,
    _formed: 10,
    _leave: 10,
    _give_up: 5,
    _refused("/v1/completions", b"{"): 5,
    _refused("/v1/completions", json.dumps(_body("word " * 500)).encode()): 4,
    _refused("/v1/completions", json.dumps(_body("a", response_format=_BAD_SCHEMA)).encode()): 3,
    _refused("/v1/completions", json.dumps({**_body("a"), "model": "b"}).encode()): 3,
}


def _rss_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1e3
    return float("nan")


def main(bundle: str, requests: int) -> int:
    """Print what happened; 1 if an answer was wrong."""
    started = time.perf_counter()
    with edgelm.load(bundle, threads=1, sequences=4) as lm:
        result = stress(lm, requests)
    print(f"{requests} requests in {time.perf_counter() - started:.0f} s: {dict(result.statuses)}")
    first = statistics.quantiles(result.first_token_ms, n=100)
    print(f"first token: p50 {first[49]:.0f} ms, p99 {first[98]:.0f} ms")
    print("memory (MB):", " ".join(f"{size:.0f}" for size in result.rss_mb))
    print(f"wrong: {len(result.wrong)}", *result.wrong[:5])
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10_000))
