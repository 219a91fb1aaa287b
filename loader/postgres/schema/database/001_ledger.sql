-- What of the tape is in this database. A segment is known by its id, whatever its file is called.

CREATE TABLE IF NOT EXISTS loaded_segments (
    segment_id        uuid PRIMARY KEY,
    segment           serial NOT NULL UNIQUE,  -- what the column "segment" of the stream tables means
    stream            text NOT NULL,
    recorder          text NOT NULL,
    name              text NOT NULL,           -- the file, below DATA_DIR, as it was when it was loaded
    rows              bigint NOT NULL,
    first_received_at timestamptz,             -- null where there are no rows
    last_received_at  timestamptz,
    crc32             text NOT NULL,           -- what the segment's last commit states
    loaded_at         timestamptz NOT NULL DEFAULT now(),
    software          text NOT NULL,
    salvages          uuid,                    -- the damaged segment whose good rows these are
    size_bytes        bigint NOT NULL,         -- with name and mtime: known without opening the file
    mtime             timestamptz NOT NULL
);

CREATE INDEX IF NOT EXISTS loaded_segments_name ON loaded_segments (name);
CREATE INDEX IF NOT EXISTS loaded_segments_salvages ON loaded_segments (salvages) WHERE salvages IS NOT NULL;

-- Segments whose rows came into this database under the id of the damaged segment that they salvage. Kept, for a
-- second salvage may name the first one.
CREATE TABLE IF NOT EXISTS salvaged_segments (
    segment_id uuid PRIMARY KEY,
    salvages   uuid NOT NULL,
    name       text NOT NULL,
    size_bytes bigint NOT NULL,
    mtime      timestamptz NOT NULL,
    noted_at   timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX IF NOT EXISTS salvaged_segments_name ON salvaged_segments (name);

-- Files among the sealed segments that could not be loaded, each with the newest reason. A row goes when its file
-- was loaded after all.
CREATE TABLE IF NOT EXISTS refused_segments (
    name       text PRIMARY KEY,  -- the file, below DATA_DIR
    reason     text NOT NULL,
    size_bytes bigint NOT NULL,
    mtime      timestamptz NOT NULL,
    segment_id uuid,              -- as far as the file can be believed
    refused_at timestamptz NOT NULL DEFAULT now(),
    software   text NOT NULL
);
