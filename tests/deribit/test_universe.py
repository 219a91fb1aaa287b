"""The listing, while it is fetched."""

from pathlib import Path

import msgspec
import pytest

from recorder.deribit.messages import InstrumentData
from recorder.deribit.session import Reply, RpcError
from recorder.deribit.universe import Universe
from recorder.runtime.logging import get_logger

pytestmark = pytest.mark.anyio


async def test_what_is_announced_while_the_list_is_on_its_way_is_not_forgotten(tmp_path: Path) -> None:
    """A listing and an expiry that come between the reply and the next one stand, though the list lacks them."""
    universe = Universe(
        currency="ETH", kind="option", cache=tmp_path / "u.json", source="here", log=get_logger("test")
    )

    async def call(method: str, **_params: object) -> Reply:
        if method == "public/get_instruments":
            rows = [{"instrument_name": name, "kind": "option", "state": "open"} for name in ("old", "gone")]
            return Reply(msgspec.Raw(msgspec.json.encode(rows)), None)
        universe.add(InstrumentData("new", kind="option", state="open"))
        universe.add(InstrumentData("gone", kind="option", state="delivered"))
        return Reply(msgspec.Raw(b"[]"), None)

    await universe.fetch(call)

    assert {data.instrument_name for data in universe.listing.live} == {"old", "new"}


async def test_a_remembered_list_is_of_one_exchange_and_tells_no_secret(tmp_path: Path) -> None:
    """Host, port and path say whose it is. It serves under another password, and no other exchange."""

    def universe(source: str) -> Universe:
        return Universe(
            currency="ETH", kind="option", cache=tmp_path / "u.json", source=source, log=get_logger("test")
        )

    async def answer(method: str, **_params: object) -> Reply:
        rows = [{"instrument_name": "old", "kind": "option", "state": "open"}]
        return Reply(msgspec.Raw(msgspec.json.encode(rows if method == "public/get_instruments" else [])), None)

    async def refuse(method: str, **_params: object) -> Reply:
        raise RpcError(method, 11051, "system_maintenance", b"null")

    assert await universe("wss://me:s3cr3t@host:1/ws?key=s3cr3t").fetch(answer)
    assert b"s3cr3t" not in (tmp_path / "u.json").read_bytes()
    same = universe("wss://me:another@host:1/ws?key=x")
    assert not await same.fetch(refuse)
    assert list(same.listing.instruments) == ["old"]
    for other in ("wss://me:s3cr3t@host:2/ws?key=s3cr3t", "wss://me:s3cr3t@host:1/x?key=s3cr3t"):
        with pytest.raises(RpcError):
            await universe(other).fetch(refuse)
