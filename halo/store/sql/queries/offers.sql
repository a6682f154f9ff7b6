-- Offers, from the mitra's side. The locks are taken in the order that `pairings.sql` names.

-- name: find_offer
-- With the session that this offer has become, where its mitra was the first.
SELECT o.pairing_id, o.status, s.payment_request_id, s.rerouted_session_id, c.session_id, c.status AS session_status
FROM offers o
JOIN pairings s ON s.pairing_id = o.pairing_id
LEFT JOIN chat_sessions c ON c.session_id = s.session_id AND c.mitra_id = o.mitra_id AND o.status = 'accepted'
WHERE o.offer_id = %(offer_id)s AND o.mitra_id = %(mitra_id)s

-- name: lock_mitra
SELECT is_active FROM mitras WHERE mitra_id = %(mitra_id)s FOR NO KEY UPDATE

-- name: win
-- The one conditional statement: the offer was open and the search still searching, or nothing at all happens.
WITH won AS (
    UPDATE offers SET status = 'accepted', resolved_at = at(%(at)s)
    WHERE offer_id = %(offer_id)s AND mitra_id = %(mitra_id)s AND status = 'open'
    RETURNING pairing_id),
matched AS (
    UPDATE pairings s SET status = 'matched', session_id = %(session_id)s, resolved_at = at(%(at)s)
    FROM won WHERE s.pairing_id = won.pairing_id AND s.status = 'searching'
    RETURNING s.pairing_id, s.payment_request_id),
paid AS (
    UPDATE payment_requests p SET session_id = %(session_id)s
    FROM matched WHERE p.payment_request_id = matched.payment_request_id)
UPDATE mitras SET capacity_version = capacity_version + 1, idle_since = greatest(idle_since, at(%(at)s))
FROM matched WHERE mitra_id = %(mitra_id)s

-- name: resolve_own_push
UPDATE outbox SET status = 'cancelled' WHERE status = 'due' AND collapse_key = 'offer:' || %(offer_id)s::text

-- name: decline
UPDATE offers SET status = 'declined', resolved_at = at(%(at)s)
WHERE offer_id = %(offer_id)s AND mitra_id = %(mitra_id)s AND status = 'open'

-- name: list_open_offers
-- For a session that lost its mitra, what is left of it: the minutes, and what they are worth.
SELECT o.offer_id, o.pairing_id, o.deadline_at, s.topic_sensitivity,
       coalesce(((c.remaining_ms + c.minute_ms - 1) / c.minute_ms)::integer, p.duration_minutes) AS duration_minutes,
       coalesce(div(c.paid_amount::numeric * c.remaining_ms + c.paid_ms - 1, nullif(c.paid_ms, 0))::bigint, p.amount) AS amount, p.currency
FROM offers o
JOIN pairings s ON s.pairing_id = o.pairing_id
JOIN payment_requests p ON p.payment_request_id = s.payment_request_id
LEFT JOIN chat_sessions c ON c.session_id = s.rerouted_session_id
WHERE o.mitra_id = %(mitra_id)s AND o.status = 'open' AND s.status = 'searching'
ORDER BY o.created_at, o.offer_id

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
SELECT DISTINCT pairing_id FROM rescinded
