"""Model output on a page: what must not happen, and what must stay as it was."""

import pytest

from pages.parts.markdown import model_text


@pytest.mark.parametrize(
    "text",
    [
        "![a picture](http://example.com/x.png)",
        "![a picture][ref]\n\n[ref]: http://example.com/x.png",
        "![ref]\n\n[ref]: http://example.com/x.png",
        "\\\\![escaped backslash, then an image](http://example.com/x.png)",
        "`open\n\n![not in code: a blank line ends the span](http://example.com/x.png)\n\nclose`",
        "\\`![the tick is escaped](http://example.com/x.png)`",
        "``` code ```\n![after inline code with three ticks](http://example.com/x.png)",
    ],
)
def test_an_image_is_shown_as_its_source(text):
    assert "![" not in model_text(text)
    assert model_text(text).replace("&#33;", "!") == text


@pytest.mark.parametrize(
    "text",
    [
        "`![x](y)` and `:smile:` and `$5`",
        "``a ` ![x](y)``",
        "```rust\n#![allow(x)]\nlet v = vec![1]; // $5 :red[x]\n```",
        "~~~\n![x](y)\n~~~",
        "1. Do this:\n   ```sh\n   echo $1 $2 ![x]\n   ```",
        "```python\nvec![1]  # the answer still grows",
        "$x^2 + y_1$ and $$\na = b\n$$",
        "\\$5 is escaped already",
        "# Title\n\n- one\n- **two**\n\n[link](https://example.com) https://example.com 10:30 12:00:05",
        "中文：`代码`，以及 **粗体**。",
    ],
)
def test_code_maths_and_plain_markdown_stay(text):
    assert model_text(text).replace("&#58;", ":") == text
    assert "&#33;" not in model_text(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("$5 and $6", "\\$5 and \\$6"),
        ("5$ and 6$", "5\\$ and 6\\$"),
        ("between $5-$6", "between \\$5-\\$6"),
        ("$x$ costs $5", "$x$ costs \\$5"),
        ("still growing $x", "still growing \\$x"),
    ],
)
def test_money_is_not_maths(text, shown):
    assert model_text(text) == shown


@pytest.mark.parametrize("code", [":smile:", ":material/home:", ":red[x]", ":blue-badge[x]", ":streamlit:"])
def test_streamlits_own_codes_are_shown_as_text(code):
    assert model_text(f"a {code} b").startswith("a &#58;")
    assert model_text(f"a `{code}` b") == f"a `{code}` b"


def test_every_beginning_of_a_text_is_handled():
    text = "Say ![x](y) `a` $5 :smile:\n```\n![z](y)\n```\nend ![x]"
    for length in range(len(text) + 1):
        assert "Say ![" not in model_text(text[:length])
    assert model_text(text).count("&#33;") == 2


def test_code_after_a_closed_fence_is_text_again():
    shown = model_text("```\n![code](x)\n```\n![image](x)\n```\n![code](x)\n```")
    assert shown.count("![code]") == 2 and "![image]" not in shown
