-- The role that Grafana asks the database as in docker-compose.yml: it may read everything, and change nothing.
-- Run as often as one likes, by psql (14 or newer) with READER_PASSWORD in its environment: every user of the machine
-- can read its arguments. For a server of your own take loader/postgres/schema/roles.sql.
\getenv password READER_PASSWORD
SELECT 'CREATE ROLE ticktape_reader' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'ticktape_reader')
\gexec
ALTER ROLE ticktape_reader LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'password';
GRANT pg_read_all_data TO ticktape_reader;
ALTER ROLE ticktape_reader SET default_transaction_read_only = on;
ALTER ROLE ticktape_reader SET idle_in_transaction_session_timeout = '10min';
