-- Open interest by expiry and strike, of each index by itself, calls and puts side by side.
SELECT
    expiry,
    strike,
    sum(CASE WHEN option_type = 'call' THEN open_interest ELSE 0 END) AS calls,
    sum(CASE WHEN option_type = 'put' THEN open_interest ELSE 0 END) AS puts,
    price_index
FROM smile
GROUP BY price_index, expiry, strike
ORDER BY expiry, strike, price_index NULLS LAST
