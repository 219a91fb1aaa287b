-- The fifty options with the widest spread, in percent of the mid price: its median, and of how many quotes.
SELECT
    instrument,
    median(200 * (ask_price - bid_price) / nullif(ask_price + bid_price, 0)) AS median_percent,
    median(ask_price - bid_price) AS median_spread,
    count(*) AS quotes
FROM quotes
WHERE bid_price IS NOT NULL AND ask_price IS NOT NULL
GROUP BY instrument
ORDER BY median_percent DESC, instrument
LIMIT 50
