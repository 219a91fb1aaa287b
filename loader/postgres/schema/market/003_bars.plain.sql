-- One-minute bars of trades and of the top of the book: views, computed when they are asked for. The same columns as
-- the continuous aggregates that TimescaleDB keeps.

CREATE VIEW "{market}_bars_1m" AS
SELECT date_bin(INTERVAL '1 minute', "timestamp", TIMESTAMPTZ '2000-01-01 00:00Z') AS minute, instrument,
    (array_agg(price ORDER BY trade_seq))[1] AS open, max(price) AS high, min(price) AS low,
    (array_agg(price ORDER BY trade_seq DESC))[1] AS close,
    sum(size) AS volume, sum(price * size) AS turnover, count(*) AS trades
FROM "{market}_trades" GROUP BY 1, 2;

CREATE VIEW "{market}_spreads_1m" AS
SELECT date_bin(INTERVAL '1 minute', "timestamp", TIMESTAMPTZ '2000-01-01 00:00Z') AS minute, instrument,
    avg(ask_price - bid_price) AS spread, min(ask_price - bid_price) AS narrowest,
    max(ask_price - bid_price) AS widest, avg((ask_price + bid_price) / 2) AS mid,
    (array_agg(bid_price ORDER BY change_id DESC))[1] AS last_bid,
    (array_agg(ask_price ORDER BY change_id DESC))[1] AS last_ask, count(*) AS quotes
FROM "{market}_quotes" GROUP BY 1, 2;
