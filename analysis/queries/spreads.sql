-- The spread of each option by minute: least, mean, most, in its currency and in percent of the mid price.
SELECT
    instrument,
    date_trunc('minute', timestamp) AS minute,
    min(ask_price - bid_price) AS least,
    avg(ask_price - bid_price) AS mean,
    max(ask_price - bid_price) AS most,
    avg(200 * (ask_price - bid_price) / nullif(ask_price + bid_price, 0)) AS mean_percent,
    count(*) AS quotes
FROM quotes
WHERE bid_price IS NOT NULL AND ask_price IS NOT NULL
GROUP BY instrument, date_trunc('minute', timestamp)
ORDER BY instrument, minute
