-- Two roles with no more rights than they need, for a server of your own. Run it once, as an administrator, in the
-- database that is loaded, before the first load:
--
--     psql -d crypto_data -f loader/postgres/schema/roles.sql
--     psql -d crypto_data -c '\password ticktape_loader' -c '\password ticktape_reader'
--
-- ticktape_loader is whom DATABASE_URL names: it makes its tables and owns them, and nothing else.
-- ticktape_reader sees what was loaded: for dashboards and for people.
--
-- On TimescaleDB an administrator makes the extension first: CREATE EXTENSION IF NOT EXISTS timescaledb;

CREATE ROLE ticktape_loader LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
CREATE ROLE ticktape_reader LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;

-- CREATE on the database, for `replay --into-schema`.
DO $$ BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT, CREATE, TEMPORARY ON DATABASE %I TO ticktape_loader', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO ticktape_reader', current_database());
END $$;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO ticktape_loader;
GRANT USAGE ON SCHEMA public TO ticktape_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE ticktape_loader GRANT SELECT ON TABLES TO ticktape_reader;
-- Of what `replay --into-schema` makes.
ALTER DEFAULT PRIVILEGES FOR ROLE ticktape_loader GRANT USAGE ON SCHEMAS TO ticktape_reader;

-- A reader that forgets its transaction holds up nobody for long.
ALTER ROLE ticktape_reader SET default_transaction_read_only = on;
ALTER ROLE ticktape_reader SET idle_in_transaction_session_timeout = '10min';
