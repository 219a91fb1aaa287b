"""Checks a segment's bytes: which rows a commit vouches for, and what is damaged. Pure; never raises on damage.

Nothing is decoded before the checksum over it was found right: Arrow's reader trusts the lengths it reads, and
of random single-bit flips 80 to 91 % come back from it as wrong data without an error.
"""

import re
import zlib
from dataclasses import dataclass, field, replace

import pyarrow as pa

from recorder.segments.encode import FORMAT_VERSION, MAGIC, Identity
from recorder.segments.footer import Block, Malformed, read_footer, read_schema
from recorder.segments.header import Refused, find_header, header_in_footer, identity_of, newer_version
from recorder.segments.messages import (
    ARROW_ERRORS,
    ONE_THREAD,
    Commit,
    commit_at,
    exact,
    find_commits,
    first_line,
    footer_in,
    message_at,
)

# Of commits that state the same number only so many are tried as what came before a group. There is one, and in a
# file that was put together by hand a few; bytes that were made to keep a reader busy may have thousands.
_TRIED = 8


@dataclass(frozen=True)
class Group:
    """One flush whose commit agrees: its place in the file and its rows."""

    number: int
    offset_bytes: int
    end_bytes: int
    batch: pa.RecordBatch


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong, and where."""

    offset_bytes: int
    what: str
    # Nothing follows that was ever committed: so ends a file that is being written, or whose writer died.
    torn: bool = False

    def __str__(self) -> str:
        return f"at byte {self.offset_bytes}: {self.what}"


@dataclass
class Checked:
    """What a segment's bytes hold.

    `groups` are all that a commit vouches for, in the order of their numbers, also those after a damaged one;
    `whole_bytes` is the end of the last good group before any damage (where a live file may still be growing).
    `sealed` says that the file ends in end-of-stream and a footer, through which a stock reader sees just these.
    """

    schema: pa.Schema | None = None
    identity: Identity | None = None
    # Whether a checksum, or a second copy, says that the identity is what was written: not so in a file whose
    # first group is damaged and that has no footer. Who gives the rows another name must know whose they are.
    identity_proven: bool = False
    groups: list[Group] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    header_bytes: int = 0
    whole_bytes: int = 0
    size_bytes: int = 0
    crc32: str = ""  # what the last good commit states; "" if there is none
    sealed: bool = False
    newer_version: str = ""  # set if the format is newer than this program knows

    @property
    def rows(self) -> int:
        """How many rows a commit vouches for."""
        return sum(group.batch.num_rows for group in self.groups)

    @property
    def table(self) -> pa.Table:
        """The vouched rows as one table. Only with a schema."""
        return pa.Table.from_batches([group.batch for group in self.groups], schema=self.schema)


def check(data: bytes | memoryview | pa.Buffer) -> Checked:
    """Check the bytes of one segment file, sealed, live, or torn.

    A live file's normal torn tail is a Damage too: whoever reads a live file passes over it.
    """
    buffer = data if isinstance(data, pa.Buffer) else pa.py_buffer(data)
    checked = Checked(size_bytes=buffer.size)
    walk = _Walk(buffer, checked)
    if walk.read_header():
        walk.read_groups()
        walk.read_rest()
    return checked


class _Walk:
    """One way through the bytes of a segment: the groups one after another, and from the first damage on a search."""

    def __init__(self, buffer: pa.Buffer, checked: Checked) -> None:
        self.buffer = buffer
        self.view = memoryview(buffer)
        self.checked = checked
        self.schema_message = b""
        self.header_is_whole = True
        self.crc = 0  # of the bytes up to `at`, if they are as they were written
        self.at = 0  # the end of the header or of the last good group, before any damage
        self.rows = 0  # up to there

    def damaged(self, offset_bytes: int, what: str, *, torn: bool = False) -> None:
        self.checked.damage.append(Damage(offset_bytes, what, torn))

    # The header

    def read_header(self) -> bool:
        """Find out what segment this is; False if nothing tells."""
        if bytes(self.view[: len(MAGIC)]) != MAGIC:
            self.damaged(
                0, "not a segment: the file does not begin with the Arrow file magic", torn=not self.has_commits()
            )
        try:
            message, end = message_at(self.buffer, len(MAGIC))
            if message.type != "schema":
                raise Refused("no schema")
            schema = pa.ipc.read_schema(message)
        except (*ARROW_ERRORS, Refused) as exc:
            return self.restore(None, f"no schema ({first_line(exc)})")
        try:
            identity = identity_of(schema)
        except (*ARROW_ERRORS, Refused) as exc:
            return self.restore(schema, first_line(exc))
        self.begin(schema, identity, bytes(self.view[len(MAGIC) : end]))
        return True

    def begin(self, schema: pa.Schema, identity: Identity, schema_message: bytes) -> None:
        self.checked.schema, self.checked.identity, self.schema_message = schema, identity, schema_message
        self.crc = zlib.crc32(MAGIC + schema_message)
        self.at = self.checked.header_bytes = self.checked.whole_bytes = len(MAGIC) + len(schema_message)

    def restore(self, schema: pa.Schema | None, what: str) -> bool:
        """Begin with what the header must have been, if the first group's checksum proves it."""
        header = find_header(self.buffer, schema)
        if header is not None:
            self.damaged(len(MAGIC), f"the schema is not what was written ({what}); the first commit proves what was")
            self.begin(*header)
            return True
        newer = newer_version(schema)
        if newer:
            # Before any checksum was found right a version is only a claim, but so is "newer": leave it be.
            self.checked.newer_version = newer
            what = f"format version {newer} is not known to this program, which knows {FORMAT_VERSION}"
        elif (header := header_in_footer(self.buffer)) is not None:
            self.damaged(len(MAGIC), f"{what}; the footer says what was")
            self.begin(*header)
            self.header_is_whole = False
            return True
        elif self.checked.damage:
            return False  # no magic and no schema: one sentence is enough
        self.damaged(len(MAGIC), what, torn=not newer and not self.has_commits())
        return False

    def has_commits(self) -> bool:
        """Whether there are bytes that each commit has, in a file whose beginning tells nothing."""
        return re.search(rb"crc32", self.view) is not None

    # Groups

    def read_groups(self) -> None:
        """Take groups one after another, as long as each agrees."""
        last = None
        while (commit := self.next_group()) is not None:
            last = commit
        if last is not None:
            self.checked.identity_proven = True
            self.take_back(last)

    def next_group(self) -> Commit | None:
        """Take the next group, and return its commit; None if none agrees."""
        if self.at == len(self.view) or footer_in(self.view[self.at :]) is not None:
            return None
        try:
            _, rows_end = message_at(self.buffer, self.at)
        except ARROW_ERRORS:
            return None
        commit = commit_at(self.buffer, rows_end, self.schema_message)
        if commit is None or not self.agrees(commit, len(self.checked.groups)):
            return None
        crc = zlib.crc32(self.view[self.at : rows_end], self.crc)
        if f"{crc:08x}" != commit.crc32 or not self.accept(commit, self.at):
            return None
        self.pass_commit(commit)
        self.rows += self.checked.groups[-1].batch.num_rows
        if commit.rows not in (None, self.rows):
            self.damaged(commit.offset_bytes, f"commit {commit.number} states {commit.rows} rows, not {self.rows}")
        return commit

    def pass_commit(self, commit: Commit) -> None:
        self.crc = zlib.crc32(self.view[commit.offset_bytes : commit.end_bytes], int(commit.crc32, 16))
        self.at = commit.end_bytes
        if not self.checked.damage:
            self.checked.whole_bytes = self.at

    def take_back(self, last: Commit) -> None:
        """Give back what the last commit's own lengths took in of what follows it: no later checksum is over them."""
        commit = exact(self.buffer, last)
        if commit != last:
            self.checked.groups[-1] = replace(self.checked.groups[-1], end_bytes=commit.end_bytes)
            self.pass_commit(commit)

    def agrees(self, commit: Commit, number: int) -> bool:
        return commit.number == number and not self.is_foreign(commit)

    def is_foreign(self, commit: Commit) -> bool:
        assert self.checked.identity is not None
        return bool(commit.segment) and commit.segment != self.checked.identity.segment_id

    def accept(self, commit: Commit, offset_bytes: int) -> bool:
        """Take the rows before a commit, whose checksum was found right."""
        try:
            message, end = message_at(self.buffer, offset_bytes)
            if end != commit.offset_bytes:
                raise Refused("more than one message")
            if message.type != "record batch":
                raise Refused(f"a {message.type} message")
            stream = self.schema_message + self.view[offset_bytes:end].tobytes()
            batch = pa.ipc.open_stream(pa.py_buffer(stream), options=ONE_THREAD).read_next_batch()
            batch.validate(full=True)
        except (*ARROW_ERRORS, Refused) as exc:
            self.damaged(
                offset_bytes, f"commit {commit.number} vouches for rows that cannot be read ({first_line(exc)})"
            )
            return False
        self.checked.groups.append(Group(commit.number, offset_bytes, commit.end_bytes, batch))
        self.checked.crc32 = commit.crc32
        return True

    # What comes after them

    def read_rest(self) -> None:
        """After the last group that agrees: nothing (live), the end of a sealed file, or damage."""
        rest = self.view[self.at :]
        if not rest:
            return
        footer = footer_in(rest)
        if footer is None:
            self.go_on()
            return
        problem = self.compare_footer(footer)
        if problem:
            self.damaged(self.at, problem)
        elif not self.checked.damage:
            self.checked.sealed = True

    def compare_footer(self, footer: bytes) -> str:
        """Compare the footer with what the file holds, then read the file as a stock reader does."""
        try:
            told = read_footer(footer)
            if (told.version, told.schema) != read_schema(self.schema_message[8:]):
                return "the footer names another schema than the file begins with"
            if told.batches != tuple(self.blocks()) or told.dictionaries:
                return f"the footer names other batches than those of the file's {len(self.checked.groups)} groups"
            file = pa.ipc.open_file(self.buffer, options=ONE_THREAD)
            if not file.schema.equals(self.checked.schema, check_metadata=True):
                return "the footer names another schema than the file begins with"
            if file.num_record_batches != 2 * len(self.checked.groups):
                return "a stock reader sees another number of batches"
            for index, group in enumerate(self.checked.groups):
                if not _same_buffers(file.get_batch(2 * index), group.batch):
                    return f"the footer leads to other rows than group {group.number}"
                commit = file.get_batch_with_custom_metadata(2 * index + 1)
                if commit.batch.num_rows or int(commit.custom_metadata[b"commit"]) != group.number:
                    return f"the footer leads to another commit than {group.number}"
        except Malformed as exc:
            return f"the footer is damaged ({exc})"
        except ARROW_ERRORS as exc:
            return f"the footer cannot be read ({first_line(exc)})"
        return ""

    def blocks(self) -> list[Block]:
        """Return where the messages of the good groups lie, as a footer should tell it."""
        found = []
        for group in self.checked.groups:
            at = group.offset_bytes
            while at < group.end_bytes:
                message, end = message_at(self.buffer, at)
                body_bytes = message.body.size if message.body else 0
                found.append(Block(at, end - at - body_bytes, body_bytes))
                at = end
        return found

    # Past damage

    def go_on(self) -> None:
        """Search what follows damage for groups that are good, and name what is not.

        A group is good if its bytes, appended to those of the commit with the number before, wherever that lies, give
        what its own commit states.
        """
        commits = list(find_commits(self.buffer, self.at, self.schema_message))
        if not commits:
            self.damaged(self.at, self.say_why(), torn=True)
            return
        if not self.checked.groups and self.misnamed():
            return
        ends = [self.at, *(commit.end_bytes for commit in commits)]
        before = self.states(commits)
        taken = set(range(len(self.checked.groups)))
        expected = len(taken)
        for start, commit in zip(ends, commits, strict=False):
            if self.is_foreign(commit):
                self.damaged(start, f"a group of another segment, {commit.segment[:40]}")
                continue
            if commit.number in taken:
                self.damaged(start, f"commit {commit.number} once more")
                continue
            good = self.follows(commit, start, before)
            if commit.number != expected:
                self.damaged(start, f"commit {commit.number} where {expected} belongs")
            elif not good:
                self.damaged(start, f"the checksum of commit {commit.number} does not fit")
            if good and self.accept(commit, start):
                taken.add(commit.number)
                self.checked.identity_proven |= bool(commit.segment)
            expected = commit.number + 1
        self.checked.groups.sort(key=lambda group: group.number)
        last = max((commit for commit in commits if commit.number in taken), default=None, key=lambda one: one.number)
        self.checked.crc32 = last.crc32 if last else self.checked.crc32
        self.read_tail(ends[-1])

    def misnamed(self) -> bool:
        """Start anew if the first commit proves that the header is not what was written; False if it does not."""
        assert self.checked.schema is not None
        header = find_header(self.buffer, self.checked.schema, self.schema_message)
        if header is None:
            footer = header_in_footer(self.buffer)
            self.checked.identity_proven = (
                self.header_is_whole and footer is not None and footer[2] == self.schema_message
            )
            return False
        self.damaged(len(MAGIC), "the schema is not what was written; the first commit proves what was")
        self.begin(*header)
        self.read_groups()
        self.read_rest()
        return True

    def states(self, commits: list[Commit]) -> dict[int, list[int]]:
        """Return by number the checksum of all bytes up to a commit's end, if what it states is true."""
        found = {len(self.checked.groups) - 1: [self.crc]}
        for commit in commits:
            state = zlib.crc32(self.view[commit.offset_bytes : commit.end_bytes], int(commit.crc32, 16))
            same = found.setdefault(commit.number, [])
            if not self.is_foreign(commit) and state not in same and len(same) < _TRIED:
                same.append(state)
        return found

    def follows(self, commit: Commit, start: int, before: dict[int, list[int]]) -> bool:
        rows = self.view[start : commit.offset_bytes]
        return any(f"{zlib.crc32(rows, state):08x}" == commit.crc32 for state in before.get(commit.number - 1, ()))

    def say_why(self) -> str:
        """Say why no group follows: an ordinary end of a file that is being written, or of one that was cut."""
        rest_bytes = len(self.view) - self.at
        try:
            _, end = message_at(self.buffer, self.at)
        except EOFError:
            return f"{rest_bytes} bytes after the last commit that are no footer"
        except ARROW_ERRORS as exc:
            return f"{rest_bytes} bytes after the last commit: no whole Arrow message ({first_line(exc)})"
        if end == len(self.view):
            return "rows without a commit"
        return f"{rest_bytes} bytes after the last commit, and no commit where one belongs"

    def read_tail(self, end: int) -> None:
        """After damage the end of a sealed file is told by its form alone: its footer leads to what is damaged."""
        rest = self.view[end:]
        if rest and footer_in(rest) is None:
            self.damaged(end, f"{len(rest)} bytes after the last commit that are no footer")


def _same_buffers(one: pa.RecordBatch, other: pa.RecordBatch) -> bool:
    """Compare two batches by their bytes: unlike `equals`, this holds for NaN."""
    return bool(
        one.num_rows == other.num_rows
        and one.schema.equals(other.schema)
        and all(
            len(a.buffers()) == len(b.buffers())
            and all((x is None and y is None) or (x is not None and y is not None and x.equals(y))
                    for x, y in zip(a.buffers(), b.buffers(), strict=True))
            for a, b in zip(one.columns, other.columns, strict=True)
        )
    )  # fmt: skip
