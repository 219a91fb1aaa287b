-- How far the mid price lies from the exchange's mark price, by option: mean and largest difference, in percent of mark.
SELECT
    instrument,
    avg(100 * ((bid_price + ask_price) / 2 - mark_price) / mark_price) AS mean_percent,
    max(abs(100 * ((bid_price + ask_price) / 2 - mark_price) / mark_price)) AS largest_percent,
    max_by((bid_price + ask_price) / 2, change_id) AS last_mid,
    max_by(mark_price, change_id) AS last_mark,
    count(*) AS quotes
FROM quotes
WHERE bid_price IS NOT NULL AND ask_price IS NOT NULL AND mark_price > 0
GROUP BY instrument
ORDER BY instrument
