-- Nodes: who runs, and until when each of them is known to have kept the clocks of its sessions.

-- name: insert_node
INSERT INTO nodes (node_id, started_at, alive_at) VALUES (%(node_id)s, at(%(now)s), at(%(now)s)) RETURNING lock_key

-- name: hold_lock
SELECT pg_try_advisory_lock(%(lock_class)s, %(lock_key)s) AS held

-- name: beat
-- The moment is the node's own: with it its successor on the same machine reckons to the millisecond.
UPDATE nodes SET alive_at = at(%(now)s), gap_since = at(%(gap_since)s) WHERE node_id = %(node_id)s RETURNING clock_timestamp() AS now

-- name: wake_lock
SELECT pg_terminate_backend(pid) FROM pg_locks
WHERE locktype = 'advisory' AND classid = %(lock_class)s AND objid = %(lock_key)s AND granted AND pid <> pg_backend_pid()
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())

-- name: list_dead
SELECT n.node_id FROM nodes n
WHERE n.node_id <> %(node_id)s AND NOT EXISTS (
    SELECT FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.classid = %(lock_class)s AND l.objid = n.lock_key AND l.granted
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))

-- name: read_clock
SELECT clock_timestamp() AS now

-- name: delete_dead_nodes
DELETE FROM nodes n WHERE n.node_id <> %(node_id)s AND n.alive_at < clock_timestamp() - interval '1 day'
    AND NOT EXISTS (SELECT FROM chat_sessions s WHERE s.owner = n.node_id AND s.status <> 'ended')
