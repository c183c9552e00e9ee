"""What a page may show of model output: Markdown that loads no image, and none of Streamlit's own codes.

This is for reading well. That no image is ever fetched from elsewhere does not
hang on it: the server's content security policy (`session.LocalImages`) sees to that,
also where this module takes for code what the browser's Markdown does not.
"""

from __future__ import annotations

import re

_CODE = re.compile(
    # a fence, to its end or to the end of a text that is still growing
    r"^[ ]*(?:[-*+][ ]+|\d+[.)][ ]+)?(?P<fence>`{3,}|~{3,})[^\n`]*"
    r"(?:\n(?:.*?\n)??[ ]*(?P=fence)[`~]*[ \t]*$|\n.*\Z|\Z)"
    # inline code: no blank line in it, no escaped tick before it
    r"|(?<![`\\])(?P<ticks>`+)(?!`)(?:(?!\n[ \t]*\n).)+?(?<!`)(?P=ticks)(?!`)",
    re.MULTILINE | re.DOTALL,
)
_SPECIAL = re.compile(
    r"(?P<keep>\\[\\$]"  # an escaped backslash or dollar
    r"|\$\$.*?(?:\$\$|\Z)"  # maths on lines of its own
    # maths in a line: neither "$5 and $6" nor "5$ and 6$"
    r"|\$(?![\s\d])(?:\\.|[^$\n\\])*?(?<!\s)\$(?!\d))"
    r"|(?P<dollar>\$)"
    r"|(?P<image>!(?=\[))"
    # :smile:, :material/home:, :red[text], :blue-badge[text]
    r"|(?P<colon>:(?=(?P<name>[a-zA-Z0-9_+\-/]+)[:\[]))",
    re.DOTALL,
)


def model_text(text: str) -> str:
    """`text` for st.markdown, the same to the eye; it may break off anywhere, as a growing answer does."""
    shown: list[str] = []
    end = 0
    for code in _CODE.finditer(text):
        shown += [_SPECIAL.sub(_literal, text[end : code.start()]), code.group()]
        end = code.end()
    return "".join((*shown, _SPECIAL.sub(_literal, text[end:])))


def _literal(found: re.Match[str]) -> str:
    """The same characters, as entities where Markdown or Streamlit would take them for a command."""
    if found["keep"]:
        return found["keep"]
    if found["dollar"]:
        return "\\$"
    if found["image"]:
        return "&#33;"
    # Streamlit puts its logo for :streamlit: after entities are read: keep the two apart
    return "&#58;&#8203;" if found["name"] == "streamlit" else "&#58;"


_PUNCTUATION = re.compile(r"([\\`*_{}\[\]()#+\-.!|>~$<&=^])")


def plain_text(text: str) -> str:
    """`text` for places that read Markdown (labels, captions, errors), letter by letter on one line."""
    line = " ".join(text.split())
    # before ":" is made an entity, which has punctuation of its own
    return _PUNCTUATION.sub(r"\\\1", line).replace(":", "&#58;")
