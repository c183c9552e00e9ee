"""Runs first in each of the engine's processes, in place of the parent's `__main__`.

What libraries and C++ code print there (progress bars, Gloo, a crash) belongs to
the engine's log, not on the terminal or among the output of the command line.
"""

import os

from core.engines.engine_log import LOG_PATH_VARIABLE

_log = os.open(os.environ[LOG_PATH_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
os.dup2(_log, 1)
os.dup2(_log, 2)
os.close(_log)
