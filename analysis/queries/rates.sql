-- Rows a second of each stream, by minute of their receipt.
SELECT stream, date_trunc('minute', received_at) AS minute, count(*) / 60 AS rows_per_s
FROM (
    SELECT 'quotes' AS stream, received_at FROM quotes
    UNION ALL
    SELECT 'trades' AS stream, received_at FROM trades
    UNION ALL
    SELECT 'tickers' AS stream, received_at FROM tickers
) AS received
GROUP BY stream, date_trunc('minute', received_at)
ORDER BY stream, minute
