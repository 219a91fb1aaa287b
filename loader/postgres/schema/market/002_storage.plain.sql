-- Plain PostgreSQL. BRIN serves ranges of time and costs a COPY almost nothing; it cannot serve the last row of an
-- instrument (0.9 s against 0.05 ms), hence the btree. No unique index: identity is the ledger's, at a third of the
-- cost.

CREATE INDEX ON "{market}_quotes" USING brin ("timestamp");
CREATE INDEX ON "{market}_quotes" (instrument, "timestamp" DESC);
CREATE INDEX ON "{market}_trades" USING brin ("timestamp");
CREATE INDEX ON "{market}_trades" (instrument, "timestamp" DESC);
CREATE INDEX ON "{market}_tickers" USING brin ("timestamp");
CREATE INDEX ON "{market}_tickers" (instrument, "timestamp" DESC);
CREATE INDEX ON "{market}_instruments" USING brin ("timestamp");
CREATE INDEX ON "{market}_instruments" (instrument, "timestamp" DESC);
