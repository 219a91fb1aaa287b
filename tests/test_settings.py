"""What a setting means where it is left alone, and what no pattern sees."""

from pathlib import Path

import pytest

from loader.settings import LoaderSettings
from recorder.runtime.settings import load
from recorder.settings import RecorderSettings, history_url, wrong_url


@pytest.mark.parametrize(
    ("ws", "history", "expected"),
    [
        ("wss://www.deribit.com/ws/api/v2", None, "https://history.deribit.com/api/v2"),
        ("wss://streams.deribit.com/ws/api/v2", None, "https://history.deribit.com/api/v2"),
        ("wss://test.deribit.com/ws/api/v2", None, "https://test.deribit.com/api/v2"),
        ("ws://127.0.0.1:8765/ws/api/v2", None, "http://127.0.0.1:8765/api/v2"),
        ("ws://127.0.0.1:8765/ws/api/v2", "http://127.0.0.1:1/x", "http://127.0.0.1:1/x"),
    ],
)
def test_the_real_exchange_is_never_asked_on_behalf_of_another(ws: str, history: str | None, expected: str) -> None:
    """Trades of the real market must not heal the tape of a simulated one."""
    settings = RecorderSettings(deribit_ws_url=ws)
    if history:
        settings = RecorderSettings(deribit_ws_url=ws, deribit_history_url=history)

    assert history_url(settings) == expected


@pytest.mark.parametrize("url", ["ws://127.0.0.1:99999/x", "ws://:8765/x", "ws://host:0/x"])
def test_an_address_that_is_none_is_a_wrong_setting(url: str) -> None:
    """Told before anything is opened, with the name and the value."""
    (problem,) = wrong_url(RecorderSettings(deribit_ws_url=url))

    assert problem.startswith(f"DERIBIT_WS_URL={url}: ")


def test_what_is_off_by_default_can_be_set() -> None:
    """To a number within its bounds, and to off again."""
    loader = load(LoaderSettings, {}, {"RETENTION_DAYS": "30", "LOADER_METRICS_PORT": "9102"}, env_file=Path("/none"))
    recorder = load(RecorderSettings, {"metrics_port": "9101"}, {}, env_file=Path("/none"))

    assert (loader.retention_days, loader.loader_metrics_port, recorder.metrics_port) == (30.0, 9102, 9101)
    off = load(LoaderSettings, {}, {"RETENTION_DAYS": "off", "LOADER_METRICS_PORT": "OFF"}, env_file=Path("/none"))
    assert (off.retention_days, off.loader_metrics_port) == (None, None)
