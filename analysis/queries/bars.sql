-- The mid price of each option in bars of a minute: first, highest, lowest, last, and of how many quotes.
SELECT
    instrument,
    date_trunc('minute', timestamp) AS minute,
    min_by((bid_price + ask_price) / 2, change_id) AS open,
    max((bid_price + ask_price) / 2) AS high,
    min((bid_price + ask_price) / 2) AS low,
    max_by((bid_price + ask_price) / 2, change_id) AS close,
    count(*) AS quotes
FROM quotes
WHERE bid_price IS NOT NULL AND ask_price IS NOT NULL
GROUP BY instrument, date_trunc('minute', timestamp)
ORDER BY instrument, minute
