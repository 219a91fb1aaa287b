-- The smile at the end of the range (sql smile --to MOMENT): the newest ticker of each option, by expiry and strike.
SELECT
    options.expiration_timestamp AS expiry,
    options.strike,
    options.option_type,
    newest.instrument,
    newest.timestamp,
    mark_iv, bid_iv, ask_iv, delta, open_interest, underlying_price
FROM (
    SELECT *, row_number() OVER (PARTITION BY instrument ORDER BY timestamp DESC, received_at DESC) AS newest_first
    FROM tickers
) AS newest
JOIN options ON options.instrument = newest.instrument
WHERE newest_first = 1
ORDER BY expiry, strike, option_type
