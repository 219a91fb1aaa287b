"""The recorder's command line. Heavy imports happen in the commands, so that `--help` is instant."""

import argparse
import os
import sys
from collections.abc import Sequence

from recorder.runtime import command_line, settings
from recorder.runtime.errors import SettingsError
from recorder.runtime.exit_codes import ExitCode
from recorder.settings import RecorderSettings, StatusSettings, wrong_url
from recorder.simulator import options as simulator_options

EXAMPLES = """examples:
  python -m recorder record --for 60
  python -m recorder record --currency BTC --top-n-instruments 0
  python -m recorder doctor
  python -m recorder status --metrics-port 9101 --loader-metrics-port 9102
  python -m recorder simulate --port 8765 --instruments 50 --rate 500
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    return command_line.run(_parser(), argv)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.new_parser("recorder", "Record Deribit option ticks into durable segments.", EXAMPLES)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    record = commands.add_parser("record", help="record until stopped", description="Record until stopped.")
    record.add_argument("--for", dest="run_for_s", type=_seconds, metavar="SECONDS", help="stop by itself after this")
    record.add_argument(
        "--connect-timeout",
        dest="connect_timeout_s",
        type=_seconds,
        metavar="SECONDS",
        help="give up (exit 3) if the exchange is not reached within this; default: keep trying",
    )
    settings.add_flags(record, RecorderSettings)
    record.set_defaults(command=_record)

    doctor = commands.add_parser(
        "doctor", help="check every segment", description="Check every segment: exit 0 clean, 6 damage."
    )
    doctor.add_argument(
        "--repair", action="store_true", help="salvage what is good; move damaged files to quarantine/"
    )
    settings.add_flags(doctor, settings.CommonSettings)
    doctor.set_defaults(command=_doctor)

    status = commands.add_parser(
        "status",
        help="show how recorder, loader, and tape are doing",
        description="Show how recorder, loader, and tape are doing, until Ctrl-C: exit 0 healthy, 1 not, 7 if neither"
        " program could be asked. Once, as text, where stdout is no terminal.",
    )
    form = status.add_mutually_exclusive_group()
    form.add_argument("--once", action="store_true", help="show it once and end")
    form.add_argument("--json", action="store_true", help="print it once, as one object")
    settings.add_flags(status, StatusSettings)
    status.set_defaults(command=_status)

    simulate = commands.add_parser(
        "simulate", help="be a Deribit look-alike", description="Be a Deribit to record when there is none."
    )
    simulator_options.add_arguments(simulate)
    simulate.set_defaults(command=_simulate)
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text}: must be more than 0")
    return value


def _record(args: argparse.Namespace) -> int:
    loaded = settings.load(RecorderSettings, vars(args), os.environ)
    if problems := wrong_url(loaded):
        raise SettingsError(problems)
    from recorder.record import record  # noqa: PLC0415 - heavy
    from recorder.runtime import logging  # noqa: PLC0415

    logging.configure(level=loaded.log_level, form=loaded.log_format)
    record(loaded, run_for_s=args.run_for_s, connect_timeout_s=args.connect_timeout_s)
    return ExitCode.DONE


def _doctor(args: argparse.Namespace) -> int:
    loaded = settings.load(settings.CommonSettings, vars(args), os.environ)
    from recorder.doctor import doctor  # noqa: PLC0415 - heavy

    return doctor(loaded.data_dir, repair_damage=args.repair)


def _status(args: argparse.Namespace) -> int:
    loaded = settings.load(StatusSettings, vars(args), os.environ)
    from recorder.status.run import status  # noqa: PLC0415 - heavy

    return status(loaded, once=args.once, as_json=args.json)


def _simulate(args: argparse.Namespace) -> int:
    options = simulator_options.Options.from_args(args)
    import asyncio  # noqa: PLC0415 - heavy

    from recorder.runtime import signals  # noqa: PLC0415
    from recorder.simulator.run import run  # noqa: PLC0415

    async def simulate() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        signals.on_stop(lambda: loop.call_soon_threadsafe(stop.set))
        await run(options, stop=stop, ready=_announce)

    asyncio.run(simulate())
    return ExitCode.DONE


def _announce(url: str) -> None:
    sys.stdout.write(f"listening on {url}\n")
    sys.stdout.flush()
