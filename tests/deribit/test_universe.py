"""The listing, while it is fetched."""

from pathlib import Path

import msgspec
import pytest

from recorder.deribit.messages import InstrumentData
from recorder.deribit.session import Reply
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
