-- Trades by minute, of each index by itself, calls and puts apart: contracts that takers bought and sold, premium, mean iv.
SELECT
    date_trunc('minute', trades.timestamp) AS minute,
    options.option_type,
    sum(CASE WHEN side = 'buy' THEN size ELSE 0 END) AS bought,
    sum(CASE WHEN side = 'sell' THEN size ELSE 0 END) AS sold,
    sum(price * size) AS premium,
    sum(iv * size) / nullif(sum(CASE WHEN iv IS NOT NULL THEN size END), 0) AS mean_iv_percent,
    count(*) AS trades,
    options.price_index
FROM trades
LEFT JOIN options ON options.instrument = trades.instrument
GROUP BY date_trunc('minute', trades.timestamp), options.price_index, options.option_type
ORDER BY minute, option_type NULLS LAST, price_index NULLS LAST
