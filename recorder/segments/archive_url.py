"""Where ARCHIVE_URL points to. Pure."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from recorder.runtime.data_dir import DataDir
from recorder.runtime.errors import SettingsError
from recorder.runtime.redact import redact


@dataclass(frozen=True)
class Folder:
    """An archive in a local folder."""

    root: Path


@dataclass(frozen=True)
class Bucket:
    """An archive in an S3 bucket."""

    bucket: str
    prefix: str  # without slashes around it; may be empty

    @property
    def url(self) -> str:
        """Return it as a URL."""
        return f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def place(archive_url: str, data_dir: DataDir) -> Folder | Bucket:
    """Return where an archive lies; an empty URL is DATA_DIR/archive.

    Raises:
        SettingsError: it is nothing that an archive can lie in. Told without what may be a secret.
    """
    if not archive_url:
        return Folder(data_dir.archive)
    if "://" not in archive_url:
        return _folder(Path(archive_url), archive_url, data_dir)
    try:
        parts = urlsplit(archive_url)
    except ValueError:  # its words repeat a part of it
        raise _wrong(archive_url, "expected a folder, file:///path, s3://bucket/prefix, or off") from None
    if parts.username or parts.password or "@" in parts.netloc:
        raise _wrong(
            archive_url,
            "no user or secret belongs here: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment",
        )
    if parts.query or parts.fragment:
        raise _wrong(archive_url, "expected nothing after ? or #")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise _wrong(archive_url, "expected file:///an/absolute/path")
        return _folder(Path(unquote(parts.path)), archive_url, data_dir)
    if parts.scheme == "s3":
        if not parts.netloc or ":" in parts.netloc:
            raise _wrong(archive_url, "expected s3://bucket/prefix; an endpoint is told by AWS_ENDPOINT")
        return Bucket(parts.netloc, parts.path.strip("/"))
    raise _wrong(archive_url, "expected a folder, file:///path, s3://bucket/prefix, or off")


def _folder(root: Path, shown: str, data_dir: DataDir) -> Folder:
    tape, here = data_dir.root.resolve(), root.resolve()
    if here == tape or (tape in here.parents and here.relative_to(tape).parts[0] != data_dir.archive.name):
        raise _wrong(
            shown, f"is a folder of the tape itself; choose {data_dir.archive}, or one outside {data_dir.root}"
        )
    return Folder(root)


def _wrong(shown: str, rule: str) -> SettingsError:
    return SettingsError([f"ARCHIVE_URL={redact(shown)}: {rule}"])
