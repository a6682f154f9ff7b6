-- Who can be asked for a session, as Postgres sees it. The mirror in Valkey gives the same answers (`halo/store/available.py`).

-- name: list_available
-- Longest idle first: by milliseconds, as the mirror keeps them.
SELECT m.mitra_id
FROM mitras AS m
WHERE m.is_active AND m.is_online AND m.last_heartbeat_at >= at(%(heard_since)s)
  AND (SELECT count(*) FROM chat_sessions AS s WHERE s.mitra_id = m.mitra_id AND s.status <> 'ended') < m.max_sessions
ORDER BY date_trunc('milliseconds', m.idle_since), m.mitra_id
LIMIT %(limit)s

-- name: count_available
SELECT count(*) AS count
FROM mitras AS m
WHERE m.is_active AND m.is_online AND m.last_heartbeat_at >= at(%(heard_since)s)
  AND (SELECT count(*) FROM chat_sessions AS s WHERE s.mitra_id = m.mitra_id AND s.status <> 'ended') < m.max_sessions

-- name: count_online
SELECT count(*) AS count FROM mitras WHERE is_online AND is_active
