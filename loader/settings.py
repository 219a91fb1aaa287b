"""The loader's settings."""

from typing import Annotated, Literal

from msgspec import Meta

from recorder.runtime.settings import CommonSettings, Port


class LoaderSettings(CommonSettings, frozen=True, kw_only=True):
    """What `python -m loader` can be told."""

    database_url: Annotated[
        str, Meta(description="the PostgreSQL to load into; unset: an embedded one in DATA_DIR/postgres")
    ] = ""
    loader_metrics_port: Annotated[Port | None, Meta(description="port of /metrics; not served yet")] = None
    archive_url: Annotated[str, Meta(description="the Parquet archive; unset: DATA_DIR/archive; not written yet")] = (
        ""
    )
    archive_compression: Annotated[
        Literal["zstd", "snappy"], Meta(description="compression of the Parquet archive; not written yet")
    ] = "zstd"
