-- The schema of one app's store, made once per database, by the administrator:
--
--   createdb --owner=atoll_owner bank
--   psql -f database.sql bank
--   atoll store migrate --store postgresql://atoll_owner@SERVER/bank
--
-- One database holds the store of one app. The migration makes the tables; whatever tables it will ever make, the
-- runtime role may read and write their rows, and nothing else.

CREATE SCHEMA atoll AUTHORIZATION atoll_owner;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;

GRANT USAGE ON SCHEMA atoll TO atoll_runtime;
ALTER DEFAULT PRIVILEGES FOR ROLE atoll_owner IN SCHEMA atoll
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO atoll_runtime;
