-- What operators read. Pages go newest first and continue after the row that the cursor names, so that rows which arrive meanwhile
-- shift nothing; a cursor that names no row gives an empty page.

-- name: load_overview
-- All counts by one statement, from one snapshot. The living and the ended are counted apart, because only so each has an index.
-- Who is online and who is available, `halo/store/available.py` says, as pairing and beacon see it.
SELECT
    (SELECT coalesce(jsonb_object_agg(status, count), '{}') FROM (
        SELECT status, count(*) AS count FROM chat_sessions WHERE status <> 'ended' GROUP BY status
        UNION ALL
        SELECT status, count(*) FROM chat_sessions WHERE status = 'ended' AND created_at > at(%(now)s) - interval '24 hours' GROUP BY status
    ) s) AS sessions,
    m.total AS mitras_total, m.deactivated AS mitras_deactivated,
    (SELECT count(*) FROM pairings WHERE status = 'searching') AS pairings_searching,
    (SELECT coalesce(jsonb_object_agg(cause, count ORDER BY cause), '{}') FROM (
        SELECT cause, count(*) AS count FROM pairing_failures
        WHERE at > at(%(now)s) - interval '24 hours' AND extension_id IS NULL GROUP BY cause
    ) f) AS pairing_failures_24h,
    (SELECT coalesce(jsonb_object_agg(currency, amount), '{}') FROM (
        SELECT currency, sum(amount)::bigint AS amount FROM refunds WHERE status = 'due' GROUP BY currency
    ) r) AS refunds_due
FROM (SELECT count(*) AS total, count(*) FILTER (WHERE NOT is_active) AS deactivated FROM mitras) m

-- name: list_sessions
SELECT session_id, status, end_reason, customer_id, mitra_id, topic_sensitivity, duration_minutes, paid_amount, currency, created_at,
       started_at, expires_at, deadline_at, ended_at, extensions_accepted, owner, epoch, version
FROM chat_sessions
WHERE CASE %(status)s::text WHEN 'living' THEN status <> 'ended' ELSE status = coalesce(%(status)s::text, status) END
  AND (%(cursor)s::uuid IS NULL
       OR (created_at, session_id) < (SELECT c.created_at, c.session_id FROM chat_sessions c WHERE c.session_id = %(cursor)s::uuid))
ORDER BY created_at DESC, session_id DESC
LIMIT %(limit)s

-- name: find_session
SELECT session_id, status, end_reason, customer_id, mitra_id, topic_sensitivity, duration_minutes, paid_amount, currency, created_at,
       started_at, expires_at, deadline_at, ended_at, extensions_accepted, owner, epoch, version,
       paid_ms, served_ms, refunded_ms, forfeited_ms, remaining_ms,
       (SELECT coalesce(max(seq), 0) FROM messages m WHERE m.session_id = chat_sessions.session_id) AS messages_count
FROM chat_sessions
WHERE session_id = %(session_id)s::uuid

-- name: list_timeline
SELECT version, epoch, at, event, from_status, to_status, cause, evidence
FROM session_timeline
WHERE session_id = %(session_id)s::uuid
ORDER BY version

-- name: list_payments
-- The session's own payment stands first, then those for extensions, whatever became of them.
SELECT payment_request_id, status, amount, currency, duration_minutes, is_extension, is_first_session_discount, session_id, failure_cause,
       created_at
FROM payment_requests
WHERE session_id = %(session_id)s::uuid
   OR payment_request_id = (SELECT s.payment_request_id FROM chat_sessions s WHERE s.session_id = %(session_id)s::uuid)
   OR payment_request_id IN (SELECT e.payment_request_id FROM session_extensions e WHERE e.session_id = %(session_id)s::uuid)
ORDER BY is_extension, created_at, payment_request_id

-- name: list_extensions
SELECT extension_id, session_id, status, duration_minutes, price, requested_at, deadline_at, payment_request_id, currency,
       default_action_on_timeout, responded_at, decided_by
FROM session_extensions
WHERE session_id = %(session_id)s::uuid
ORDER BY requested_at, extension_id

-- name: list_ledger
SELECT transaction_id, payment_request_id, type, amount, currency, duration_minutes, at
FROM customer_transactions
WHERE session_id = %(session_id)s::uuid
ORDER BY at, transaction_id

-- name: list_session_refunds
SELECT refund_id, payment_request_id, session_id, customer_id, kind, cause, amount, currency, refunded_ms, status, created_at, delivered_at
FROM refunds
WHERE session_id = %(session_id)s::uuid
   OR payment_request_id = (SELECT s.payment_request_id FROM chat_sessions s WHERE s.session_id = %(session_id)s::uuid)
ORDER BY created_at, refund_id

-- name: list_refunds
SELECT refund_id, payment_request_id, session_id, customer_id, kind, cause, amount, currency, refunded_ms, status, created_at, delivered_at
FROM refunds
WHERE status = coalesce(%(status)s::text, status)
  AND (%(cursor)s::uuid IS NULL
       OR (created_at, refund_id) < (SELECT c.created_at, c.refund_id FROM refunds c WHERE c.refund_id = %(cursor)s::uuid))
ORDER BY created_at DESC, refund_id DESC
LIMIT %(limit)s

-- name: list_failures
-- Of searches only. What became of an extension stands in its own row, with who decided.
SELECT failure_id, cause, pairing_id, session_id, extension_id, customer_id, mitra_id, evidence, at
FROM pairing_failures
WHERE extension_id IS NULL AND failure_id < coalesce(%(cursor)s::bigint, 9223372036854775807)
ORDER BY failure_id DESC
LIMIT %(limit)s

-- name: record_attempt
INSERT INTO operator_actions (operator, action, subject, details, outcome, trace_id)
VALUES (%(operator)s, %(action)s, %(subject)s, %(details)s::jsonb, 'attempted', %(trace_id)s)
RETURNING action_id

-- name: record_outcome
-- Once: what is done or refused stays so.
UPDATE operator_actions SET outcome = CASE WHEN %(code)s::text IS NULL THEN 'done' ELSE 'refused' END, code = %(code)s::text
WHERE action_id = %(action_id)s AND outcome = 'attempted'

-- name: record_refusal
-- One row for equal ones of a minute, with the moment and the trace of the first. Whoever makes up ids has so many of them in a minute,
-- and the rest are counted together.
WITH this AS (SELECT date_trunc('minute', clock_timestamp(), 'UTC') AS minute)
INSERT INTO operator_actions (operator, action, subject, outcome, code, trace_id, counted_in)
SELECT %(operator)s, %(action)s,
       CASE WHEN (SELECT count(*) FROM operator_actions o WHERE o.counted_in = this.minute AND o.operator = %(operator)s) < %(most)s
            THEN %(subject)s ELSE %(others)s END,
       'refused', %(code)s, %(trace_id)s, this.minute
FROM this
ON CONFLICT (counted_in, operator, action, subject, code) WHERE counted_in IS NOT NULL
DO UPDATE SET times = operator_actions.times + 1
