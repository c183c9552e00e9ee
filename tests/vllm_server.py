"""vLLM's own OpenAI server over the engine that the tests share, on a free port of this machine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from core.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Served:
    """`model` is the name that the server gives it; `requests` counts what the engine works on now.

    `stop` ends the server, which cuts off what it answers.
    """

    base_url: str
    model: str
    engine: Any
    stop: Callable[[], None]

    @property
    def requests(self) -> int:
        return len(self.engine.output_processor.request_states)


@contextlib.contextmanager
def vllm_server(runtime: Runtime, *, name: str = "served", port: int = 0) -> Iterator[Served]:
    """The server, on the runtime's own loop, as `vllm serve` would have it."""
    engine = runtime.engine._engine
    server, task, listening = runtime.run(_start(engine, runtime.engine.spec.model, name, port))

    def stop() -> None:
        server.should_exit = True
        runtime.run(_ended(task))

    try:
        yield Served(f"http://127.0.0.1:{listening}/v1", name, engine, stop)
    finally:
        stop()


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait_for(task, 15)


async def _start(engine: Any, model: str, name: str, port: int) -> tuple[Any, asyncio.Task[None], int]:
    import uvicorn
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.launchers.launcher import create_server_socket
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # the tests' process keeps its own

    asked = ["--model", model, "--served-model-name", name, "--enable-prompt-tokens-details"]
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(asked)
    validate_parsed_serve_args(args)
    socket = create_server_socket(("127.0.0.1", port), reuse_port=False)
    try:
        tasks = await engine.get_supported_tasks()
        app = build_app(args, tasks, engine.model_config)
        await init_app_state(engine, app.state, args, tasks)
    except BaseException:
        socket.close()
        raise
    # no log_config: setting one up closes the log of everybody's engine
    server = Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
    app.state.server = server
    task = asyncio.create_task(server.serve(sockets=[socket]))
    while not server.started:
        if task.done():
            task.result()
        await asyncio.sleep(0.02)
    return server, task, socket.getsockname()[1]
