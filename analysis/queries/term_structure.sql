-- The iv at the money by expiry, of each index by itself: of the option whose strike is nearest to the underlying's price.
SELECT expiry, strike, mark_iv, underlying_price, instrument, price_index
FROM (
    SELECT
        *,
        row_number() OVER (
            PARTITION BY price_index, expiry ORDER BY abs(strike - underlying_price), option_type, strike
        ) AS nearest_first
    FROM smile
    WHERE mark_iv IS NOT NULL AND underlying_price IS NOT NULL
) AS by_distance
WHERE nearest_first = 1
ORDER BY expiry, price_index NULLS LAST
