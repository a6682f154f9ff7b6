-- Sessions: every write of a living session is guarded by its status, epoch and version (S3); no row means overtaken.

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
    mitra_id = %(mitra_id)s, status = %(status)s, end_reason = %(end_reason)s, duration_minutes = %(duration_minutes)s,
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

-- name: insert_time_left_refund
WITH refund AS (
    INSERT INTO refunds (payment_request_id, session_id, customer_id, kind, cause, amount, currency, refunded_ms, created_at)
    SELECT payment_request_id, %(session_id)s, customer_id, 'time_left', %(cause)s, %(amount)s, %(currency)s, %(refunded_ms)s, at(%(at)s)
    FROM payment_requests WHERE payment_request_id = %(payment_request_id)s
    RETURNING refund_id, customer_id)
INSERT INTO outbox (kind, user_id, session_id, template, payload, collapse_key, due_at)
SELECT 'refund', customer_id, %(session_id)s, 'refund_due', jsonb_build_object('refund_id', refund_id), 'refund:' || refund_id, at(%(at)s)
FROM refund

-- name: insert_failure
INSERT INTO pairing_failures (cause, session_id, extension_id, customer_id, mitra_id, evidence, at)
VALUES (%(cause)s, %(session_id)s, %(extension_id)s, %(customer_id)s, %(mitra_id)s, %(evidence)s, at(%(at)s))

-- name: insert_push
INSERT INTO outbox (kind, user_id, session_id, template, payload, collapse_key, due_at, expires_at)
VALUES ('push', %(user_id)s, %(session_id)s, %(template)s, %(payload)s, %(collapse_key)s, at(%(due_at)s), at(%(expires_at)s))

-- name: list_sessions
SELECT s.*, e.extension_id AS e_extension_id, e.payment_request_id AS e_payment_request_id, e.duration_minutes AS e_duration_minutes,
       e.price AS e_price, e.currency AS e_currency, e.requested_at AS e_requested_at, e.deadline_at AS e_deadline_at,
       e.timeout_seconds AS e_timeout_seconds, e.default_action_on_timeout AS e_default_action_on_timeout,
       e.refusal_outcome AS e_refusal_outcome, e.config_version AS e_config_version,
       coalesce((SELECT max(m.seq) FROM messages m WHERE m.session_id = s.session_id), 0) AS last_seq
FROM chat_sessions s LEFT JOIN session_extensions e ON e.session_id = s.session_id AND e.status = 'pending'
WHERE s.session_id = ANY(%(session_ids)s::uuid[])

-- name: take_up
WITH orphans AS (
    SELECT s.session_id, greatest(n.alive_at, s.updated_at) AS last_kept_at
    FROM chat_sessions s LEFT JOIN nodes n ON n.node_id = s.owner
    WHERE s.status <> 'ended'
      AND (s.owner IS NULL OR n.node_id IS NULL OR (s.owner <> %(owner)s AND NOT EXISTS (
            SELECT FROM pg_locks l
            WHERE l.locktype = 'advisory' AND l.classid = %(lock_class)s AND l.objid = n.lock_key AND l.granted
              AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))))
    ORDER BY s.deadline_at
    LIMIT %(limit)s
    FOR UPDATE OF s SKIP LOCKED)
UPDATE chat_sessions s SET owner = %(owner)s, epoch = s.epoch + 1, updated_at = o.last_kept_at
FROM orphans o WHERE o.session_id = s.session_id
RETURNING s.session_id, o.last_kept_at

-- name: count_own
SELECT count(*) AS count FROM chat_sessions WHERE owner = %(owner)s AND status <> 'ended'

-- name: list_own
SELECT session_id, epoch, updated_at AS last_kept_at FROM chat_sessions WHERE owner = %(owner)s AND status <> 'ended'

-- name: list_living_of
SELECT session_id FROM chat_sessions WHERE (customer_id = %(user_id)s OR mitra_id = %(user_id)s) AND status <> 'ended' ORDER BY created_at

-- name: list_without_active_mitra
SELECT s.session_id FROM mitras m JOIN chat_sessions s ON s.mitra_id = m.mitra_id
WHERE s.status <> 'ended' AND s.owner = %(owner)s AND NOT m.is_active

-- name: load_extension
SELECT * FROM session_extensions WHERE extension_id = %(extension_id)s AND session_id = %(session_id)s

-- name: list_messages
SELECT seq, sender, id, body, at FROM messages WHERE session_id = %(session_id)s AND seq > %(after_seq)s ORDER BY seq LIMIT %(limit)s

-- name: list_message_ids
SELECT seq, sender, id FROM messages WHERE session_id = %(session_id)s AND seq > %(after_seq)s ORDER BY seq LIMIT %(limit)s

-- name: find_message
SELECT seq, body, at FROM messages WHERE session_id = %(session_id)s AND sender = %(sender)s AND id = %(id)s

-- name: load_capacity
SELECT m.capacity_version AS version, (SELECT count(*) FROM chat_sessions s WHERE s.mitra_id = m.mitra_id AND s.status <> 'ended') AS count
FROM mitras m WHERE m.mitra_id = %(mitra_id)s

-- name: list_timeline
SELECT version, epoch, at, event, from_status, to_status, cause, evidence FROM session_timeline WHERE session_id = %(session_id)s ORDER BY version
