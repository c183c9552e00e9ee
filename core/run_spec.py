"""What run.json holds: everything needed to do a run again. Data only; strict, since it is read back."""

from __future__ import annotations

import datetime as dt
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

import core
from core.types import EngineSpec

PromptMode = Literal["template", "fields", "messages", "openai"]
Overflow = Literal["error", "left", "right"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputSpec(Strict):
    """The file as it was read."""

    name: str
    size_bytes: int
    format: str
    encoding: str | None
    delimiter: str | None
    sheet: str | None
    rows: int
    columns: tuple[str, ...]


class ExampleSpec(Strict):
    """One few-shot example: what a user would ask, and the answer wanted."""

    user: str
    assistant: str


class BatchModelSpec(Strict):
    """What a model name in a line of an OpenAI Batch file stands for.

    `adapter` names the LoRA adapter that answers, `params` fill in what the line leaves out.
    """

    adapter: str | None = None
    params: dict[str, Any] = Field(default_factory=dict)


class BatchLinesSpec(Strict):
    """What lines of an OpenAI Batch file may ask that came through the API: this url, these models."""

    url: str
    models: dict[str, BatchModelSpec]


class PromptSpec(Strict):
    """How a row becomes a chat.

    mode "template": `template` over the columns; `prompt_column` names the column when it is just that.
    "fields": `instruction`, then the row's `fields` as JSON, in an order the planner may choose.
    "messages": `messages_column` holds a chat as JSON (a list of role and content).
    "openai": the row is a line of an OpenAI Batch file, with the parameters in its body; without
    `batch_lines` its model's name is left unread.

    `turns` are further user messages (templates), asked one after the other once the
    answer before is there; `turns_column` holds them as a JSON list instead.
    `examples` come after the system prompt in every row. `param_columns` maps a
    sampling parameter to the column that gives its value for the row.
    `adapter` names the LoRA adapter that answers (None: the model itself), `adapter_column` the
    column that names it for the row; an empty cell there takes `adapter`, "base" the model itself.
    """

    mode: PromptMode = "template"
    template: str = ""
    prompt_column: str | None = None
    instruction: str = ""
    fields: tuple[str, ...] = ()
    messages_column: str | None = None
    system: str = ""
    turns: tuple[str, ...] = ()
    turns_column: str | None = None
    examples: tuple[ExampleSpec, ...] = ()
    param_columns: dict[str, str] = Field(default_factory=dict)
    adapter: str | None = None
    adapter_column: str | None = None
    batch_lines: BatchLinesSpec | None = None


class OverflowSpec(Strict):
    """A prompt over the context: an error, or cut at the left or right of its last user message.

    `prompt_tokens`: the most a prompt may have; None: what the context holds beside max_tokens.
    """

    action: Overflow = "error"
    prompt_tokens: int | None = Field(default=None, ge=1)


class OutputSpec(Strict):
    """Which columns come beside the answer. `samples`: how n > 1 answers are written."""

    samples: Literal["columns", "rows"] = "columns"
    logprobs: bool = False
    choice_probabilities: bool = False


class EvaluationSpec(Strict):
    """The column that holds the right answers. `tolerance`: absolute, for numbers."""

    reference_column: str
    tolerance: float = Field(default=1e-6, ge=0)


class PlanSpec(Strict):
    """What may be done for speed; the output's order is the file's in any case."""

    reorder: bool = True
    dedupe: bool = True


class ModelSpec(Strict):
    """The model that answered, with the settings really in force."""

    name: str
    revision: str | None
    device: str
    dtype: str
    max_model_len: int
    engine_version: str
    settings: dict[str, Any]


class SessionSpec(Strict):
    """One stretch of work on the run: from start or resume to its end. `generated` requests were sent.

    `cached_tokens` of the prompt tokens came from the prefix cache. `tail_s`: time with
    under half the slots busy, at the end; None in runs made before it was measured.
    """

    started_at: dt.datetime
    state: str
    generated: int
    prompt_tokens: int
    output_tokens: int
    wall_s: float
    cached_tokens: int = 0
    tail_s: float | None = None


class ForecastSpec(Strict):
    """What was expected before the start, to be held against what came. Tokens of the whole run."""

    requests: int
    prompt_tokens: int | None
    output_tokens: int | None = None
    cached_share: float | None = None
    seconds: float | None = None


class Instructions(PromptSpec):
    """What to do with each row: how it becomes a chat, and the rest of what is asked.

    `template` or `prompt_column` in mode "template"; `engine` None: what is loaded.
    """

    params: dict[str, Any] = Field(default_factory=dict)
    answer_column: str = "answer"
    overflow: OverflowSpec = OverflowSpec()
    output: OutputSpec = OutputSpec()
    evaluation: EvaluationSpec | None = None
    plan: PlanSpec = PlanSpec()
    engine: EngineSpec | None = None

    @classmethod
    def asking(cls, prompt: PromptSpec, **rest: Any) -> Self:
        """Instructions with this prompt, to be edited: a column that is the whole prompt has no template."""
        asked = {name: getattr(prompt, name) for name in PromptSpec.model_fields}
        if prompt.prompt_column is not None:
            asked["template"] = ""
        return cls(**asked, **rest)


class RunSpec(Strict):
    """run.json."""

    run_id: str
    created_at: dt.datetime
    workbench_version: str = core.__version__
    input: InputSpec
    prompt: PromptSpec | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    answer_column: str = "answer"
    overflow: OverflowSpec = OverflowSpec()
    output: OutputSpec = OutputSpec()
    evaluation: EvaluationSpec | None = None
    plan: PlanSpec = PlanSpec()
    forecast: ForecastSpec | None = None
    engine: EngineSpec | None = None
    model: ModelSpec | None = None
    machine: dict[str, Any] = Field(default_factory=dict)
    sessions: tuple[SessionSpec, ...] = ()
