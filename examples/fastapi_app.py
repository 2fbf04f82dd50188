"""An endpoint of your own with FastAPI: POST a question, get the answer as a stream of text.

Needs `pip install fastapi uvicorn`. For OpenAI's API there is `edge-serve`. Run it with the bundle
that `make demo` exports, then ask from another terminal:

    python examples/fastapi_app.py build/demo/bundle 8080
    curl -N localhost:8080/ask -H 'Content-Type: application/json' -d '{"question": "Why?"}'
"""

import sys
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

import edgelm


class Question(BaseModel):
    """The body of a request."""

    question: str = Field(max_length=10_000)


def make_app(lm: edgelm.LanguageModel) -> FastAPI:
    """An app with one route; a client that leaves ends its answer."""
    app = FastAPI()

    @app.post("/ask")
    async def ask(asked: Question) -> StreamingResponse:
        try:
            stream = lm.chat().asend(asked.question, max_tokens=256)
        except edgelm.EdgeLMError as error:
            raise HTTPException(400, str(error)) from None

        async def texts() -> AsyncIterator[str]:
            async with stream:
                async for chunk in stream:
                    yield chunk.text

        return StreamingResponse(texts(), media_type="text/plain; charset=utf-8")

    return app


if __name__ == "__main__":
    with edgelm.load(sys.argv[1], sequences=2) as model:
        uvicorn.run(make_app(model), host="127.0.0.1", port=int(sys.argv[2]))
