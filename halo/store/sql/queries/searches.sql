-- How searches stand, to see whether another node has moved one. By primary keys only: every node asks this twice a second.

-- name: list_states
SELECT s.pairing_id, s.status, s.wave, p.status AS payment_status,
       (SELECT count(*) FROM offers o WHERE o.pairing_id = s.pairing_id AND o.status = 'open') AS open_offers
FROM pairings s JOIN payment_requests p ON p.payment_request_id = s.payment_request_id
WHERE s.pairing_id = ANY(%(pairing_ids)s::uuid[])

-- name: list_failed
-- A session outlives only searches that were matched: one that failed is the one that it waits for now, unless somebody has opened another.
SELECT f.rerouted_session_id AS session_id, f.pairing_id, f.cause FROM pairings f
WHERE f.rerouted_session_id = ANY(%(session_ids)s::uuid[]) AND f.status IN ('failed', 'cancelled')
  AND NOT EXISTS (SELECT FROM pairings s WHERE s.rerouted_session_id = f.rerouted_session_id AND s.status = 'searching')
