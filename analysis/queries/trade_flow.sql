-- Trades by minute, calls and puts apart: contracts bought and sold by takers, what they paid, and at which iv.
SELECT
    date_trunc('minute', trades.timestamp) AS minute,
    options.option_type,
    sum(CASE WHEN side = 'buy' THEN size ELSE 0 END) AS bought,
    sum(CASE WHEN side = 'sell' THEN size ELSE 0 END) AS sold,
    sum(price * size) AS premium,
    sum(iv * size) / nullif(sum(size), 0) AS mean_iv_percent,
    count(*) AS trades
FROM trades
LEFT JOIN options ON options.instrument = trades.instrument
GROUP BY date_trunc('minute', trades.timestamp), options.option_type
ORDER BY minute, option_type NULLS LAST
