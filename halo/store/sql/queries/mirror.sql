-- What Postgres knows of who is there. Postgres is the truth; the mirror in Valkey is built from these rows and judged against them.

-- name: presences
SELECT mitra_id, is_active, is_online, last_heartbeat_at
FROM mitras
WHERE mitra_id = ANY(%(mitra_ids)s::uuid[])

-- name: mitras_after
-- One page in the order of ids. The count and its version come from one snapshot, so a higher version never carries an older count.
SELECT
    m.mitra_id,
    m.is_active,
    m.is_online,
    m.last_heartbeat_at,
    c.capacity,
    m.capacity_version,
    c.capacity < m.max_sessions AS has_room,
    m.idle_since
FROM mitras AS m
CROSS JOIN LATERAL (SELECT count(*) AS capacity FROM chat_sessions AS s WHERE s.mitra_id = m.mitra_id AND s.status <> 'ended') AS c
WHERE m.mitra_id > %(after)s::uuid
ORDER BY m.mitra_id
LIMIT %(page)s

-- name: mitras_named
-- The same for these alone.
SELECT
    m.mitra_id,
    m.is_active,
    m.is_online,
    m.last_heartbeat_at,
    c.capacity,
    m.capacity_version,
    c.capacity < m.max_sessions AS has_room,
    m.idle_since
FROM mitras AS m
CROSS JOIN LATERAL (SELECT count(*) AS capacity FROM chat_sessions AS s WHERE s.mitra_id = m.mitra_id AND s.status <> 'ended') AS c
WHERE m.mitra_id = ANY(%(mitra_ids)s::uuid[])
