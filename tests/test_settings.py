"""What a setting means where it is left alone, and what no pattern sees."""

from pathlib import Path

import pytest

from loader.settings import LoaderSettings
from recorder.runtime.errors import SettingsError
from recorder.runtime.redact import has_password, redact, redact_urls
from recorder.runtime.settings import load
from recorder.settings import RecorderSettings, history_url, wrong_url


@pytest.mark.parametrize(
    ("ws", "history", "expected"),
    [
        ("wss://www.deribit.com/ws/api/v2", None, "https://history.deribit.com/api/v2"),
        ("wss://streams.deribit.com/ws/api/v2", None, "https://history.deribit.com/api/v2"),
        ("wss://test.deribit.com/ws/api/v2", None, "https://test.deribit.com/api/v2"),
        ("ws://127.0.0.1:8765/ws/api/v2", None, "http://127.0.0.1:8765/api/v2"),
        ("ws://me:secret@127.0.0.1:8765/ws/api/v2?key=secret", None, "http://127.0.0.1:8765/api/v2"),
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


@pytest.mark.parametrize(
    ("name", "url", "shown"),
    [
        ("DERIBIT_WS_URL", "wss://me:s3cr3t@host:0/ws", "wss://***@host:0/ws: it names no host"),
        ("DERIBIT_WS_URL", "wss://me:s3cr3t/t@host/ws", "wss://***@host/ws: it names no host"),
        ("DERIBIT_WS_URL", "wss://me:s3cr3t?t@host/ws", "wss://***: it names no host"),
        ("DERIBIT_WS_URL", "wss://me:s3cr3t", "wss://me:***: it names no host"),
        ("DERIBIT_WS_URL", "wss://me:4/s3cr3t@host/ws", "wss://***@host/ws: there is an @ behind the host"),
        ("DERIBIT_WS_URL", "wss://host/ws?key=me@s3cr3t", "wss://***: there is an @ behind the host"),
        ("DERIBIT_WS_URL", "wss://s3cr3t@host/ws", "wss://***@host/ws: expected user:password"),
        ("DERIBIT_WS_URL", "wss://host/ws#s3cr3t", "wss://host/ws#***: expected nothing after #"),
        ("DERIBIT_HISTORY_URL", "https://me:s3cr3t@host:0/x", "https://***@host:0/x: it names no host"),
        ("DERIBIT_HISTORY_URL", "https://me:s3cr3t@host/x", "https://***@host/x: no user"),
        ("DERIBIT_HISTORY_URL", "https://host/x?key=s3cr3t", "https://host/x?***: no user"),
    ],
)
def test_a_wrong_address_is_told_without_what_may_be_secret(name: str, url: str, shown: str) -> None:
    """Also where a part of the password stands where a host, a port, or a query does."""
    (problem,) = wrong_url(load(RecorderSettings, {}, {name: url}, env_file=Path("/none")))

    assert problem.startswith(f"{name}={shown}")
    assert "s3cr3t" not in problem


@pytest.mark.parametrize("url", ["wss://me:s3cr%40t@host:8443/ws?key=x", "ws://[::1]:8765/ws/api/v2"])
def test_an_address_with_a_password_is_a_right_one(url: str) -> None:
    """As is one by number."""
    assert wrong_url(RecorderSettings(deribit_ws_url=url)) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("wss://me:s3cr3t@host:1/ws?key=s3cr3t", "wss://***@host:1/ws?***"),
        ("wss://me:p@s3cr3t@host/ws", "wss://***@host/ws"),
        ("me:s3cr3t@host", "***@host"),
        ("postgresql://me:s3cr3t@host/x?password=s3cr3t", "postgresql://***@host/x?***"),
        ("host=h sslpassword = 's3 cr3t' dbname=x", "host=h sslpassword=***"),
        ("wss://www.deribit.com/ws/api/v2", "wss://www.deribit.com/ws/api/v2"),
        ("ws://[::1]:8765/ws?", "ws://[::1]:8765/ws?"),
        ("-1", "-1"),
    ],
)
def test_what_is_secret_is_masked_and_nothing_else(value: str, shown: str) -> None:
    """User, password and query of a URL, and the password of a connection string."""
    assert redact(value) == shown
    assert redact_urls(f"not {value} again") == f"not {shown} again" or "://" not in value


@pytest.mark.parametrize("url", ["wss://me:s3/cr3t@host/ws", "wss://me:4a?cr3t@host/ws", "wss://me:s3cr3t@host/ws"])
def test_a_password_on_the_command_line_is_refused_whatever_is_in_it(url: str) -> None:
    """And is not repeated."""
    with pytest.raises(SettingsError) as raised:
        load(RecorderSettings, {"deribit_ws_url": url}, {}, env_file=Path("/none"))

    (problem,) = raised.value.problems
    assert "a password on the command line" in problem
    assert "cr3t" not in problem


def test_an_at_sign_behind_several_hosts_is_no_password() -> None:
    """What is between a colon and a comma is a port."""
    assert not has_password("postgresql://h1:5432,h2:5433/db?user=me@corp")


@pytest.mark.parametrize("name", ["LOG_LEVEL", "METRICS_PORT", "CURRENCY"])
def test_a_secret_under_a_wrong_name_is_not_repeated(name: str) -> None:
    """Neither as the value nor in the rule that it breaks."""
    with pytest.raises(SettingsError) as raised:
        load(RecorderSettings, {}, {name: "postgresql://me:s3cr3t@host/x"}, env_file=Path("/none"))

    assert raised.value.problems[0].startswith(f"{name}=postgresql://***@host/x: ")
    assert "s3cr3t" not in str(raised.value)


def test_what_is_off_by_default_can_be_set() -> None:
    """To a number within its bounds, and to off again."""
    loader = load(LoaderSettings, {}, {"RETENTION_DAYS": "30", "LOADER_METRICS_PORT": "9102"}, env_file=Path("/none"))
    recorder = load(RecorderSettings, {"metrics_port": "9101"}, {}, env_file=Path("/none"))

    assert (loader.retention_days, loader.loader_metrics_port, recorder.metrics_port) == (30.0, 9102, 9101)
    off = load(LoaderSettings, {}, {"RETENTION_DAYS": "off", "LOADER_METRICS_PORT": "OFF"}, env_file=Path("/none"))
    assert (off.retention_days, off.loader_metrics_port) == (None, None)
