"""Checksums of a tape's files and the chain of its segments, to be checked anywhere, without this program.

FILE is what `sha256sum -c` reads, run in DATA_DIR. FILE.chain has a line for each segment: stream, segment_id, and
the segment_id before it, which has a line of its own.
"""

import hashlib
from pathlib import Path

from analysis.proof import broken_chain
from recorder.runtime.data_dir import DataDir
from recorder.segments import archived
from recorder.segments.archived import Damaged
from recorder.segments.layout import sealed_files, streams
from recorder.segments.reader import read_identity

_FILES = ("*/date=*/*.arrow", "archive/*/date=*/*.parquet", "archive/manifests/*/date=*/*.json")


def write(data_dir: DataDir, file: Path) -> int:
    """Write both files; return how many files of the tape they name.

    Raises:
        OSError: something cannot be read or written.
    """
    root = data_dir.root
    paths = _files(data_dir)
    file.write_text("".join(f"{_sha256(path)}  {path.relative_to(root)}\n" for path in paths))
    chain = [
        f"{stream} {segment_id} {previous or '-'}\n"
        for stream in sorted({*streams(data_dir), *archived.beside(data_dir).streams()})
        for segment_id, previous in _chain(data_dir, stream).items()
    ]
    chain_of(file).write_text("".join(chain))
    return len(paths)


def verify(data_dir: DataDir, file: Path) -> list[str]:
    """Return what is wrong with the files that a manifest names, and with its chain.

    Raises:
        OSError: the manifest cannot be read.
        ValueError: it names nothing.
    """
    wrong = []
    for sha256, name in _named(file):
        path = data_dir.root / name
        if not path.is_file():
            wrong.append(f"{name}: missing")
        elif _sha256(path) != sha256:
            wrong.append(f"{name}: changed")
    by_stream: dict[str, dict[str, str]] = {}
    for line in chain_of(file).read_text().splitlines():
        stream, segment_id, previous = line.split(" ")
        by_stream.setdefault(stream, {})[segment_id] = "" if previous == "-" else previous
    for stream, chain in by_stream.items():
        wrong += [f"{stream}: segment {lost}, before {after}: missing" for after, lost in broken_chain(chain, {})]
    return wrong


def unnamed(data_dir: DataDir, file: Path) -> int:
    """Return how many files of a tape a manifest does not name: recorded since it was written, or put there.

    Raises:
        OSError, ValueError: as `verify`.
    """
    names = {name for _, name in _named(file)}
    return sum(str(path.relative_to(data_dir.root)) not in names for path in _files(data_dir))


def chain_of(file: Path) -> Path:
    """Return where the chain of a manifest is written."""
    return file.with_name(file.name + ".chain")


def _files(data_dir: DataDir) -> list[Path]:
    return sorted(path for pattern in _FILES for path in data_dir.root.glob(pattern))


def _named(file: Path) -> list[tuple[str, str]]:
    """Read the lines of a manifest: checksum and name."""
    lines = [line.partition("  ") for line in file.read_text().splitlines()]
    if not lines:
        raise ValueError(f"{file} names no file")
    return [(sha256, name) for sha256, _, name in lines]


def _chain(data_dir: DataDir, stream: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for manifest in archived.beside(data_dir).manifests(stream):
        if not isinstance(manifest, Damaged):
            found |= {segment.segment_id: segment.previous for segment in manifest.segments}
    for path in sealed_files(data_dir, stream):
        if (identity := read_identity(path)) is not None:
            found[identity.segment_id] = identity.previous
            if identity.salvages:  # it stands where the damaged one stood, whom others name
                found.setdefault(identity.salvages, identity.previous)
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
