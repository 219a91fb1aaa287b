-- How old the newest quote of each option is, beside the newest of all, in seconds: the oldest first.
SELECT
    instrument,
    newest,
    (max(unix_micros(newest)) OVER () - unix_micros(newest)) / 1000000 AS age_s,
    quotes
FROM (SELECT instrument, max(received_at) AS newest, count(*) AS quotes FROM quotes GROUP BY instrument) AS by_instrument
ORDER BY age_s DESC, instrument
