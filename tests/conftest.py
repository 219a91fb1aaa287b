"""What every test shares: fixtures, and the promise that the machine's settings do not leak in."""

import os
from pathlib import Path

import pytest

from recorder.runtime.data_dir import DataDir
from recorder.runtime.settings import KNOWN_NAMES
from tests.faults.table import FaultsTable

FULL_TIMEOUT_S = 1800  # of a test at full size

pytest_plugins = [
    "tests.fix_postgres", "tests.fix_programs", "tests.fix_report", "tests.fix_s3", "tests.fix_monitoring",
]  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full",
        action="store_true",
        help="run with the sizes and times that the guarantees are stated for; takes long",
    )
    parser.addoption("--faults-table", type=Path, metavar="FILE", help="write docs/faults.md from this run")


def pytest_configure(config: pytest.Config) -> None:
    if (file := config.getoption("--faults-table")) is not None:
        worker = hasattr(config, "workerinput")  # of pytest-xdist
        config.pluginmanager.register(FaultsTable(Path(file), full=config.getoption("--full"), worker=worker))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        for item in items:
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(FULL_TIMEOUT_S))


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the sizes and times are those that the guarantees are stated for."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run each test without the settings of the person who runs it, in a folder without a `.env`."""
    for name in KNOWN_NAMES & os.environ.keys():
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def data_dir(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path / "data")


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of real messages; tests that need it say so where it is not."""
    folder = os.environ.get("TICKTAPE_SAMPLES")
    if not folder:
        pytest.skip("TICKTAPE_SAMPLES is not set: the folder of captured Deribit messages")
    return Path(folder).resolve()
