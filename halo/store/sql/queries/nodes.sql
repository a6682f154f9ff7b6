-- Nodes: who runs, and until when each of them is known to have kept the clocks of its sessions.

-- name: insert_node
INSERT INTO nodes (node_id) VALUES (%(node_id)s) RETURNING lock_key

-- name: hold_lock
SELECT pg_try_advisory_lock(%(lock_class)s, %(lock_key)s) AS held

-- name: beat
UPDATE nodes SET alive_at = clock_timestamp() WHERE node_id = %(node_id)s RETURNING alive_at

-- name: read_clock
SELECT clock_timestamp() AS now

-- name: delete_dead_nodes
DELETE FROM nodes n WHERE n.node_id <> %(node_id)s AND n.alive_at < clock_timestamp() - interval '1 day'
    AND NOT EXISTS (SELECT FROM chat_sessions s WHERE s.owner = n.node_id AND s.status <> 'ended')
