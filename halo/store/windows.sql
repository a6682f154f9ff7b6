-- The windows through which the watchdog asks the invariants (`halo/store/watchdog.py`): each block stands under the name of a table, and
-- hides it from the query of the invariant, which stays as it is in `invariants.sql`. A block sees the table that it hides, and those
-- before it. What must hold once a session has ended cannot break later by what halo does, so a look goes back to the one before it:
-- its cost follows what lives and what ended since, not what is kept. `halo doctor --full`, the demo and the tests ask of everything.
--
-- `OFFSET 0` makes each a search by index for every session of the window. Left to itself the planner reads a whole index beside a few
-- thousand sessions, because that is not dearer today; a year later it is.

-- name: chat_sessions
-- A minute further back than payments and pairings: none of those must lack its session because of two nodes' clocks.
SELECT * FROM chat_sessions WHERE status <> 'ended'
UNION ALL
SELECT * FROM chat_sessions WHERE ended_at >= at(%(since)s) - interval '1 minute'

-- name: session_timeline
SELECT found.* FROM chat_sessions s CROSS JOIN LATERAL (SELECT * FROM session_timeline t WHERE t.session_id = s.session_id OFFSET 0) AS found

-- name: customer_transactions
SELECT found.* FROM chat_sessions s CROSS JOIN LATERAL (SELECT * FROM customer_transactions t WHERE t.session_id = s.session_id OFFSET 0) AS found

-- name: session_extensions
SELECT found.* FROM chat_sessions s CROSS JOIN LATERAL (SELECT * FROM session_extensions e WHERE e.session_id = s.session_id OFFSET 0) AS found

-- name: payment_requests
-- Payments that were settled since, also those of searches that failed; and all of the window's sessions, for their counterparts.
SELECT * FROM payment_requests p WHERE p.confirmed_at IS NOT NULL AND greatest(p.confirmed_at, p.consumed_at, p.failed_at) >= at(%(since)s)
UNION
SELECT found.* FROM chat_sessions s CROSS JOIN LATERAL (SELECT * FROM payment_requests p WHERE p.session_id = s.session_id OFFSET 0) AS found

-- name: refunds_of_payments
SELECT found.* FROM payment_requests p CROSS JOIN LATERAL (SELECT * FROM refunds r WHERE r.payment_request_id = p.payment_request_id OFFSET 0) AS found

-- name: refunds_of_sessions
SELECT found.* FROM chat_sessions s CROSS JOIN LATERAL (SELECT * FROM refunds r WHERE r.session_id = s.session_id OFFSET 0) AS found

-- name: messages
SELECT found.* FROM chat_sessions s CROSS JOIN LATERAL (SELECT * FROM messages m WHERE m.session_id = s.session_id OFFSET 0) AS found

-- name: messages_of_ended
-- For what a unique index holds anyway, and what is dear to ask: once a session, when it has ended.
SELECT found.* FROM chat_sessions s CROSS JOIN LATERAL (SELECT * FROM messages m WHERE m.session_id = s.session_id OFFSET 0) AS found
WHERE s.status = 'ended'

-- name: pairings
SELECT * FROM pairings WHERE status = 'searching'
UNION ALL
SELECT * FROM pairings WHERE status <> 'searching' AND resolved_at >= at(%(since)s)

-- name: offers
SELECT found.* FROM pairings p CROSS JOIN LATERAL (SELECT * FROM offers o WHERE o.pairing_id = p.pairing_id OFFSET 0) AS found
