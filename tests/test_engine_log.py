"""The engine's log: who writes to it, and with what set-up."""

import logging
import os
import subprocess
import sys

from core.engines.engine_log import EngineLog


def test_a_process_that_knows_nothing_of_the_workbench_can_read_the_set_up(tmp_path):
    """Importing vLLM in a process that was started elsewhere failed with "No module named 'core'"."""
    log = EngineLog(tmp_path / "logs")
    variables = log.begin()
    program = (
        "import json, logging.config, os;"
        "logging.config.dictConfig(json.load(open(os.environ['VLLM_LOGGING_CONFIG_PATH'])));"
        "logging.getLogger('vllm').info('from elsewhere')"
    )
    subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=tmp_path, env=os.environ | variables, check=True
    )
    assert any(line.endswith("from elsewhere") for line in log.poll())


def test_a_record_after_the_end_opens_nothing(tmp_path):
    log = EngineLog(tmp_path / "logs")
    log.begin()
    (handler,) = logging.getLogger("vllm").handlers
    handler.close()
    logging.getLogger("vllm").warning("late")
    assert handler.stream is None
    assert not log.poll()
