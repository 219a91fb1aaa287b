-- The fifty options with the most contracts traded, and how often they were quoted.
SELECT
    traded.instrument, contracts, trades, last_price, coalesce(quotes, 0) AS quotes
FROM (
    SELECT instrument, sum(size) AS contracts, count(*) AS trades, max_by(price, trade_seq) AS last_price
    FROM trades
    GROUP BY instrument
) AS traded
LEFT JOIN (SELECT instrument, count(*) AS quotes FROM quotes GROUP BY instrument) AS quoted
    ON quoted.instrument = traded.instrument
ORDER BY contracts DESC, traded.instrument
LIMIT 50
