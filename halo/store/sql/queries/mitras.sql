-- Mitras. Their row is locked before anything of theirs (families, offers), and always in the order of ids.

-- name: go_online
-- Who is online already keeps the place in the queue of the longest idle.
UPDATE mitras SET
    idle_since = CASE WHEN is_online THEN idle_since ELSE greatest(idle_since, at(%(at)s)) END,
    is_online = true,
    presence_version = presence_version + 1,
    last_heartbeat_at = greatest(last_heartbeat_at, at(%(at)s))
WHERE mitra_id = %(mitra_id)s AND is_active

-- name: go_offline
UPDATE mitras SET is_online = false, presence_version = presence_version + 1 WHERE mitra_id = %(mitra_id)s

-- name: find_status
SELECT m.mitra_id, m.display_name, m.is_online, m.is_active, m.last_heartbeat_at, m.max_sessions, m.created_at,
       (SELECT count(*) FROM chat_sessions s WHERE s.mitra_id = m.mitra_id AND s.status <> 'ended') AS capacity
FROM mitras m WHERE m.mitra_id = %(mitra_id)s

-- name: list_deactivated
SELECT mitra_id FROM mitras WHERE mitra_id = ANY(%(mitra_ids)s::uuid[]) AND NOT is_active

-- name: set_active
UPDATE mitras SET is_active = %(is_active)s, is_online = is_online AND %(is_active)s, presence_version = presence_version + 1
WHERE mitra_id = %(mitra_id)s RETURNING mitra_id

-- name: rescind_offers
WITH open AS (
    SELECT offer_id FROM offers WHERE mitra_id = %(mitra_id)s AND status = 'open' ORDER BY offer_id FOR NO KEY UPDATE),
rescinded AS (
    UPDATE offers o SET status = 'cancelled', resolved_at = at(%(at)s)
    FROM open WHERE o.offer_id = open.offer_id AND o.status = 'open'
    RETURNING o.offer_id, o.pairing_id),
quiet AS (
    UPDATE outbox SET status = 'cancelled'
    WHERE status = 'due' AND collapse_key IN (SELECT 'offer:' || offer_id FROM rescinded))
SELECT offer_id, pairing_id FROM rescinded

-- name: list_sessions_to_end
-- Not those in `rerouting`: the customer waits for another mitra already.
SELECT session_id FROM chat_sessions WHERE mitra_id = %(mitra_id)s AND status NOT IN ('ended', 'rerouting') ORDER BY created_at

-- name: audit
INSERT INTO operator_actions (operator, action, subject, details, trace_id)
VALUES (%(operator)s, %(action)s, %(mitra_id)s::text, '{}', %(trace_id)s)

-- name: list_mitras
SELECT m.mitra_id, m.display_name, m.is_online, m.is_active, m.last_heartbeat_at, m.max_sessions, m.created_at,
       (SELECT count(*) FROM chat_sessions s WHERE s.mitra_id = m.mitra_id AND s.status <> 'ended') AS capacity
FROM mitras m
WHERE m.mitra_id > %(after)s
  AND CASE %(presence)s::text WHEN 'online' THEN m.is_active AND m.is_online
                              WHEN 'offline' THEN m.is_active AND NOT m.is_online
                              WHEN 'deactivated' THEN NOT m.is_active
                              ELSE true END
ORDER BY m.mitra_id LIMIT %(limit)s
