-- One-minute bars of trades and of the top of the book, kept up to date by TimescaleDB itself.
--
-- Opened and closed by trade_seq and change_id: of two rows of one millisecond first() and last() by time would take
-- either. Real-time (materialized_only = false): what was not materialized yet is added at each query. The policies
-- reach back two days; the loader refreshes what it loads of times before by itself.

CREATE MATERIALIZED VIEW "{market}_bars_1m" WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT time_bucket(INTERVAL '1 minute', "timestamp") AS minute, instrument,
    first(price, trade_seq) AS open, max(price) AS high, min(price) AS low, last(price, trade_seq) AS close,
    sum(size) AS volume, sum(price * size) AS turnover, count(*) AS trades
FROM "{market}_trades" GROUP BY minute, instrument WITH NO DATA;
SELECT add_continuous_aggregate_policy('"{market}_bars_1m"',
    start_offset => INTERVAL '2 days', end_offset => INTERVAL '1 minute', schedule_interval => INTERVAL '5 minutes');

CREATE MATERIALIZED VIEW "{market}_spreads_1m" WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT time_bucket(INTERVAL '1 minute', "timestamp") AS minute, instrument,
    avg(ask_price - bid_price) AS spread, min(ask_price - bid_price) AS narrowest,
    max(ask_price - bid_price) AS widest, avg((ask_price + bid_price) / 2) AS mid,
    last(bid_price, change_id) AS last_bid, last(ask_price, change_id) AS last_ask, count(*) AS quotes
FROM "{market}_quotes" GROUP BY minute, instrument WITH NO DATA;
SELECT add_continuous_aggregate_policy('"{market}_spreads_1m"',
    start_offset => INTERVAL '2 days', end_offset => INTERVAL '1 minute', schedule_interval => INTERVAL '5 minutes');
