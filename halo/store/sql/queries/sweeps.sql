-- What the sweeps write about many mitras at once. Rows are locked in the order of ids, so that nodes which sweep at once do not deadlock.

-- name: set_stale_offline
-- Guarded by the heartbeat that each was judged by: one that has reached Postgres on another way since then wins.
WITH stale AS (
    SELECT m.mitra_id
    FROM unnest(%(mitra_ids)s::uuid[], %(moments)s::bigint[]) AS seen (mitra_id, ms) JOIN mitras m ON m.mitra_id = seen.mitra_id
    WHERE m.is_online AND (m.last_heartbeat_at IS NULL OR m.last_heartbeat_at <= at(seen.ms))
    ORDER BY m.mitra_id FOR NO KEY UPDATE OF m)
UPDATE mitras m SET is_online = false, presence_version = m.presence_version + 1 FROM stale WHERE m.mitra_id = stale.mitra_id
RETURNING m.mitra_id, m.presence_version

-- name: list_offline
SELECT mitra_id FROM mitras WHERE mitra_id = ANY(%(mitra_ids)s::uuid[]) AND NOT is_online

-- name: set_online_again
-- Only those of whom nobody has said since whether they are there: whoever went offline by herself meanwhile, stays so. A heartbeat or
-- the end of a session moves the row as well, and says nothing about that. Locked in the order of ids, as above.
WITH mine AS (
    SELECT m.mitra_id
    FROM unnest(%(mitra_ids)s::uuid[], %(presence_versions)s::bigint[]) AS said (mitra_id, version) JOIN mitras m ON m.mitra_id = said.mitra_id
    WHERE m.presence_version = said.version AND m.is_active AND NOT m.is_online
    ORDER BY m.mitra_id FOR NO KEY UPDATE OF m)
UPDATE mitras m SET is_online = true, presence_version = m.presence_version + 1 FROM mine WHERE m.mitra_id = mine.mitra_id
RETURNING m.mitra_id

-- name: record_heartbeats
-- Joined with those who exist (a stray key in the mirror makes nobody a mitra), locked in the order of ids (nodes that run this at
-- once do not deadlock), and written only where the moment moves forward (a second run touches no row).
INSERT INTO mitras (mitra_id, last_heartbeat_at)
SELECT m.mitra_id, at(beat.ms)
FROM unnest(%(mitra_ids)s::uuid[], %(moments)s::bigint[]) AS beat (mitra_id, ms) JOIN mitras m ON m.mitra_id = beat.mitra_id
WHERE m.last_heartbeat_at IS NULL OR m.last_heartbeat_at < at(beat.ms)
ORDER BY m.mitra_id
ON CONFLICT (mitra_id) DO UPDATE SET last_heartbeat_at = greatest(mitras.last_heartbeat_at, EXCLUDED.last_heartbeat_at)
WHERE mitras.last_heartbeat_at IS NULL OR mitras.last_heartbeat_at < EXCLUDED.last_heartbeat_at
