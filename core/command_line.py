"""A run's specification as the `python -m core batch` line that does it again."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Sequence

from core import engine_settings, sampling
from core.run_spec import RunSpec


def command_line(spec: RunSpec, output: str = "answers.csv") -> str:
    """The line for a shell. Few-shot examples lie in run.json: `--examples` names their table."""
    words = ["python", "-m", "core", "batch", spec.input.name, "-o", output]
    words += _prompt(spec)
    params = dict(spec.params)
    structure = params.pop("structured_outputs", None) or {}
    words += [f"--param={assignment}" for assignment in sampling.as_assignments(params)]
    words += _structure(structure)
    words += _answers(spec)
    if spec.input.encoding not in (None, "utf-8", "utf-8-sig"):
        words += ["--encoding", spec.input.encoding]
    words += ["--sheet", spec.input.sheet] if spec.input.sheet else []
    words += [] if spec.plan.reorder else ["--no-reorder"]
    words += [] if spec.plan.dedupe else ["--no-dedupe"]
    if spec.engine:
        words += ["--engine", spec.engine.engine, "--model", spec.engine.model]
        words += [f"--engine-arg={assignment}" for assignment in engine_settings.as_assignments(spec.engine)]
    return shlex.join(words)


def _prompt(spec: RunSpec) -> list[str]:
    prompt = spec.prompt
    words = []
    if prompt.mode == "template" and prompt.prompt_column is not None:
        words += ["--prompt-column", prompt.prompt_column]
    elif prompt.mode == "template":
        words += ["--template", prompt.template]
    elif prompt.mode == "fields":
        words += ["--fields", _listed(prompt.fields), "--instruction", prompt.instruction]
    elif prompt.mode == "messages":
        words += ["--messages-column", prompt.messages_column]
    words += ["--system", prompt.system] if prompt.system else []
    for turn in prompt.turns:
        words += ["--turn", turn]
    words += ["--turns-column", prompt.turns_column] if prompt.turns_column else []
    words += [f"--param-column={name}={column}" for name, column in prompt.param_columns.items()]
    words += ["--adapter", prompt.adapter] if prompt.adapter is not None else []
    words += ["--adapter-column", prompt.adapter_column] if prompt.adapter_column is not None else []
    return words


def _listed(names: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(names)
    return text.getvalue()


def _structure(structure: dict) -> list[str]:
    words = [word for choice in structure.get("choice", ()) for word in ("--choice", choice)]
    if "json" in structure:
        words += ["--schema", json.dumps(structure["json"], ensure_ascii=False)]
    if "regex" in structure:
        words += ["--regex", structure["regex"]]
    if "grammar" in structure or "json_object" in structure:
        words.append(f"--param=structured_outputs={json.dumps(structure, ensure_ascii=False)}")
    return words


def _answers(spec: RunSpec) -> list[str]:
    words = ["--answer-column", spec.answer_column] if spec.answer_column != "answer" else []
    output, overflow = spec.output, spec.overflow
    words += ["--samples", output.samples] if output.samples != "columns" else []
    words += ["--logprobs"] if output.logprobs else []
    words += ["--choice-probabilities"] if output.choice_probabilities else []
    words += ["--truncate", overflow.action] if overflow.action != "error" else []
    if overflow.prompt_tokens is not None:
        words += ["--truncate-prompt-tokens", str(overflow.prompt_tokens)]
    if spec.evaluation is not None:
        words += ["--reference", spec.evaluation.reference_column, f"--tolerance={spec.evaluation.tolerance}"]
    return words
