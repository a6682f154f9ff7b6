-- Living sessions as if they had been opened a moment ago by a node that has died since: every invariant of spec 5 holds for them.

-- name: insert_dead_node
INSERT INTO nodes (node_id) VALUES (%(node_id)s)

-- name: insert_customers
INSERT INTO customers (customer_id, display_name) SELECT id, 'Measured customer' FROM unnest(%(customer_ids)s::uuid[]) AS id

-- name: insert_mitras
INSERT INTO mitras (mitra_id, display_name, capacity_version) SELECT id, 'Measured mitra', 1 FROM unnest(%(mitra_ids)s::uuid[]) AS id

-- name: insert_payments
INSERT INTO payment_requests (payment_request_id, customer_id, status, amount, currency, duration_minutes, confirmed_at, consumed_at)
SELECT payment_request_id, customer_id, 'consumed', %(price)s, 'IDR', %(minutes)s, now(), now()
FROM unnest(%(payment_request_ids)s::uuid[], %(customer_ids)s::uuid[]) AS p (payment_request_id, customer_id)

-- name: insert_sessions
INSERT INTO chat_sessions (
    session_id, customer_id, mitra_id, payment_request_id, status, duration_minutes, minute_ms, price, currency, paid_amount, started_at,
    running_since, expires_at, deadline_at, paid_ms, remaining_ms, owner)
SELECT s.session_id, s.customer_id, s.mitra_id, s.payment_request_id, 'active', %(minutes)s, 60000, %(price)s, 'IDR', %(price)s, now(),
       now(), now() + paid.time, now() + paid.time, %(minutes)s::bigint * 60000, %(minutes)s::bigint * 60000, %(node_id)s
FROM unnest(%(session_ids)s::uuid[], %(customer_ids)s::uuid[], %(mitra_ids)s::uuid[], %(payment_request_ids)s::uuid[])
         AS s (session_id, customer_id, mitra_id, payment_request_id),
     (SELECT %(minutes)s::bigint * interval '60 s') AS paid (time)

-- name: bind_payments
UPDATE payment_requests p SET session_id = s.session_id
FROM chat_sessions s WHERE s.payment_request_id = p.payment_request_id AND s.owner = %(node_id)s

-- name: insert_ledger
INSERT INTO customer_transactions (payment_request_id, customer_id, session_id, type, amount, currency, duration_minutes, at)
SELECT payment_request_id, customer_id, session_id, 'session', price, currency, duration_minutes, now()
FROM chat_sessions WHERE owner = %(node_id)s

-- name: insert_timeline
INSERT INTO session_timeline (session_id, version, epoch, at, event, to_status, cause)
SELECT session_id, version, epoch, now(), 'mitra_accepted', 'active', 'payment_confirmed' FROM chat_sessions WHERE owner = %(node_id)s

-- name: insert_messages
INSERT INTO messages (session_id, seq, sender, id, body, at)
SELECT s.session_id, seq, CASE WHEN seq %% 2 = 1 THEN 'customer' ELSE 'mitra' END, 'before-' || seq, repeat('x', 120), now()
FROM chat_sessions s, generate_series(1, %(messages)s::bigint) AS seq WHERE s.owner = %(node_id)s

-- name: gather_statistics
ANALYZE

-- name: count_messages
SELECT count(*) AS count FROM messages

-- name: count_waiting
-- Sessions that somebody owns, and whose owner has not yet written down the time that nobody kept.
SELECT count(*) AS count FROM chat_sessions WHERE status <> 'ended' AND epoch > 1
    AND NOT EXISTS (SELECT FROM session_timeline t WHERE t.session_id = chat_sessions.session_id AND t.epoch = chat_sessions.epoch)
