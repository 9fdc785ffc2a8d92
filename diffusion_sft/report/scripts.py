"""The page's scripts and the policy that lets these run and nothing else, and forbids the page any network.

Scripts are named by their SHA-256, so that no other one runs even if something foreign got into the page as markup.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import altair
import vl_convert
from markupsafe import Markup


def page_scripts(*, with_list: bool, with_charts: bool) -> list[Markup]:
    """What stands in the page's `<script>` elements, in order: those of the list of concepts, and those of charts."""
    texts = [_own("explorer.js")] if with_list else []
    texts += [chart_library(), _own("charts.js")] if with_charts else []
    return [inside_script(text) for text in texts]


def _own(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


@cache
def chart_library() -> str:
    """Vega, Vega-Lite and Vega-Embed with all they need, as one script that defines `vegaEmbed`."""
    wanted, known = (
        ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2]),
        vl_convert.get_vegalite_versions(),
    )
    version = wanted if wanted in known else known[-1]
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)


def inside_script(text: str) -> Markup:
    """The text of a script, in which nothing ends the element that holds it.

    The two sequences can stand only in texts and regular expressions of a script, where the backslash changes nothing.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return Markup(re.sub(r"<(/script|!--)", r"<\\\1", text, flags=re.IGNORECASE))


def content_policy(scripts: Sequence[str]) -> str:
    """The Content-Security-Policy of a page with these scripts: no network, no frames, no other scripts, no eval."""
    digests = [base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    rules = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:"
    return f"{rules}; base-uri 'none'; form-action 'none'"
