-- The streams of one market: the tape's columns in the tape's order, and the ledger's number of the segment.

CREATE TABLE IF NOT EXISTS "{market}_quotes" (
    "timestamp"      timestamptz NOT NULL,
    instrument       text,
    received_at      timestamptz,
    bid_price        double precision,
    bid_size         double precision,
    ask_price        double precision,
    ask_size         double precision,
    underlying_price double precision,
    mark_price       double precision,
    change_id        bigint,
    prev_change_id   bigint,
    segment          integer
);

CREATE TABLE IF NOT EXISTS "{market}_trades" (
    "timestamp"           timestamptz NOT NULL,
    instrument            text,
    received_at           timestamptz,
    trade_id              text,
    trade_seq             bigint,
    price                 double precision,
    size                  double precision,
    side                  text,
    iv                    double precision,
    underlying_price      double precision,
    index_price           double precision,
    mark_price            double precision,
    tick_direction        integer,
    liquidation           text,
    contracts             double precision,
    block_trade_id        text,
    block_trade_leg_count integer,
    combo_id              text,
    source                text,
    segment               integer
);

CREATE TABLE IF NOT EXISTS "{market}_tickers" (
    "timestamp"      timestamptz NOT NULL,
    instrument       text,
    received_at      timestamptz,
    underlying_price double precision,
    underlying_index text,
    index_price      double precision,
    mark_price       double precision,
    mark_iv          double precision,
    bid_iv           double precision,
    ask_iv           double precision,
    bid_price        double precision,
    bid_size         double precision,
    ask_price        double precision,
    ask_size         double precision,
    open_interest    double precision,
    delta            double precision,
    gamma            double precision,
    vega             double precision,
    theta            double precision,
    rho              double precision,
    last_price       double precision,
    settlement_price double precision,
    interest_rate    double precision,
    volume           double precision,
    state            text,
    segment          integer
);

CREATE TABLE IF NOT EXISTS "{market}_instruments" (
    "timestamp"          timestamptz NOT NULL,
    instrument           text,
    received_at          timestamptz,
    option_type          text,
    strike               double precision,
    expiration_timestamp timestamptz,
    creation_timestamp   timestamptz,
    tick_size            double precision,
    contract_size        double precision,
    min_trade_amount     double precision,
    quote_currency       text,
    settlement_currency  text,
    settlement_period    text,
    price_index          text,
    instrument_id        bigint,
    state                text,
    recorded             boolean,
    segment              integer
);
