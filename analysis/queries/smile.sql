-- The smile at the end of the range (sql smile --to MOMENT): the newest ticker of each option that had not expired by then.
SELECT
    options.expiration_timestamp AS expiry,
    options.strike,
    options.option_type,
    newest.instrument,
    newest.timestamp,
    mark_iv, bid_iv, ask_iv, delta, open_interest, underlying_price,
    options.price_index
FROM (
    SELECT *, max(timestamp) OVER () AS newest_of_all
    FROM (
        SELECT
            *, row_number() OVER (PARTITION BY instrument ORDER BY timestamp DESC, received_at DESC) AS newest_first
        FROM tickers
    ) AS by_age
    WHERE newest_first = 1
) AS newest
JOIN options ON options.instrument = newest.instrument
WHERE options.expiration_timestamp IS NULL OR options.expiration_timestamp > newest_of_all
ORDER BY expiry, strike, option_type, newest.instrument
