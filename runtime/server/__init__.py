"""The OpenAI-compatible server, `edge-serve`. Needs the extra `serve`: starlette and uvicorn."""
