-- The gaps of every market. A few rows a day: a plain table on every kind of server.

CREATE TABLE IF NOT EXISTS data_gaps (
    "timestamp"   timestamptz,
    instrument    text,
    received_at   timestamptz,
    gap_id        text,
    state_no      integer,
    stream        text,
    cause         text,
    status        text,
    started_at    timestamptz,
    ended_at      timestamptz,
    first_missing bigint,
    last_missing  bigint,
    detail        text,
    segment       integer
);

CREATE INDEX IF NOT EXISTS data_gaps_gap_id_state_no ON data_gaps (gap_id, state_no DESC);

-- One row a gap, in its newest state.
CREATE OR REPLACE VIEW gaps AS
SELECT DISTINCT ON (gap_id)
    "timestamp", instrument, received_at, gap_id, state_no, stream, cause, status, started_at, ended_at,
    first_missing, last_missing, detail
FROM data_gaps
ORDER BY gap_id, state_no DESC, received_at DESC;
