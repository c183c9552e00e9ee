"""Programs that ask the API something and run as they stand: curl, Python, JavaScript. Pure.

They hold no key. Where the API asks for one, they read it from OPENAI_API_KEY, as OpenAI's own client does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from core.snippets import KEY_HEADER, KEY_VARIABLE, as_json, as_text, quoted

Task = Literal["chat", "stream", "generate", "batch"]
TASKS: dict[Task, str] = {
    "chat": "Chat",
    "stream": "Chat, streamed",
    "generate": "Plain prompt",
    "batch": "Batch",
}
_QUESTION = "Name three rivers of Europe."
_MAX_TOKENS = 60


def examples(task: Task, url: str, model: str, *, needs_key: bool) -> dict[str, str]:
    """{"curl" | "Python" | "JavaScript": a program}, each printing what was answered.

    `url` is that of ApiStatus, without a path. Python needs the package `openai` ("requests" for a plain
    prompt), JavaScript Node 18 or later and no package.
    """
    found = {language: writers.get(task) for language, writers in _WRITERS.items()}
    return {language: write(url, model, needs_key) for language, write in found.items() if write}


def _chat(model: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": _QUESTION}]
    return {"model": model, "messages": messages, "max_tokens": _MAX_TOKENS, **more}


# -- curl ---------------------------------------------------------------------


def _curl(path: str, body: Callable[[str], dict[str, Any]], options: str = "") -> Callable[..., str]:
    def write(url: str, model: str, needs_key: bool) -> str:
        kind = "  -H 'Content-Type: application/json' \\\n"
        head = f"curl{options} {quoted(url + path)} \\\n{KEY_HEADER if needs_key else ''}{kind}"
        return f"{head}  -d {quoted(as_json(body(model)))}\n"

    return write


# -- Python -------------------------------------------------------------------


def _client(url: str, needs_key: bool) -> str:
    key = "" if needs_key else ', api_key="none"'  # else from OPENAI_API_KEY
    return f'from openai import OpenAI\n\nclient = OpenAI(base_url="{url}/v1"{key})\n'


def _python_chat(url: str, model: str, needs_key: bool) -> str:
    return f"""{_client(url, needs_key)}answer = client.chat.completions.create(
    model={as_text(model)},
    messages=[{{"role": "user", "content": "{_QUESTION}"}}],
    max_tokens={_MAX_TOKENS},
)
print(answer.choices[0].message.content)
"""


def _python_stream(url: str, model: str, needs_key: bool) -> str:
    return f"""{_client(url, needs_key)}answer = client.chat.completions.create(
    model={as_text(model)},
    messages=[{{"role": "user", "content": "{_QUESTION}"}}],
    max_tokens={_MAX_TOKENS},
    stream=True,
)
for chunk in answer:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
"""


def _python_generate(url: str, model: str, needs_key: bool) -> str:
    system = "import os\n\n" if needs_key else ""
    header = (
        f'    headers={{"Authorization": "Bearer " + os.environ["{KEY_VARIABLE}"]}},\n' if needs_key else ""
    )
    return f"""{system}import requests

answer = requests.post(
    "{url}/generate",
{header}    json={as_json(_prompt(model), 4)},
)
answer.raise_for_status()
print(answer.json()["response"])
"""


def _python_batch(url: str, model: str, needs_key: bool) -> str:
    return f"""import json
import time

{_client(url, needs_key)}
questions = ["{_QUESTION}", "Name three mountains of Asia."]
lines = [
    {{
        "custom_id": f"question-{{number}}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {{
            "model": {as_text(model)},
            "messages": [{{"role": "user", "content": question}}],
            "max_tokens": {_MAX_TOKENS},
        }},
    }}
    for number, question in enumerate(questions, 1)
]
data = "\\n".join(json.dumps(line) for line in lines).encode()
file = client.files.create(file=("questions.jsonl", data), purpose="batch")
batch = client.batches.create(
    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
)
while batch.status not in ("completed", "failed", "cancelled", "expired"):
    time.sleep(1)
    batch = client.batches.retrieve(batch.id)
print(batch.status, batch.errors or "")
if batch.output_file_id:
    for line in client.files.content(batch.output_file_id).text.splitlines():
        answer = json.loads(line)
        print(answer["custom_id"], answer["response"]["body"]["choices"][0]["message"]["content"])
"""


# -- JavaScript ---------------------------------------------------------------


def _fetch(path: str, body: Callable[[str], dict[str, Any]], then: str) -> Callable[..., str]:
    def write(url: str, model: str, needs_key: bool) -> str:
        key = f"    Authorization: `Bearer ${{process.env.{KEY_VARIABLE}}}`,\n" if needs_key else ""
        return f"""// node ask.mjs
const response = await fetch("{url}{path}", {{
  method: "POST",
  headers: {{
{key}    "Content-Type": "application/json",
  }},
  body: JSON.stringify({as_json(body(model), 2)}),
}});
if (!response.ok) throw new Error(await response.text());
{then}"""

    return write


_READ_STREAM = """let unread = "";
for await (const bytes of response.body.pipeThrough(new TextDecoderStream())) {
  const lines = (unread + bytes).split("\\n");
  unread = lines.pop();
  for (const line of lines) {
    if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
    process.stdout.write(JSON.parse(line.slice(6)).choices[0]?.delta.content ?? "");
  }
}
console.log();
"""


def _prompt(model: str) -> dict[str, Any]:
    return {"model": model, "prompt": _QUESTION, "max_tokens": _MAX_TOKENS}


def _streamed(model: str) -> dict[str, Any]:
    return _chat(model, stream=True)


_COMPLETIONS = "/v1/chat/completions"
_WRITERS: dict[str, dict[Task, Callable[[str, str, bool], str]]] = {
    "curl": {
        "chat": _curl(_COMPLETIONS, _chat),
        "stream": _curl(_COMPLETIONS, _streamed, " --no-buffer"),
        "generate": _curl("/generate", _prompt),
    },
    "Python": {
        "chat": _python_chat,
        "stream": _python_stream,
        "generate": _python_generate,
        "batch": _python_batch,
    },
    "JavaScript": {
        "chat": _fetch(
            _COMPLETIONS,
            _chat,
            "const answer = await response.json();\nconsole.log(answer.choices[0].message.content);\n",
        ),
        "stream": _fetch(_COMPLETIONS, _streamed, _READ_STREAM),
        "generate": _fetch("/generate", _prompt, "console.log((await response.json()).response);\n"),
    },
}
