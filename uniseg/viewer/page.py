"""An HTML page that stands alone: its parts from web/, its data as JSON, and a policy that forbids the network.

What comes from outside, such as the names of files and classes, enters a page only through `as_json`, and the page's
script sets it as text. The policy (https://www.w3.org/TR/CSP3/) allows the one script and the one style sheet by their
sha256 and nothing else, so that even a fault in this could neither run a foreign script nor send anything anywhere.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..machine.about import __version__

WEB = Path(__file__).with_name("web")
GENERATOR = f"uniseg {__version__}"
POLICY = ("default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; img-src data:; "
          "base-uri 'none'; form-action 'none'")
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def as_json(content: Any) -> str:
    r"""JSON that can stand inside <script type="application/json">: nothing in it looks like HTML.

    >>> as_json(["</script>", 1.5])
    '["\\u003c/script\\u003e",1.5]'
    """
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda found: ESCAPES[found[0]], text)


def assemble(name: str, styles: Sequence[str], scripts: Sequence[str], parts: Mapping[str, str]) -> str:
    """The page `name` of web/ with its style sheets, its scripts and the given parts in place of each {{part}}.

    parts: as_json or base64; what looks like {{part}} in them stays as it is
    Raises KeyError for a part that is not given.
    """
    style, script = ("\n".join(_read(file) for file in files) for files in (styles, scripts))
    policy = POLICY.format(style=_sha256(style), script=_sha256(script))
    filled = {**parts, "style": style, "script": script, "policy": policy, "generator": html.escape(GENERATOR)}
    page = _read(name).replace("{{head}}", _read("head.html"))
    return re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found[1]], page)


def _read(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
