-- How old the newest quote of each option is, beside the newest of all, in seconds: the oldest first.
SELECT
    instrument,
    max(received_at) AS newest,
    (max(max(unix_micros(received_at))) OVER () - max(unix_micros(received_at))) / 1000000 AS age_s,
    count(*) AS quotes
FROM quotes
GROUP BY instrument
ORDER BY age_s DESC, instrument
