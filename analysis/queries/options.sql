-- Each option as it was told last: call or put, strike, expiry; join it by its instrument.
SELECT
    timestamp, instrument, received_at, option_type, strike, expiration_timestamp, creation_timestamp, tick_size,
    contract_size, min_trade_amount, quote_currency, settlement_currency, settlement_period, price_index,
    instrument_id, state, recorded
FROM (
    SELECT
        *, row_number() OVER (PARTITION BY instrument ORDER BY received_at DESC, timestamp DESC) AS newest_first
    FROM instruments
) AS told
WHERE newest_first = 1
