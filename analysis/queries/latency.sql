-- From the exchange's clock to ours, by minute, in milliseconds: median, 95th and 99th percentile, and the most.
SELECT
    date_trunc('minute', received_at) AS minute,
    percentile((unix_micros(received_at) - unix_micros(timestamp)) / 1000, 0.5) AS p50_ms,
    percentile((unix_micros(received_at) - unix_micros(timestamp)) / 1000, 0.95) AS p95_ms,
    percentile((unix_micros(received_at) - unix_micros(timestamp)) / 1000, 0.99) AS p99_ms,
    max((unix_micros(received_at) - unix_micros(timestamp)) / 1000) AS most_ms
FROM quotes
GROUP BY date_trunc('minute', received_at)
ORDER BY minute
