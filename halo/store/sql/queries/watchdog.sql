-- The watchdog: what only its queues and the mirror know, and its repairs. Each repair is guarded by the breach that it mends and writes its
-- line of `operator_actions` in the same transaction, only if it mended something: two watchdogs at once repair once.

-- name: limit_statements
-- Windows have no statistics: taken for small, two of them would be compared row by row. Their own searches by index stay nested loops.
SELECT set_config('statement_timeout', %(milliseconds)s::text, false), set_config('max_parallel_workers_per_gather', '0', false),
       set_config('jit', 'off', false), set_config('enable_nestloop', 'off', false)

-- name: refunds_are_delivered
-- Given up after a day of refusals, or refused for good: nobody tries again by itself.
SELECT refund_id::text AS subject FROM refunds WHERE status = 'dead' ORDER BY created_at LIMIT %(limit)s

-- name: refunds_have_an_address
SELECT refund_id::text AS subject FROM refunds WHERE status = 'due' AND NOT %(has_refund_url)s::boolean ORDER BY created_at LIMIT %(limit)s

-- name: refunds_are_sent
-- Since its first attempt: each that is refused moves `due_at`, and a provider that refuses for a day would never be found by that.
-- Refunds without an address have an alarm of their own.
SELECT coalesce(payload ->> 'refund_id', outbox_id::text) AS subject FROM outbox
WHERE status = 'due' AND kind = 'refund' AND least(due_at, first_attempt_at) < at(%(now)s) - interval '5 minutes' AND %(has_refund_url)s::boolean
ORDER BY least(due_at, first_attempt_at) LIMIT %(limit)s

-- name: outbox_is_sent
-- Likewise: a push that is refused again and again waits since its first attempt.
SELECT outbox_id::text AS subject FROM outbox
WHERE status = 'due' AND kind <> 'refund' AND least(due_at, first_attempt_at) < at(%(now)s) - interval '5 minutes'
ORDER BY least(due_at, first_attempt_at) LIMIT %(limit)s

-- name: list_online_after
-- A page a round, in the order of their ids: all are looked at in turn, however many they are.
SELECT mitra_id FROM mitras WHERE is_online AND is_active AND mitra_id > %(after)s::uuid ORDER BY mitra_id LIMIT %(limit)s

-- name: list_standing_after
-- Whom the mirror must hold among those online or among the deactivated.
SELECT mitra_id, is_online AND is_active AS is_online, NOT is_active AS is_deactivated FROM mitras
WHERE (is_online OR NOT is_active) AND mitra_id > %(after)s::uuid ORDER BY mitra_id LIMIT %(limit)s

-- name: list_standing_of
-- Also of those whom Postgres does not know: they are nowhere.
SELECT asked.mitra_id, coalesce(m.is_online AND m.is_active, false) AS is_online, coalesce(NOT m.is_active, false) AS is_deactivated
FROM unnest(%(mitra_ids)s::uuid[]) AS asked (mitra_id) LEFT JOIN mitras m ON m.mitra_id = asked.mitra_id

-- name: find_undecided_payment
-- FOR SHARE of the session: it does not move meanwhile. An ended one never will.
SELECT p.payment_request_id, p.session_id, p.status FROM payment_requests p JOIN chat_sessions s ON s.session_id = p.session_id
WHERE p.payment_request_id = %(subject)s::uuid AND p.status IN ('pending', 'confirmed') AND s.status = 'ended'
FOR SHARE OF s

-- name: add_refund
-- The same rows that `fail_payment` of payments.sql writes; the subject is the payment or the extension that it was for.
WITH due AS (
    INSERT INTO refunds (payment_request_id, session_id, customer_id, kind, cause, amount, currency, created_at)
    SELECT p.payment_request_id,
           coalesce(p.session_id, (SELECT s.session_id FROM chat_sessions s WHERE s.payment_request_id = p.payment_request_id)),
           p.customer_id, 'payment_failed', p.failure_cause, p.amount, p.currency, at(%(at)s)
    FROM payment_requests p
    WHERE p.payment_request_id = coalesce((SELECT e.payment_request_id FROM session_extensions e WHERE e.extension_id = %(subject)s::uuid),
                                          %(subject)s::uuid)
      AND p.status = 'failed' AND p.confirmed_at IS NOT NULL
    ON CONFLICT (payment_request_id, kind) DO NOTHING
    RETURNING refund_id, payment_request_id, customer_id, session_id),
told AS (
    INSERT INTO outbox (kind, user_id, session_id, template, payload, collapse_key, due_at)
    SELECT 'refund', customer_id, session_id, 'refund_due', jsonb_build_object('refund_id', refund_id), 'refund:' || refund_id, at(%(at)s)
    FROM due)
SELECT payment_request_id, refund_id FROM due

-- name: find_stray_extension
SELECT e.extension_id, e.payment_request_id, s.status, s.version, s.epoch, s.customer_id, s.mitra_id
FROM chat_sessions s JOIN session_extensions e ON e.session_id = s.session_id AND e.status = 'pending'
WHERE s.session_id = %(subject)s::uuid AND s.status <> 'extending'
FOR NO KEY UPDATE OF s, e

-- name: cancel_extension
WITH quiet AS (UPDATE outbox SET status = 'cancelled' WHERE status = 'due' AND collapse_key = 'extension:' || %(extension_id)s::text),
told AS (
    INSERT INTO pairing_failures (cause, session_id, extension_id, customer_id, mitra_id, evidence, at)
    VALUES (%(cause)s, %(subject)s::uuid, %(extension_id)s::uuid, %(customer_id)s::uuid, %(mitra_id)s::uuid, '{"by": "watchdog"}', at(%(at)s))
    ON CONFLICT (extension_id) DO NOTHING)
UPDATE session_extensions SET status = 'cancelled', responded_at = at(%(at)s), decided_by = %(decided_by)s
WHERE extension_id = %(extension_id)s::uuid AND status = 'pending'

-- name: note_on_timeline
-- A living session moves one version on, so that its actor, which may still know what was cancelled, is overtaken and reads it anew.
WITH moved AS (
    UPDATE chat_sessions SET version = version + 1, updated_at = greatest(updated_at, at(%(at)s))
    WHERE session_id = %(subject)s::uuid AND status <> 'ended' AND version = %(version)s
    RETURNING session_id, version, epoch, status)
INSERT INTO session_timeline (session_id, version, epoch, at, event, from_status, to_status, cause, evidence)
SELECT session_id, version, epoch, at(%(at)s), 'watchdog_repaired', status, status, %(cause)s, %(evidence)s::jsonb FROM moved

-- name: reopen_search
-- Kept by the session's own node; whoever is first, one search a session is what the unique index allows.
INSERT INTO pairings (pairing_id, customer_id, payment_request_id, topic_sensitivity, wave, deadline_at, owner, created_at, rerouted_session_id)
SELECT gen_random_uuid(), s.customer_id, s.payment_request_id, s.topic_sensitivity, 0, at(%(at)s), s.owner, at(%(at)s), s.session_id
FROM chat_sessions s WHERE s.session_id = %(subject)s::uuid AND s.status = 'rerouting' AND s.deadline_at > at(%(at)s)
ON CONFLICT (rerouted_session_id) WHERE status = 'searching' DO NOTHING
RETURNING pairing_id

-- name: lock_stray_search
SELECT p.pairing_id FROM pairings p JOIN chat_sessions s ON s.session_id = p.rerouted_session_id
WHERE p.pairing_id = %(subject)s::uuid AND p.status = 'searching' AND s.status <> 'rerouting'
FOR NO KEY UPDATE OF p

-- name: record_repair
-- Whatever the subject is, the line names the session that it belongs to, if there is one: it is part of that session's story.
INSERT INTO operator_actions (operator, action, subject, details)
SELECT 'watchdog', %(action)s, %(subject)s::text,
       jsonb_strip_nulls(%(details)s::jsonb || jsonb_build_object('because', %(because)s::text, 'session_id', coalesce(
           (SELECT s.session_id FROM chat_sessions s WHERE s.session_id = %(subject)s::text::uuid),
           (SELECT e.session_id FROM session_extensions e WHERE e.extension_id = %(subject)s::text::uuid),
           (SELECT coalesce(p.session_id, (SELECT s.session_id FROM chat_sessions s WHERE s.payment_request_id = p.payment_request_id))
            FROM payment_requests p WHERE p.payment_request_id = %(subject)s::text::uuid),
           (SELECT coalesce(p.rerouted_session_id, p.session_id) FROM pairings p WHERE p.pairing_id = %(subject)s::text::uuid))))
