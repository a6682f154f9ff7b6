-- Steps: every write of a living session is guarded by its status, epoch, version and owner (S3); no row means overtaken.

-- name: insert_session
INSERT INTO chat_sessions (
    session_id, customer_id, mitra_id, payment_request_id, topic_sensitivity, status, duration_minutes, minute_ms, price, currency,
    paid_amount, created_at, started_at, running_since, expires_at, deadline_at, paid_ms, served_ms, refunded_ms, forfeited_ms,
    remaining_ms, owner, epoch, version)
VALUES (
    %(session_id)s, %(customer_id)s, %(mitra_id)s, %(payment_request_id)s, %(topic_sensitivity)s, %(status)s, %(duration_minutes)s,
    %(minute_ms)s, %(price)s, %(currency)s, %(paid_amount)s, at(%(at)s), at(%(started_at)s), at(%(running_since)s), at(%(expires_at)s),
    at(%(deadline_at)s), %(paid_ms)s, %(served_ms)s, %(refunded_ms)s, %(forfeited_ms)s, %(remaining_ms)s, %(owner)s, %(epoch)s, %(version)s)

-- name: step_session
UPDATE chat_sessions SET
    mitra_id = %(mitra_id)s, former_mitra_ids = %(former_mitra_ids)s::uuid[], status = %(status)s, end_reason = %(end_reason)s, duration_minutes = %(duration_minutes)s,
    paid_amount = %(paid_amount)s, started_at = at(%(started_at)s), running_since = at(%(running_since)s), expires_at = at(%(expires_at)s),
    deadline_at = at(%(deadline_at)s), ended_at = CASE WHEN %(status)s = 'ended' THEN at(%(at)s) END, paid_ms = %(paid_ms)s,
    served_ms = %(served_ms)s, refunded_ms = %(refunded_ms)s, forfeited_ms = %(forfeited_ms)s, remaining_ms = %(remaining_ms)s,
    grace_left_ms = %(grace_left_ms)s, extensions_accepted = %(extensions_accepted)s, version = %(version)s, updated_at = at(%(at)s)
WHERE session_id = %(session_id)s AND status = %(from_status)s AND epoch = %(epoch)s AND version = %(from_version)s AND owner = %(owner)s

-- name: insert_timeline
INSERT INTO session_timeline (session_id, version, epoch, at, event, from_status, to_status, cause, evidence)
VALUES (%(session_id)s, %(version)s, %(epoch)s, at(%(at)s), %(event)s, %(from_status)s, %(status)s, %(cause)s, %(evidence)s)

-- name: change_capacity
UPDATE mitras SET
    capacity_version = capacity_version + 1,
    idle_since = CASE WHEN EXISTS (SELECT FROM chat_sessions s WHERE s.mitra_id = mitras.mitra_id AND s.status <> 'ended')
                      THEN idle_since ELSE at(%(at)s) END
WHERE mitra_id = %(mitra_id)s

-- name: open_extension
WITH bound AS (
    UPDATE payment_requests SET session_id = %(session_id)s
    WHERE payment_request_id = %(payment_request_id)s AND status = 'confirmed' AND is_extension
      AND (session_id IS NULL OR session_id = %(session_id)s)
    RETURNING payment_request_id)
INSERT INTO session_extensions (
    extension_id, session_id, payment_request_id, status, duration_minutes, price, currency, requested_at, deadline_at, timeout_seconds,
    default_action_on_timeout, refusal_outcome, config_version)
SELECT %(extension_id)s, %(session_id)s, payment_request_id, 'pending', %(duration_minutes)s, %(price)s, %(currency)s, at(%(requested_at)s),
       at(%(deadline_at)s), %(timeout_seconds)s, %(default_action_on_timeout)s, %(refusal_outcome)s, %(config_version)s
FROM bound

-- name: resolve_extension
UPDATE session_extensions SET status = %(status)s, responded_at = at(%(at)s), decided_by = %(decided_by)s
WHERE extension_id = %(extension_id)s AND session_id = %(session_id)s AND status = 'pending'

-- name: cancel_pushes
UPDATE outbox SET status = 'cancelled' WHERE collapse_key = %(collapse_key)s AND status = 'due'

-- name: move_extension_deadline
UPDATE session_extensions SET deadline_at = at(%(deadline_at)s) WHERE extension_id = %(extension_id)s AND status = 'pending'

-- name: insert_failure
INSERT INTO pairing_failures (cause, session_id, extension_id, customer_id, mitra_id, evidence, at)
VALUES (%(cause)s, %(session_id)s, %(extension_id)s, %(customer_id)s, %(mitra_id)s, %(evidence)s, at(%(at)s))

-- name: insert_push
-- The newest of one key wins.
WITH superseded AS (
    UPDATE outbox SET status = 'cancelled', last_error = 'superseded', finished_at = at(%(at)s)
    WHERE collapse_key = %(collapse_key)s AND status = 'due')
INSERT INTO outbox (kind, user_id, session_id, template, payload, collapse_key, due_at, expires_at, receipt, told_by, traceparent)
VALUES ('push', %(user_id)s, %(session_id)s, %(template)s, %(payload)s, %(collapse_key)s, at(%(due_at)s), at(%(expires_at)s),
        %(receipt)s, %(told_by)s, %(traceparent)s)

-- name: credit_sessions
-- Many credits in one statement, guarded like any step: a restart may owe ten thousand sessions their downtime.
UPDATE chat_sessions s SET
    running_since = at(c.running_since), expires_at = at(c.expires_at), deadline_at = at(c.deadline_at), version = c.version, updated_at = at(%(at)s)
FROM unnest(%(session_ids)s::uuid[], %(epochs)s::bigint[], %(versions)s::bigint[], %(running_since)s::bigint[], %(expires_at)s::bigint[],
            %(deadline_at)s::bigint[]) AS c (session_id, epoch, version, running_since, expires_at, deadline_at)
WHERE s.session_id = c.session_id AND s.epoch = c.epoch AND s.version = c.version - 1 AND s.owner = %(owner)s AND s.status <> 'ended'

-- name: credit_timelines
INSERT INTO session_timeline (session_id, version, epoch, at, event, from_status, to_status, cause, evidence)
SELECT c.session_id, c.version, c.epoch, at(%(at)s), %(event)s, c.status, c.status, %(cause)s, c.evidence::jsonb
FROM unnest(%(session_ids)s::uuid[], %(epochs)s::bigint[], %(versions)s::bigint[], %(statuses)s::text[], %(evidences)s::text[])
     AS c (session_id, epoch, version, status, evidence)

-- name: credit_extensions
UPDATE session_extensions e SET deadline_at = at(c.deadline_at)
FROM unnest(%(session_ids)s::uuid[], %(deadline_at)s::bigint[]) AS c (session_id, deadline_at)
WHERE e.session_id = c.session_id AND e.status = 'pending'
