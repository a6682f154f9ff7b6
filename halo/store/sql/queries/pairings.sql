-- Pairings. Whoever moves one locks in this order: mitra, payment, pairing, offers. `halo/store/pairings.py` says why.

-- name: lock_payment
SELECT * FROM payment_requests WHERE payment_request_id = %(payment_request_id)s FOR NO KEY UPDATE

-- name: check_use
-- A statement of its own, after the lock, so that it sees what the lock's last holder wrote. A session keeps its payment when it has ended.
SELECT EXISTS (SELECT FROM pairings WHERE payment_request_id = %(payment_request_id)s AND status IN ('searching', 'matched'))
    OR EXISTS (SELECT FROM chat_sessions WHERE payment_request_id = %(payment_request_id)s) AS in_use

-- name: insert_pairing
INSERT INTO pairings (pairing_id, customer_id, payment_request_id, topic_sensitivity, wave, deadline_at, owner, created_at)
VALUES (%(pairing_id)s, %(customer_id)s, %(payment_request_id)s, %(topic_sensitivity)s, 0, at(%(at)s), %(owner)s, at(%(at)s))
ON CONFLICT (pairing_id) DO NOTHING

-- name: find_pairing
SELECT pairing_id, customer_id, payment_request_id, status, session_id, cause FROM pairings WHERE pairing_id = %(pairing_id)s

-- name: lock_pairing
SELECT pairing_id, customer_id, status, wave, session_id, cause, rerouted_session_id FROM pairings
WHERE pairing_id = %(pairing_id)s
FOR NO KEY UPDATE

-- name: find_search
-- One row an offer, in the order in which they were asked; one row with no offer before the first wave. For a session that lost its
-- mitra: without those it had, for the minutes that are left, at what they are worth.
SELECT s.pairing_id, s.customer_id, s.payment_request_id, s.topic_sensitivity, s.status, s.wave, s.deadline_at, s.session_id, s.cause,
       s.rerouted_session_id, c.deadline_at AS session_deadline_at,
       CASE WHEN c.session_id IS NULL THEN '{}' ELSE c.former_mitra_ids || c.mitra_id END AS without_mitra_ids, p.status AS payment_status, p.currency,
       coalesce(((c.remaining_ms + c.minute_ms - 1) / c.minute_ms)::integer, p.duration_minutes) AS duration_minutes,
       coalesce(div(c.paid_amount::numeric * c.remaining_ms + c.paid_ms - 1, nullif(c.paid_ms, 0))::bigint, p.amount) AS amount,
       o.offer_id, o.mitra_id, o.wave AS offer_wave, o.status AS offer_status, o.deadline_at AS offer_deadline_at
FROM pairings s
JOIN payment_requests p ON p.payment_request_id = s.payment_request_id
LEFT JOIN chat_sessions c ON c.session_id = s.rerouted_session_id
LEFT JOIN offers o ON o.pairing_id = s.pairing_id
WHERE s.pairing_id = %(pairing_id)s
ORDER BY o.wave, o.offer_id

-- name: count_living
-- A statement of its own, after the lock: its snapshot sees the session of whoever held the lock before.
SELECT m.max_sessions, (SELECT count(*) FROM chat_sessions s WHERE s.mitra_id = m.mitra_id AND s.status <> 'ended') AS living
FROM mitras m WHERE m.mitra_id = %(mitra_id)s

-- name: resolve_open_offers
WITH resolved AS (
    UPDATE offers SET status = %(status)s, resolved_at = at(%(at)s)
    WHERE pairing_id = %(pairing_id)s AND status = 'open'
    RETURNING offer_id)
UPDATE outbox SET status = 'cancelled'
WHERE status = 'due' AND collapse_key IN (SELECT 'offer:' || offer_id FROM resolved)

-- name: insert_offers
-- Postgres is asked once more whether they may be asked: the list may come from a mirror that is a second old.
INSERT INTO offers (offer_id, pairing_id, mitra_id, wave, deadline_at, created_at)
SELECT asked.offer_id, %(pairing_id)s::uuid, asked.mitra_id, %(wave)s::integer, at(%(deadline_at)s), at(%(at)s)
FROM unnest(%(offer_ids)s::uuid[], %(mitra_ids)s::uuid[]) WITH ORDINALITY AS asked (offer_id, mitra_id, place)
JOIN mitras m ON m.mitra_id = asked.mitra_id
WHERE m.is_active AND m.is_online AND m.mitra_id <> ALL(%(without_mitra_ids)s::uuid[])
  AND (SELECT count(*) FROM chat_sessions c WHERE c.mitra_id = m.mitra_id AND c.status <> 'ended') < m.max_sessions
ORDER BY asked.place
ON CONFLICT (pairing_id, mitra_id) DO NOTHING

-- name: insert_offer_pushes
-- Who is in the lobby is told there; her push waits until it is known whether she has heard.
INSERT INTO outbox (kind, user_id, template, payload, collapse_key, due_at, expires_at, receipt, told_by, traceparent)
SELECT 'push', o.mitra_id, 'offer', jsonb_build_object('offer_id', o.offer_id, 'pairing_id', o.pairing_id), 'offer:' || o.offer_id,
       at(CASE WHEN lobby.is_there THEN %(patient_until)s::bigint ELSE %(at)s::bigint END), o.deadline_at,
       CASE WHEN lobby.is_there THEN 'offer:' || o.offer_id END, CASE WHEN lobby.is_there THEN %(owner)s::uuid END,
       %(traceparent)s::text
FROM offers o, LATERAL (SELECT o.mitra_id <> ALL(%(absent)s::uuid[]) AS is_there) AS lobby
WHERE o.pairing_id = %(pairing_id)s AND o.wave = %(wave)s::integer

-- name: advance_wave
UPDATE pairings SET wave = %(wave)s::integer, deadline_at = at(%(deadline_at)s)
WHERE pairing_id = %(pairing_id)s AND status = 'searching' AND wave = %(wave)s::integer - 1

-- name: resolve_pairing
WITH resolved AS (
    UPDATE pairings SET status = %(status)s, cause = %(cause)s::text, resolved_at = at(%(at)s)
    WHERE pairing_id = %(pairing_id)s AND status = 'searching'
    RETURNING pairing_id, customer_id, rerouted_session_id, owner),
told AS (
    -- The customer hears it in the lobby of the node that searched. The end of a session that was to be handed on has a push of its own.
    INSERT INTO outbox (kind, user_id, template, payload, collapse_key, due_at, expires_at, receipt, told_by, traceparent)
    SELECT 'push', customer_id, 'pairing_failed', jsonb_build_object('pairing_id', pairing_id), 'pairing:' || pairing_id,
           at(%(patient_until)s), at(%(news_until)s), 'pairing:' || pairing_id, owner, %(traceparent)s::text
    FROM resolved WHERE rerouted_session_id IS NULL AND %(cause)s::text <> 'customer_cancelled')
INSERT INTO pairing_failures (cause, pairing_id, session_id, customer_id, evidence, at)
SELECT %(cause)s::text, pairing_id, rerouted_session_id, customer_id, %(evidence)s::jsonb, at(%(at)s) FROM resolved

-- name: take_up
-- Searches of dead nodes, and our own that nobody keeps: parked, or the answer to the commit that made them ours was lost.
-- Deadlines that fell while nobody kept them, or are about to, wait until people can have come back.
WITH orphans AS (
    -- Sessions are taken up before their searches, with their deadlines credited: an offer is not told a later one than its session has.
    SELECT s.pairing_id, least(at(%(not_before)s), (
        SELECT c.deadline_at FROM chat_sessions c WHERE c.session_id = s.rerouted_session_id)) AS offers_not_before
    FROM pairings s LEFT JOIN nodes n ON n.node_id = s.owner
    WHERE s.status = 'searching'
      AND (s.owner IS NULL OR n.node_id IS NULL OR (s.owner = %(owner)s AND s.pairing_id <> ALL(%(kept)s::uuid[]))
           OR (s.owner <> %(owner)s AND NOT EXISTS (
            SELECT FROM pg_locks l
            WHERE l.locktype = 'advisory' AND l.classid = %(lock_class)s::oid AND l.objid = n.lock_key::oid AND l.granted
              AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))))
      -- Another node that restores at the same moment may have taken it since our snapshot: the locked row is newer than what we judged.
      AND s.owner IS NOT DISTINCT FROM (SELECT seen.owner FROM pairings seen WHERE seen.pairing_id = s.pairing_id)
    FOR UPDATE OF s SKIP LOCKED),
moved AS (
    UPDATE offers o SET deadline_at = greatest(o.deadline_at, orphans.offers_not_before)
    FROM orphans WHERE o.pairing_id = orphans.pairing_id AND o.status = 'open')
UPDATE pairings s SET owner = %(owner)s, deadline_at = greatest(s.deadline_at, at(%(not_before)s))
FROM orphans WHERE s.pairing_id = orphans.pairing_id
RETURNING s.pairing_id
