-- The outbox, as its senders see it. `attempts` is the fence: whoever has lost its claim to a later one changes nothing any more.

-- name: find_next_due
-- The same rows that `claim` would take. What another node has told to a socket is its own for a while: only it knows whether it was heard.
SELECT due_at FROM outbox
WHERE status = 'due' AND kind = %(kind)s AND (claimed_until IS NULL OR claimed_until <= at(%(now)s))
  AND (told_by IS NULL OR told_by = %(node_id)s::uuid OR due_at <= at(%(others_before)s))
ORDER BY due_at LIMIT 1

-- name: claim
-- Two senders at once never take one row: what one has locked the other passes over, and afterwards the lease says whose it is.
WITH ripe AS (
    SELECT outbox_id FROM outbox
    WHERE status = 'due' AND kind = %(kind)s AND due_at <= at(%(now)s) AND (claimed_until IS NULL OR claimed_until <= at(%(now)s))
      AND (told_by IS NULL OR told_by = %(node_id)s::uuid OR due_at <= at(%(others_before)s))
    ORDER BY due_at LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED),
claimed AS (
    UPDATE outbox o SET
        status = CASE WHEN o.expires_at <= at(%(now)s) THEN 'expired' ELSE 'due' END,
        finished_at = CASE WHEN o.expires_at <= at(%(now)s) THEN at(%(now)s) END,
        claimed_until = at(%(claimed_until)s), attempts = o.attempts + 1, first_attempt_at = coalesce(o.first_attempt_at, at(%(now)s))
    FROM ripe WHERE o.outbox_id = ripe.outbox_id
    RETURNING o.*)
SELECT c.outbox_id, c.kind, c.status, c.user_id, c.template, c.payload, c.collapse_key, c.receipt, c.told_by, c.attempts, c.attempts_forgiven,
       c.first_attempt_at, c.expires_at, c.session_id AS about_session_id, c.traceparent, c.reached::text[] AS reached,
       (SELECT coalesce(jsonb_agg(jsonb_build_array(a.auth_session_id, a.push_token, a.locale) ORDER BY a.created_at), '[]')
        FROM auth_sessions a
        WHERE c.kind = 'push' AND a.user_id = c.user_id AND a.push_token IS NOT NULL AND a.revoked_at IS NULL AND a.expires_at > at(%(now)s)
       ) AS devices,
       r.refund_id, r.payment_request_id, r.session_id, r.kind AS refund_kind, r.cause, r.amount, r.currency, r.created_at AS refund_created_at,
       p.provider_ref
FROM claimed c
LEFT JOIN refunds r ON c.kind = 'refund' AND r.refund_id = (c.payload->>'refund_id')::uuid
LEFT JOIN payment_requests p ON p.payment_request_id = r.payment_request_id
ORDER BY c.due_at

-- name: record
-- What became of many claims; a refund and its row move together. Rows that a step has locked are passed over, and are the answer.
WITH done AS (
    SELECT * FROM unnest(%(outbox_ids)s::uuid[], %(attempts)s::integer[], %(statuses)s::text[], %(due_ats)s::bigint[], %(errors)s::text[],
                         %(reached)s::text[])
        AS d (outbox_id, attempts, status, due_at, error, reached)),
held AS (
    SELECT o.outbox_id FROM outbox o JOIN done d ON o.outbox_id = d.outbox_id AND o.attempts = d.attempts
    WHERE o.status = 'due' FOR UPDATE OF o SKIP LOCKED),
moved AS (
    UPDATE outbox o SET
        status = d.status, due_at = coalesce(at(d.due_at), o.due_at), claimed_until = NULL, last_error = d.error,
        reached = o.reached || d.reached::uuid[], finished_at = CASE WHEN d.status <> 'due' THEN at(%(now)s) END
    FROM done d JOIN held ON held.outbox_id = d.outbox_id
    WHERE o.outbox_id = d.outbox_id
    RETURNING o.outbox_id, o.kind, o.status, o.payload),
refunded AS (
    UPDATE refunds r SET
        status = CASE m.status WHEN 'sent' THEN 'delivered' ELSE 'dead' END, delivered_at = CASE m.status WHEN 'sent' THEN at(%(now)s) END
    FROM moved m
    WHERE m.kind = 'refund' AND m.status IN ('sent', 'dead') AND r.refund_id = (m.payload->>'refund_id')::uuid AND r.status = 'due')
SELECT o.outbox_id FROM outbox o JOIN done d ON o.outbox_id = d.outbox_id AND o.attempts = d.attempts
WHERE o.status = 'due' AND NOT EXISTS (SELECT FROM moved WHERE moved.outbox_id = o.outbox_id)

-- name: drop_tokens
-- A token that its provider knows no more goes wherever it stands.
UPDATE auth_sessions SET push_token = NULL WHERE push_token = ANY(%(tokens)s::text[])

-- name: count_waiting
-- A row that was put off is as late as at its first attempt: a provider that is away must not look as if all came due a moment ago.
SELECT kind, status, count(*) AS count, min(least(due_at, first_attempt_at)) FILTER (WHERE status = 'due') AS oldest_due_at
FROM outbox WHERE status IN ('due', 'dead') GROUP BY kind, status

-- name: list_dead
-- Refunds before pushes (`kind` backwards): money that is owed is not looked for behind every push that a wrong key has killed.
SELECT outbox_id, kind, user_id, session_id, template, attempts, last_error, created_at, finished_at
FROM outbox
WHERE status = 'dead' AND (%(kind)s::text IS NULL OR kind = %(kind)s::text)
  AND (%(cursor)s::uuid IS NULL
       OR (kind, created_at, outbox_id) < (SELECT c.kind, c.created_at, c.outbox_id FROM outbox c WHERE c.outbox_id = %(cursor)s::uuid))
ORDER BY kind DESC, created_at DESC, outbox_id DESC
LIMIT %(limit)s

-- name: find_status
SELECT status FROM outbox WHERE outbox_id = %(outbox_id)s::uuid

-- name: replay
-- The row, its refund and the trail of who did it, or none of them.
WITH revived AS (
    UPDATE outbox SET status = 'due', due_at = at(%(at)s), attempts_forgiven = attempts, first_attempt_at = NULL, claimed_until = NULL,
                      finished_at = NULL
    WHERE outbox_id = %(outbox_id)s::uuid AND status = 'dead' AND (expires_at IS NULL OR expires_at > at(%(at)s))
    RETURNING outbox_id, kind, template, attempts, last_error, payload),
refunded AS (
    UPDATE refunds SET status = 'due'
    FROM revived v WHERE v.kind = 'refund' AND refund_id = (v.payload->>'refund_id')::uuid AND refunds.status = 'dead')
INSERT INTO operator_actions (operator, action, subject, details, trace_id)
SELECT %(operator)s, 'replay_outbox', outbox_id::text,
       jsonb_build_object('kind', kind, 'template', template, 'attempts', attempts, 'last_error', last_error), %(trace_id)s
FROM revived
