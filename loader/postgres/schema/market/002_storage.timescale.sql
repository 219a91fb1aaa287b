-- TimescaleDB with the columnstore: fresh chunks are rowstore, a policy compresses them soon after their end.
--
-- orderby is the single NOT NULL "timestamp", ascending: wrong orders keep turning up with several or nullable ones.
-- The policy is removed before it is added: enabling the columnstore may have added one with other times, and adding
-- again would only warn. The index serves the last row of an instrument while a chunk is rowstore. No chunk is
-- ever loaded with the client-sorted promise.

SELECT create_hypertable('"{market}_quotes"', by_range('timestamp', INTERVAL '6 hours'),
    create_default_indexes => false, if_not_exists => true, migrate_data => true);
ALTER TABLE "{market}_quotes" SET (timescaledb.enable_columnstore,
    timescaledb.segmentby = 'instrument', timescaledb.orderby = 'timestamp');
CALL remove_columnstore_policy('"{market}_quotes"', if_exists => true);
CALL add_columnstore_policy('"{market}_quotes"', after => INTERVAL '1 hour', schedule_interval => INTERVAL '15 minutes');
CREATE INDEX ON "{market}_quotes" (instrument, "timestamp" DESC);

SELECT create_hypertable('"{market}_trades"', by_range('timestamp', INTERVAL '7 days'),
    create_default_indexes => false, if_not_exists => true, migrate_data => true);
ALTER TABLE "{market}_trades" SET (timescaledb.enable_columnstore,
    timescaledb.segmentby = 'instrument', timescaledb.orderby = 'timestamp');
CALL remove_columnstore_policy('"{market}_trades"', if_exists => true);
CALL add_columnstore_policy('"{market}_trades"', after => INTERVAL '1 hour', schedule_interval => INTERVAL '1 hour');
CREATE INDEX ON "{market}_trades" (instrument, "timestamp" DESC);

SELECT create_hypertable('"{market}_tickers"', by_range('timestamp', INTERVAL '6 hours'),
    create_default_indexes => false, if_not_exists => true, migrate_data => true);
ALTER TABLE "{market}_tickers" SET (timescaledb.enable_columnstore,
    timescaledb.segmentby = 'instrument', timescaledb.orderby = 'timestamp');
CALL remove_columnstore_policy('"{market}_tickers"', if_exists => true);
CALL add_columnstore_policy('"{market}_tickers"', after => INTERVAL '1 hour', schedule_interval => INTERVAL '15 minutes');
CREATE INDEX ON "{market}_tickers" (instrument, "timestamp" DESC);

SELECT create_hypertable('"{market}_instruments"', by_range('timestamp', INTERVAL '7 days'),
    create_default_indexes => false, if_not_exists => true, migrate_data => true);
ALTER TABLE "{market}_instruments" SET (timescaledb.enable_columnstore,
    timescaledb.segmentby = 'instrument', timescaledb.orderby = 'timestamp');
CALL remove_columnstore_policy('"{market}_instruments"', if_exists => true);
CALL add_columnstore_policy('"{market}_instruments"', after => INTERVAL '1 hour', schedule_interval => INTERVAL '1 hour');
CREATE INDEX ON "{market}_instruments" (instrument, "timestamp" DESC);
