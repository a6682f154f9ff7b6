-- What `halo doctor` asks of Postgres itself. It only reads.

-- name: read_server
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::integer AS version_number,
       current_setting('server_encoding') AS encoding,
       current_setting('fsync') = 'on' AS fsync, current_setting('synchronous_commit') AS synchronous_commit,
       current_setting('full_page_writes') = 'on' AS full_page_writes, pg_is_in_recovery() AS is_standby,
       current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer AS connections_at_most,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections_used

-- name: find_history
SELECT to_regclass('schema_migrations') IS NOT NULL AS exists,
       coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)
       AND current_setting('default_transaction_read_only') = 'off' AS may_be_made

-- name: list_applied
SELECT name, checksum FROM schema_migrations ORDER BY name

-- name: read_clock
SELECT clock_timestamp() AS now

-- name: list_nodes
-- Who beats holds the lock; who holds it and does not beat hangs.
SELECT n.node_id::text AS node_id, extract(epoch FROM clock_timestamp() - n.alive_at)::float8 AS silent_seconds,
       (SELECT count(*) FROM chat_sessions s WHERE s.owner = n.node_id AND s.status <> 'ended') AS sessions,
       EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.classid = %(lock_class)s AND l.objid = n.lock_key AND l.granted
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS holds_lock
FROM nodes n
ORDER BY n.started_at
