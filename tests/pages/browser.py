"""A page in headless Chromium, where one is installed: how wide it is, and what a script finds."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

_OUTER = """<!doctype html><meta charset="utf-8"><pre id="result"></pre>
<iframe style="width: {width}px; height: 800px; border: 0" srcdoc="{page}"></iframe>
<script>
document.querySelector("iframe").addEventListener("load", event => {{
  const page = event.target.contentDocument;
  document.getElementById("result").textContent = JSON.stringify(({script})(page));
}});
</script>
"""


def run_in_page(page: str, script: str, folder: Path, *, width: int) -> Any:
    """What a JavaScript function of the page's document returns, at a width in pixels.

    The page is in a frame, so that its own policy on scripts stays as it is.
    """
    assert CHROMIUM is not None
    file = folder / "outer.html"
    file.write_text(_OUTER.format(width=width, page=escape(page), script=script))
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found, done.stderr
    return json.loads(unescape(found[1]))
