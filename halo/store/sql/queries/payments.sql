-- Payment requests: priced once, settled once, and never failed after their money came without a refund due in the same statement.
-- The refund's tail stands three times, once behind each way into it, because a refund must not be a second statement that can be forgotten.

-- name: find_payment
SELECT p.payment_request_id, p.customer_id, p.session_id, p.status, p.amount, p.currency, p.duration_minutes, p.is_extension,
       p.is_first_session_discount, p.failure_cause, p.created_at, p.confirmed_at,
       EXISTS (SELECT FROM session_extensions e WHERE e.payment_request_id = p.payment_request_id AND e.status IN ('pending', 'accepted'))
       OR EXISTS (SELECT FROM pairings g WHERE g.payment_request_id = p.payment_request_id AND g.status IN ('searching', 'matched'))
       OR EXISTS (SELECT FROM chat_sessions s WHERE s.payment_request_id = p.payment_request_id AND s.status <> 'ended') AS in_use
FROM payment_requests p WHERE p.payment_request_id = %(payment_request_id)s

-- name: lock_payment
SELECT p.status, p.customer_id, p.amount, p.currency, p.is_first_session_discount, p.failure_cause, p.confirmed_at
FROM payment_requests p WHERE p.payment_request_id = %(payment_request_id)s FOR NO KEY UPDATE

-- name: find_waiting_session
-- The session that stands still until this payment is settled: on hold for it, or extending with it.
SELECT s.session_id FROM chat_sessions s
WHERE s.status = 'pending_payment' AND s.payment_request_id = %(payment_request_id)s
UNION ALL
SELECT e.session_id FROM session_extensions e WHERE e.status = 'pending' AND e.payment_request_id = %(payment_request_id)s

-- name: lock_session
-- FOR SHARE waits for a transition that is under way and holds up the next one: no payment slips in behind the end of its session (M7).
SELECT s.status, s.currency FROM chat_sessions s
WHERE s.session_id = %(session_id)s AND s.customer_id = %(customer_id)s FOR SHARE

-- name: list_living_currencies
-- What an extension without a session could be used for by now.
SELECT DISTINCT s.currency FROM chat_sessions s WHERE s.customer_id = %(customer_id)s AND s.status <> 'ended' ORDER BY s.currency

-- name: check_discount
SELECT EXISTS (SELECT FROM chat_sessions s WHERE s.customer_id = %(customer_id)s AND s.started_at IS NOT NULL)
       OR EXISTS (SELECT FROM payment_requests p WHERE p.customer_id = %(customer_id)s AND p.is_first_session_discount
                  AND p.status IN ('confirmed', 'consumed')) AS used

-- name: insert_payment
INSERT INTO payment_requests (payment_request_id, customer_id, session_id, amount, currency, duration_minutes, is_extension,
                              is_first_session_discount, created_at)
VALUES (%(payment_request_id)s, %(customer_id)s, %(session_id)s, %(amount)s, %(currency)s, %(duration_minutes)s, %(is_extension)s,
        %(is_first_session_discount)s, at(%(at)s))
ON CONFLICT (payment_request_id) DO NOTHING

-- name: take_delivery
INSERT INTO webhook_deliveries (webhook_id, payment_request_id, type, received_at)
VALUES (%(webhook_id)s, %(payment_request_id)s, %(type)s, at(%(at)s))
ON CONFLICT (webhook_id) DO NOTHING

-- name: lock_customer
-- Confirmations of one customer's discounts queue here, so that the second sees the first instead of hitting the unique index.
SELECT customer_id FROM customers WHERE customer_id = %(customer_id)s FOR NO KEY UPDATE

-- name: find_held_discount
SELECT payment_request_id FROM payment_requests
WHERE customer_id = %(customer_id)s AND is_first_session_discount AND status IN ('confirmed', 'consumed')
UNION ALL
SELECT payment_request_id FROM chat_sessions WHERE customer_id = %(customer_id)s AND started_at IS NOT NULL

-- name: confirm_payment
UPDATE payment_requests SET status = 'confirmed', confirmed_at = at(%(at)s), provider_ref = %(provider_ref)s
WHERE payment_request_id = %(payment_request_id)s AND status = 'pending'

-- name: find_shared_ref
SELECT p.payment_request_id FROM payment_requests p
WHERE p.provider_ref = %(provider_ref)s AND p.payment_request_id <> %(payment_request_id)s
ORDER BY p.created_at DESC LIMIT 1

-- name: record_mismatch
-- Once, however often the provider delivers it again.
INSERT INTO operator_actions (operator, action, subject, details)
SELECT 'payment provider', 'payment_mismatch', %(payment_request_id)s::text, %(details)s::jsonb
WHERE NOT EXISTS (SELECT FROM operator_actions
                  WHERE action = 'payment_mismatch' AND subject = %(payment_request_id)s::text AND details = %(details)s::jsonb)

-- name: record_arrival
-- The money came, and the payment is failed in this same transaction: its refund is due at once.
UPDATE payment_requests SET confirmed_at = at(%(at)s), provider_ref = %(provider_ref)s
WHERE payment_request_id = %(payment_request_id)s AND status = 'pending' AND confirmed_at IS NULL

-- name: refund_late_money
WITH arrived AS (
    UPDATE payment_requests SET confirmed_at = at(%(at)s), provider_ref = %(provider_ref)s
    WHERE payment_request_id = %(payment_request_id)s AND status = 'failed' AND confirmed_at IS NULL
    RETURNING payment_request_id, customer_id, amount, currency, failure_cause,
              coalesce(session_id, (SELECT s.session_id FROM chat_sessions s
                                    WHERE s.payment_request_id = payment_requests.payment_request_id)) AS session_id),
due AS (
    INSERT INTO refunds (payment_request_id, session_id, customer_id, kind, cause, amount, currency, created_at)
    SELECT payment_request_id, session_id, customer_id, 'payment_failed', failure_cause, amount, currency, at(%(at)s) FROM arrived
    ON CONFLICT (payment_request_id, kind) DO NOTHING
    RETURNING refund_id, customer_id, session_id),
told AS (
    INSERT INTO outbox (kind, user_id, session_id, template, payload, collapse_key, due_at, traceparent)
    SELECT 'refund', customer_id, session_id, 'refund_due', jsonb_build_object('refund_id', refund_id), 'refund:' || refund_id, at(%(at)s),
           %(traceparent)s::text
    FROM due)
SELECT payment_request_id FROM arrived

-- name: fail_payment
WITH failed AS (
    UPDATE payment_requests SET status = 'failed', failure_cause = %(cause)s, failed_at = at(%(at)s)
    WHERE payment_request_id = %(payment_request_id)s AND status IN ('pending', 'confirmed')
      AND status = coalesce(%(expected)s::text, status)
    RETURNING payment_request_id, customer_id, amount, currency, failure_cause, confirmed_at,
              coalesce(%(session_id)s::uuid, session_id, (SELECT s.session_id FROM chat_sessions s
                       WHERE s.payment_request_id = payment_requests.payment_request_id)) AS session_id),
due AS (
    INSERT INTO refunds (payment_request_id, session_id, customer_id, kind, cause, amount, currency, created_at)
    SELECT payment_request_id, session_id, customer_id, 'payment_failed', failure_cause, amount, currency, at(%(at)s)
    FROM failed WHERE confirmed_at IS NOT NULL
    ON CONFLICT (payment_request_id, kind) DO NOTHING
    RETURNING refund_id, customer_id, session_id),
told AS (
    INSERT INTO outbox (kind, user_id, session_id, template, payload, collapse_key, due_at, traceparent)
    SELECT 'refund', customer_id, session_id, 'refund_due', jsonb_build_object('refund_id', refund_id), 'refund:' || refund_id, at(%(at)s),
           %(traceparent)s::text
    FROM due)
SELECT payment_request_id FROM failed

-- name: fail_unused_payments
-- Consumed payments have served; the one of a pending extension was failed before, with its own cause or this one.
WITH failed AS (
    UPDATE payment_requests SET status = 'failed', failure_cause = 'session_ended', failed_at = at(%(at)s)
    WHERE session_id = %(session_id)s AND is_extension AND status IN ('pending', 'confirmed')
    RETURNING payment_request_id, customer_id, amount, currency, failure_cause, confirmed_at, session_id),
due AS (
    INSERT INTO refunds (payment_request_id, session_id, customer_id, kind, cause, amount, currency, created_at)
    SELECT payment_request_id, session_id, customer_id, 'payment_failed', failure_cause, amount, currency, at(%(at)s)
    FROM failed WHERE confirmed_at IS NOT NULL
    ON CONFLICT (payment_request_id, kind) DO NOTHING
    RETURNING refund_id, customer_id, session_id),
told AS (
    INSERT INTO outbox (kind, user_id, session_id, template, payload, collapse_key, due_at, traceparent)
    SELECT 'refund', customer_id, session_id, 'refund_due', jsonb_build_object('refund_id', refund_id), 'refund:' || refund_id, at(%(at)s),
           %(traceparent)s::text
    FROM due)
SELECT payment_request_id FROM failed

-- name: consume_payment
WITH consumed AS (
    UPDATE payment_requests SET status = 'consumed', session_id = %(session_id)s, consumed_at = at(%(at)s)
    WHERE payment_request_id = %(payment_request_id)s AND status = 'confirmed' AND (session_id IS NULL OR session_id = %(session_id)s)
    RETURNING payment_request_id, customer_id, session_id, amount, currency, duration_minutes),
charged AS (
    INSERT INTO customer_transactions (payment_request_id, customer_id, session_id, type, amount, currency, duration_minutes, at)
    SELECT payment_request_id, customer_id, session_id, %(type)s::text, amount, currency, duration_minutes, at(%(at)s) FROM consumed)
SELECT payment_request_id FROM consumed
