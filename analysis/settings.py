"""The analysis's settings."""

from recorder.runtime.data_dir import DataDir
from recorder.runtime.settings import ArchiveUrl, CommonSettings
from recorder.segments.archive_url import Bucket, place


class AnalysisSettings(CommonSettings, frozen=True, kw_only=True):
    """What `python -m analysis` and the notebook can be told."""

    archive_url: ArchiveUrl = ""


def archive_of(settings: AnalysisSettings) -> str | None:
    """Return where the archive lies, as `analysis.open` takes it; None for the one in DATA_DIR.

    That is the one for `off`, too: it says that none is made, not that what was archived before is gone.

    Raises:
        SettingsError: ARCHIVE_URL is wrong.
    """
    if not settings.archive_url:
        return None
    where = place(settings.archive_url, DataDir(settings.data_dir))
    return where.url if isinstance(where, Bucket) else str(where.root)
