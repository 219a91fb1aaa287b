"""One connection by itself, where a socket does what a simulated exchange seldom does."""

import asyncio
import contextlib
from typing import Any

import pytest

from recorder.deribit import connection as module
from recorder.deribit.connection import Connection
from recorder.deribit.pacer import Pacer
from recorder.runtime.logging import get_logger


def connection(changed: list[str]) -> Connection:
    feed: Any = None  # nothing is received here
    return Connection(
        0, "ws://127.0.0.1:1", feed=feed, pacer=Pacer(), changed=lambda: changed.append("changed"),
        now_us=lambda: 0, log=get_logger("test"),
    )  # fmt: skip


@pytest.mark.anyio
async def test_a_cancellation_is_not_lost_in_a_socket_that_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error takes the place of the cancellation; the connection ends all the same, and tries no more."""
    opened = asyncio.Event()
    tries = 0

    class Closing(contextlib.AbstractAsyncContextManager[None]):
        async def __aenter__(self) -> None:
            nonlocal tries
            tries += 1
            opened.set()
            try:
                await asyncio.sleep(10)
            finally:
                raise ConnectionError("closed meanwhile")

        async def __aexit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(module, "open_session", lambda *_, **__: Closing())
    changed: list[str] = []
    task = asyncio.create_task(connection(changed).run())
    await opened.wait()
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=5)

    assert done == {task}
    assert task.cancelled()
    assert (tries, changed) == (1, [])
