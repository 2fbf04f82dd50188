"""A small HTTP endpoint with the standard library: POST a conversation, get the answer as a stream.

Run it with the bundle that `make demo` exports, then ask from another terminal:

    python examples/http_server.py build/demo/bundle 8080
    curl -N localhost:8080 -d '[{"role": "user", "content": "Why is the sky blue?"}]'

It listens on this machine only. Requests wait for each other: the model holds one conversation.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import edgelm

MAX_BODY_BYTES = 1 << 20


def handler(lm: edgelm.LanguageModel) -> type[BaseHTTPRequestHandler]:
    """A request handler class that answers with this model."""
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            if size > MAX_BODY_BYTES:
                self.send_error(413, f"at most {MAX_BODY_BYTES} bytes")
                return
            with one_at_a_time:
                try:
                    messages = json.loads(self.rfile.read(size))
                    # Text of strangers must not contain control tokens: allow_special=False.
                    answer = lm.stream_chat(messages, allow_special=False, max_tokens=256)
                except (ValueError, edgelm.EdgeLMError) as error:
                    self.send_error(400, explain=str(error))
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; charset=utf-8")
                self.end_headers()
                for text in answer:  # a client that has gone raises here, and the answer ends
                    self.wfile.write(text.encode())
                    self.wfile.flush()

    return Handler


if __name__ == "__main__":
    with edgelm.load(sys.argv[1]) as model:
        server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), handler(model))
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()
