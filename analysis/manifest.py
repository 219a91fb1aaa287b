"""Checksums of a tape's files and the chain of its segments, to be checked anywhere, without this program.

FILE is what `sha256sum -c` reads, run in DATA_DIR; files of an archive elsewhere have their full paths, and those of
one in S3 are not in it. FILE.chain has a line for each segment, on the tape or in the archive: stream, segment_id,
and the segment_id before it, which has a line of its own.
"""

import hashlib
from pathlib import Path

from analysis.errors import NoTape
from analysis.proof import broken_chain
from analysis.tape import Tape
from recorder.runtime.data_dir import DataDir
from recorder.segments.archived import Damaged
from recorder.segments.encode import Identity
from recorder.segments.layout import sealed_files
from recorder.segments.manifest import ArchivedSegment
from recorder.segments.reader import read_identity

_SEGMENTS = "*/date=*/*.arrow"
_ARCHIVED = ("*/date=*/*.parquet", "manifests/*/date=*/*.json")


def write(tape: Tape, file: Path) -> int:
    """Write both files; return how many files of the tape they name.

    Raises:
        NoTape: there is an archive only.
        OSError: something cannot be read or written.
    """
    data_dir = _data_dir(tape)
    named = _files(tape)
    file.write_text("".join(f"{_sha256(data_dir.root / name)}  {name}\n" for name in named))
    chain = [
        f"{stream} {segment_id} {previous or '-'}\n"
        for stream in tape.streams()
        for segment_id, previous in _chain(tape, data_dir, stream).items()
    ]
    chain_of(file).write_text("".join(chain))
    return len(named)


def verify(tape: Tape, file: Path) -> list[str]:
    """Return what is wrong with the files that a manifest names, and with its chain.

    Raises:
        NoTape: there is an archive only.
        OSError: the manifest cannot be read.
        ValueError: it names nothing, or its chain is none.
    """
    root = _data_dir(tape).root
    wrong = []
    for sha256, name in _named(file):
        path = root / name
        if not path.is_file():
            wrong.append(f"{name}: missing")
        elif _sha256(path) != sha256:
            wrong.append(f"{name}: changed")
    by_stream: dict[str, dict[str, str]] = {}
    for line in chain_of(file).read_text().splitlines():
        match line.split(" "):
            case [stream, segment_id, previous]:
                pass
            case _:
                raise ValueError(f"{chain_of(file)} is not a chain of segments: {line[:60]!r}")
        by_stream.setdefault(stream, {})[segment_id] = "" if previous == "-" else previous
    for stream, chain in by_stream.items():
        wrong += [f"{stream}: segment {lost}, before {after}: missing" for after, lost in broken_chain(chain, {})]
    return wrong


def unnamed(tape: Tape, file: Path) -> int:
    """Return how many files of a tape a manifest does not name: recorded since it was written, or put there.

    Raises:
        NoTape, OSError, ValueError: as `verify`.
    """
    return len(set(_files(tape)) - {name for _, name in _named(file)})


def chain_of(file: Path) -> Path:
    """Return where the chain of a manifest is written."""
    return file.with_name(file.name + ".chain")


def _data_dir(tape: Tape) -> DataDir:
    if tape.data_dir is None:
        raise NoTape("checksums are of files in DATA_DIR, and here is an archive alone", remedy="set DATA_DIR")
    return tape.data_dir


def _files(tape: Tape) -> list[str]:
    """Return the names of what is hashed: by their paths in DATA_DIR, or in full where they lie elsewhere."""
    root = _data_dir(tape).root
    found = list(root.glob(_SEGMENTS))
    if tape.archive and tape.archive.is_local:
        found += [path for pattern in _ARCHIVED for path in Path(tape.archive.root).glob(pattern)]
    return sorted(str(path.relative_to(root) if path.is_relative_to(root) else path) for path in found)


def _named(file: Path) -> list[tuple[str, str]]:
    """Read the lines of a manifest: checksum and name."""
    lines = [line.partition("  ") for line in file.read_text().splitlines()]
    if not lines:
        raise ValueError(f"{file} names no file")
    return [(sha256, name) for sha256, _, name in lines]


def _chain(tape: Tape, data_dir: DataDir, stream: str) -> dict[str, str]:
    known: list[ArchivedSegment | Identity] = []
    for manifest in tape.archive.manifests(stream) if tape.archive else ():
        if not isinstance(manifest, Damaged):
            known += manifest.segments
    known += [identity for path in sealed_files(data_dir, stream) if (identity := read_identity(path)) is not None]
    found = {one.segment_id: one.previous for one in known}
    for one in known:
        if one.salvages:  # it stands where the damaged one stood, whom others name
            found.setdefault(one.salvages, one.previous)
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
