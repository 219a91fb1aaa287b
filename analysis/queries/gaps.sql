-- What was missed: each gap in its newest state.
SELECT
    timestamp, instrument, received_at, gap_id, state_no, stream, cause, status, started_at, ended_at, first_missing,
    last_missing, detail
FROM (
    SELECT *, row_number() OVER (PARTITION BY gap_id ORDER BY state_no DESC) AS newest_first FROM data_gaps
) AS states
WHERE newest_first = 1
