"""The loader's settings."""

from typing import Annotated, Literal

from msgspec import Meta

from recorder.runtime.settings import ArchiveUrl, Port, ServiceSettings


class LoaderSettings(ServiceSettings, frozen=True, kw_only=True):
    """What `python -m loader` can be told."""

    database_url: Annotated[
        str, Meta(description="the PostgreSQL to load into; unset: an embedded one in DATA_DIR/postgres")
    ] = ""
    loader_connections: Annotated[
        int,
        Meta(
            ge=1, le=16, description="connections that load a backlog side by side; no more than the server's cores"
        ),
    ] = 2
    direct_compress: Annotated[
        bool, Meta(description="load a backlog directly into TimescaleDB's columnstore, where it can do that")
    ] = True
    retention_days: Annotated[
        Annotated[float, Meta(ge=3, le=36_500)] | None,
        Meta(description="drop rows from TimescaleDB that are older; unset: as the database has it"),
    ] = None
    loader_metrics_port: Annotated[Port | None, Meta(description="their port, or off")] = None
    archive_url: ArchiveUrl = ""
    archive_compression: Annotated[
        Literal["zstd", "snappy"], Meta(description="compression of the Parquet archive")
    ] = "zstd"
