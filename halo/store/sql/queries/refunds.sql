-- Refunds of time left: one row a payment, never above what was charged on it, and each with its row of the outbox.

-- name: list_charges
-- The last first: what was bought last has been served last. Without what was given back on a payment already.
SELECT t.payment_request_id, t.amount - coalesce((SELECT sum(r.amount) FROM refunds r WHERE r.payment_request_id = t.payment_request_id), 0)::bigint AS amount
FROM customer_transactions t WHERE t.session_id = %(session_id)s
ORDER BY t.type = 'session', t.at DESC, t.payment_request_id

-- name: insert_time_left_refund
WITH refund AS (
    INSERT INTO refunds (payment_request_id, session_id, customer_id, kind, cause, amount, currency, refunded_ms, created_at)
    SELECT payment_request_id, %(session_id)s, customer_id, 'time_left', %(cause)s, %(amount)s, %(currency)s, %(refunded_ms)s, at(%(at)s)
    FROM payment_requests WHERE payment_request_id = %(payment_request_id)s
    RETURNING refund_id, customer_id)
INSERT INTO outbox (kind, user_id, session_id, template, payload, collapse_key, due_at, traceparent)
SELECT 'refund', customer_id, %(session_id)s, 'refund_due', jsonb_build_object('refund_id', refund_id), 'refund:' || refund_id, at(%(at)s),
       %(traceparent)s::text
FROM refund
