"""A loader killed wherever it asks the database for something, and at any time: nothing is lost, and none twice."""

import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.database import Message, Wire, at, differences, just_do, socket_of, through
from tests.faults.forked import Forks
from tests.faults.proxy import Proxy
from tests.faults.server import Server, own_server
from tests.fix_postgres import START_US, Process, load_once, make_rows, quotes, record, wait_for

Note = Callable[[str, object], None]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server whose sessions are cut by the hundred."""
    yield from own_server(Path(tempfile.mkdtemp(prefix="ticktape-kills-")))


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as running:
        yield running


class Killer:
    """Starts loaders through a proxy, and kills them."""

    def __init__(self, server: Server, forks: Forks, root: Path) -> None:
        self.server, self.root = server, root
        self.wire = Wire()
        self.proxy = Proxy(socket_of(server.url), self.wire)
        self._forks = forks
        self._pid = 0
        self._known = threading.Event()

    def start(self) -> None:
        """Start `load --once`."""
        environment = {
            "DATA_DIR": str(self.root),
            "DATABASE_URL": through(self.proxy, self.server.url),
            "LOG_FORMAT": "json",
        }
        self._known.clear()
        self._pid = self._forks.start(["load", "--once"], environment, self.root.parent / "log")
        self._known.set()

    def kill(self) -> None:
        """Kill it; what it asked and is still under way is not sent on."""
        self._known.wait()
        os.kill(self._pid, signal.SIGKILL)
        raise ConnectionAbortedError("its socket went with it")

    def run(self) -> int:
        """Run it to its end, whatever that is."""
        self.start()
        return self._forks.wait()

    def wait(self) -> int:
        return self._forks.wait()


@pytest.fixture
def killer(server: Server, forks: Forks, tmp_path: Path) -> Iterator[Killer]:
    server.empty()
    killer = Killer(server, forks, tmp_path / "tape")
    with killer.proxy:
        yield killer


def tape(root: Path, segments: int, rows: int) -> None:
    """Record gaps, and quotes of some segments."""
    rounds = [quotes(rows, start_us=START_US + number * 1_000_000) for number in range(segments)]
    record(root, [{"data_gaps": make_rows("data_gaps", 3)}, *rounds])


def test_killed_wherever_it_asks_for_something(killer: Killer, record_property: Note, full: bool) -> None:
    """Before each message to the server, and while its answer is under way: a loader after it makes all exact."""
    tape(killer.root, segments=2, rows=40)
    assert killer.run() == 0
    asked = killer.wire.asked
    # What is asked again and again for each row of a kind is tried now and then in an ordinary run.
    first = {text: number for number, text in reversed([*enumerate(asked, 1)])}.values()
    points = [(number, False) for number in range(1, len(asked) + 1) if full or number % 4 == 1 or number in first]
    # What is under way may take effect after the death of who asked, unless it is in a transaction.
    points += [(number, True) for number, text in enumerate(asked, 1) if full or text == "COMMIT"]

    assert len(asked) > 50
    assert {"COMMIT", "COPY data", "COPY done"} <= set(asked)
    for number, sent in points:
        killer.server.empty()
        killer.wire.begin(at(number, killer.kill, sent=sent))
        assert killer.run() == -signal.SIGKILL, (number, sent)
        where = (number, "sent" if sent else "not sent", asked[number - 1])
        tally = load_once(killer.root, killer.server.url)

        assert (differences(killer.root, killer.server.url), tally.refused) == ([], {}), where
    record_property("fault", "1")
    record_property("cases", len(points))


def test_killed_at_any_time(killer: Killer, record_property: Note, full: bool) -> None:
    """At random times: what is there is right and whole segments; a loader after it brings the rest, once."""
    tape(killer.root, segments=15, rows=300)
    begun_s = time.monotonic()
    assert killer.run() == 0
    lasts_s = time.monotonic() - begun_s
    seed = random.randrange(10**9)
    rng = random.Random(seed)
    cases = 200 if full else 5

    for _ in range(cases):
        killer.server.empty()
        killer.wire.begin(just_do)
        killer.start()
        time.sleep(rng.uniform(0, lasts_s))
        with pytest.raises(ConnectionAbortedError):
            killer.kill()
        killed = killer.wait()
        left = differences(killer.root, killer.server.url, whole=False)
        load_once(killer.root, killer.server.url)

        assert (killed in (-signal.SIGKILL, 0), left) == (True, []), seed
        assert differences(killer.root, killer.server.url) == [], seed
    record_property("fault", "1")
    record_property("cases", cases)


def test_killed_in_a_copy(killer: Killer, record_property: Note) -> None:
    """With half a segment sent nothing of it is there; what was loaded before it is right."""
    tape(killer.root, segments=1, rows=20_000)
    stuck = threading.Event()

    def lose_in_copy(message: Message, do: Callable[[], object]) -> None:
        if killer.wire.asked.count("COPY data") > 5:  # the first two are those of the gaps
            message.line.lost = True
            stuck.set()
        else:
            do()

    killer.wire.begin(lose_in_copy)
    with Process("load", "--once", root=killer.root, url=through(killer.proxy, killer.server.url)) as process:
        assert stuck.wait(30)
        process.popen.kill()
        process.wait()
    killer.proxy.cut()

    assert differences(killer.root, killer.server.url, whole=False) == []
    assert load_once(killer.root, killer.server.url).segments == 1
    assert wait_for(lambda: differences(killer.root, killer.server.url) == [])
    record_property("fault", "1")
    record_property("cases", 1)
