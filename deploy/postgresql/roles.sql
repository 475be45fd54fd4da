-- The two roles of a store, made once per server, by its administrator:
--
--   psql -f roles.sql postgres       then give both a way to log in: \password atoll_owner, \password atoll_runtime
--
-- atoll_owner    owns the tables, and changes them in `atoll store migrate`; no host ever logs in as it
-- atoll_runtime  what hosts, coordinators and clients of the store log in as: reads and writes rows, nothing else

CREATE ROLE atoll_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
CREATE ROLE atoll_runtime LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;

ALTER ROLE atoll_owner SET search_path = atoll;
ALTER ROLE atoll_runtime SET search_path = atoll;

-- A host that is cut off from the server may hold locks that its successor needs. Without these limits the server
-- keeps its session, and the locks, for a quarter of an hour; with them for less than three seconds (measured).
ALTER ROLE atoll_runtime SET statement_timeout = '5s';
ALTER ROLE atoll_runtime SET lock_timeout = '2s';
ALTER ROLE atoll_runtime SET idle_in_transaction_session_timeout = '3s';
ALTER ROLE atoll_runtime SET tcp_keepalives_idle = 1;
ALTER ROLE atoll_runtime SET tcp_keepalives_interval = 1;
ALTER ROLE atoll_runtime SET tcp_keepalives_count = 2;
ALTER ROLE atoll_runtime SET tcp_user_timeout = 3000;

-- What was answered must be on disk, whatever the server's default is. Where a synchronous standby is set up, `on` also
-- waits for it.
ALTER ROLE atoll_runtime SET synchronous_commit = on;
