"""`analysis completeness` as a program: what it prints, and its exit code."""

import json
import sys
from pathlib import Path

import duckdb

from analysis import completeness as checking
from analysis import findings
from analysis import manifest as checksums
from analysis.errors import NoTape
from analysis.span import Span
from analysis.tape import Tape
from recorder.runtime.exit_codes import ExitCode


def completeness(
    root: str, span: Span, *, archive: str | None = None, least: float | None, as_json: bool, manifest: Path | None
) -> int:
    """Check a tape, print what was found, and write a manifest where one is asked for."""
    try:
        tape = Tape.at(root, archive)
        found = checking.check(tape, span)
        if manifest is not None:
            count = checksums.write(tape, manifest)
            _say_what_is_not_hashed(tape)
            sys.stderr.write(f"{count:,} files in {manifest}; check them in {root}: sha256sum -c FILE\n")
    except (OSError, duckdb.Error, NoTape) as exc:
        return _not_checked(str(exc))
    if as_json:
        sys.stdout.write(json.dumps(findings.as_json(found, least)) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in findings.as_lines(found, least))
    return {True: ExitCode.DONE, False: ExitCode.FAILED, None: ExitCode.NOT_CHECKED}[found.verdict(least)]


def verify(root: str, file: Path, *, archive: str | None = None) -> int:
    """Check the files that a manifest names."""
    try:
        tape = Tape.at(root, archive)
        wrong = checksums.verify(tape, file)
        others = checksums.unnamed(tape, file)
    except (OSError, ValueError, NoTape) as exc:
        return _not_checked(str(exc))
    _say_what_is_not_hashed(tape)
    sys.stdout.writelines(f"{line}\n" for line in wrong)
    if others:
        sys.stdout.write(f"{others:,} files are not named in {file}: they came later\n")
    sys.stdout.write("all as it was\n" if not wrong else f"{len(wrong)} not as it was\n")
    return ExitCode.FAILED if wrong else ExitCode.DONE


def _say_what_is_not_hashed(tape: Tape) -> None:
    if tape.archive and not tape.archive.is_local:
        sys.stderr.write(
            f"the files of the archive s3://{tape.archive.root} are not hashed; its segments are in the chain, as its"
            " manifests tell of them\n"
        )


def _not_checked(why: str) -> int:
    sys.stderr.write(f"error: {' '.join(why.split())}\n")
    return ExitCode.NOT_CHECKED
