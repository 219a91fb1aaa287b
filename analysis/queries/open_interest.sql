-- Open interest by expiry and strike, calls and puts side by side.
SELECT
    expiry,
    strike,
    sum(CASE WHEN option_type = 'call' THEN open_interest ELSE 0 END) AS calls,
    sum(CASE WHEN option_type = 'put' THEN open_interest ELSE 0 END) AS puts
FROM smile
GROUP BY expiry, strike
ORDER BY expiry, strike
