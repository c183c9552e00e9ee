"""Sessions of the running app without browsers: they speak Streamlit's protocol as its page's script does."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

from streamlit.proto.Alert_pb2 import Alert
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.Delta_pb2 import Delta
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import ClientConnection, connect


@dataclass(slots=True)
class Session:
    """One visitor of `page` (the address's path, "" is Home), who has it drawn anew every `redraw_s` seconds.

    Fragments are asked for as often as the page says. `counted` holds what came: messages, bytes, elements,
    fragments, redraws of the whole page; and polls, which were sent. Widgets keep their defaults.
    """

    port: int
    page: str
    query: str = ""
    redraw_s: float = 5.0
    first_redraw_s: float = 5.0
    counted: Counter[str] = field(default_factory=Counter)
    redraws_s: list[float] = field(default_factory=list)
    _buttons: dict[str, tuple[str, str]] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _socket: ClientConnection = None
    _timers: asyncio.TaskGroup = None
    _polls: dict[str, tuple[float, asyncio.Task]] = field(default_factory=dict)
    _kept: dict[str, tuple[int, str]] = field(default_factory=dict)
    _runs: int = 0
    _script: str = ""
    _asked: float | None = None

    async def stay(self) -> None:
        """Until it is cancelled. Raises RuntimeError when the page shows an error."""
        address = f"127.0.0.1:{self.port}"
        async with (
            connect(
                f"ws://{address}/_stcore/stream",
                origin=f"http://{address}",
                subprotocols=["streamlit"],
                max_size=None,
            ) as self._socket,
            asyncio.TaskGroup() as self._timers,
        ):
            await self._redraw()
            self._timers.create_task(self._redraw_often())
            async for data in self._socket:
                message = ForwardMsg.FromString(data)
                self.counted.update(messages=1, bytes=len(data))
                self._take(message)
                self._news.set()
            raise RuntimeError(f"/{self.page}: the server has closed the connection")

    def has_drawn(self) -> bool:
        """Whether it has polled, and drawn both the page and a fragment that was polled for."""
        return all(self.counted[name] for name in ("polls", "fragments", "redraws"))

    async def until_drawn(self) -> None:
        while not self.has_drawn():
            await self._message()

    async def button(self, label: str) -> tuple[str, str]:
        """Wait for one whose text begins so; its id and its fragment's."""
        while not (found := [where for text, where in self._buttons.items() if text.startswith(label)]):
            await self._message()
        return found[0]

    async def _message(self) -> None:
        self._news.clear()
        await self._news.wait()

    async def press(self, label: str) -> None:
        button, fragment = await self.button(label)
        await self._rerun(fragment=fragment, button=button)

    # -- what a browser sends -------------------------------------------------

    async def _redraw_often(self) -> None:
        await asyncio.sleep(self.first_redraw_s)
        while True:
            await self._redraw()
            await asyncio.sleep(self.redraw_s)

    async def _redraw(self) -> None:
        self._asked = time.monotonic()
        await self._rerun()

    async def _poll(self, fragment: str, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            self.counted["polls"] += 1
            await self._rerun(fragment=fragment, automatic=True)

    async def _rerun(self, *, fragment: str = "", automatic: bool = False, button: str = "") -> None:
        message = BackMsg()
        rerun = message.rerun_script
        rerun.query_string, rerun.fragment_id, rerun.is_auto_rerun = self.query, fragment, automatic
        if self._script:
            rerun.page_script_hash = self._script
        else:
            rerun.page_name = self.page
        rerun.cached_message_hashes.extend(self._kept)
        rerun.context_info.timezone, rerun.context_info.locale = "UTC", "en-US"
        if button:
            rerun.widget_states.widgets.add(id=button, trigger_value=True)
        await self._socket.send(message.SerializeToString())

    # -- what it does with what comes -----------------------------------------

    def _take(self, message: ForwardMsg) -> None:
        self._keep(message)
        match message.WhichOneof("type"):
            case "delta":
                self._draw(message.delta)
            case "auto_rerun":
                self._start_polling(message.auto_rerun.fragment_id, message.auto_rerun.interval)
            case "stop_auto_rerun":
                for fragment in message.stop_auto_rerun.fragment_ids:
                    self._stop_polling(fragment)
            case "new_session" if fragments := message.metadata.run.fragment_ids:
                self.counted["fragments"] += len(fragments)
            case "new_session":
                for fragment in list(self._polls):
                    self._stop_polling(fragment)
                self._buttons.clear()
            case "navigation":
                self._script = message.navigation.page_script_hash
            case "page_info_changed":
                self.query = message.page_info_changed.query_string
            case "script_finished":
                self._finished(message)
            case "page_not_found":
                raise RuntimeError(f"/{self.page} is no page of the app")

    def _draw(self, delta: Delta) -> None:
        if delta.WhichOneof("type") != "new_element":
            return
        self.counted["elements"] += 1
        element = delta.new_element
        match element.WhichOneof("type"):
            case "exception":
                raise RuntimeError(f"/{self.page}: {element.exception.type}: {element.exception.message}")
            case "alert" if element.alert.format == Alert.ERROR:
                raise RuntimeError(f"/{self.page}: {element.alert.body}")
            case "button" if not element.button.disabled:
                self._buttons[element.button.label] = element.button.id, delta.fragment_id

    def _start_polling(self, fragment: str, interval_s: float) -> None:
        interval, _task = self._polls.get(fragment, (None, None))
        if interval != interval_s:
            self._stop_polling(fragment)
            self._polls[fragment] = interval_s, self._timers.create_task(self._poll(fragment, interval_s))

    def _stop_polling(self, fragment: str) -> None:
        _interval, task = self._polls.pop(fragment, (None, None))
        if task is not None:
            task.cancel()

    def _finished(self, message: ForwardMsg) -> None:
        if message.script_finished == ForwardMsg.FINISHED_WITH_COMPILE_ERROR:
            raise RuntimeError(f"/{self.page}: the script can't be compiled")
        if message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY:
            self.counted["redraws"] += 1
            if self._asked is not None:
                self.redraws_s.append(time.monotonic() - self._asked)
                self._asked = None
        if message.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN:
            self._forget(set(message.metadata.run.fragment_ids))

    def _keep(self, message: ForwardMsg) -> None:
        """Large elements are kept, and only named when they come again, as long as they are not too old."""
        if message.WhichOneof("type") == "ref_hash":
            _run, fragment = self._kept[message.ref_hash]
            self._kept[message.ref_hash] = self._runs, fragment
        elif message.metadata.cacheable:
            self._kept.setdefault(message.hash, (self._runs, message.delta.fragment_id))

    def _forget(self, fragments: set[str]) -> None:
        """After a run, of these fragments or the whole page: what of it was not shown in the last two."""
        self._runs += 1
        for key, (run, fragment) in list(self._kept.items()):
            if (fragments and fragment not in fragments) or self._runs - run > 2:
                del self._kept[key]
