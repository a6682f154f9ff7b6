-- Searches for another mitra, as steps of the session that lost its own. Locks as in `pairings.sql`: mitras, pairing, offers.

-- name: open_search
INSERT INTO pairings (pairing_id, customer_id, payment_request_id, topic_sensitivity, wave, deadline_at, owner, created_at, rerouted_session_id)
VALUES (%(pairing_id)s, %(customer_id)s, %(payment_request_id)s, %(topic_sensitivity)s, 0, at(%(at)s), %(owner)s, at(%(at)s), %(session_id)s)

-- name: lock_mitras
-- In one order everywhere, or two sessions that swap their mitras would wait for each other.
SELECT mitra_id, is_active FROM mitras WHERE mitra_id = ANY(%(mitra_ids)s::uuid[]) ORDER BY mitra_id FOR NO KEY UPDATE

-- name: win
-- The one conditional statement: the offer was open and the search still searching, or nothing at all happens.
WITH won AS (
    UPDATE offers SET status = 'accepted', resolved_at = at(%(at)s)
    WHERE offer_id = %(offer_id)s AND pairing_id = %(pairing_id)s AND mitra_id = %(mitra_id)s AND status = 'open'
    RETURNING offer_id),
quiet AS (
    UPDATE outbox SET status = 'cancelled' WHERE status = 'due' AND collapse_key IN (SELECT 'offer:' || offer_id FROM won)),
matched AS (
    UPDATE pairings SET status = 'matched', session_id = %(session_id)s, resolved_at = at(%(at)s)
    WHERE pairing_id = %(pairing_id)s AND rerouted_session_id = %(session_id)s AND status = 'searching' AND EXISTS (SELECT FROM won)
    RETURNING pairing_id)
UPDATE mitras SET idle_since = greatest(idle_since, at(%(at)s)) WHERE mitra_id = %(mitra_id)s AND EXISTS (SELECT FROM matched)

-- name: find_open_search
SELECT pairing_id FROM pairings WHERE rerouted_session_id = %(session_id)s AND status = 'searching'
