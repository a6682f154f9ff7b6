-- What the status page reads beyond the operators' API. Every list is bounded by `limit` and continues after the row that `cursor` names.

-- name: load_census
-- Each mitra is in exactly one of the five. A heartbeat reaches Postgres once a cycle of its mirror, so `heard_since` is that much earlier.
-- What waits does so since its first attempt: `due_at` moves with each one that is refused.
WITH living AS (SELECT mitra_id, count(*) AS sessions FROM chat_sessions WHERE status <> 'ended' GROUP BY mitra_id),
seen AS (
    SELECT CASE WHEN NOT m.is_active THEN 'deactivated'
                WHEN NOT m.is_online THEN 'offline'
                WHEN m.last_heartbeat_at IS NULL OR m.last_heartbeat_at < at(%(heard_since)s) THEN 'silent'
                WHEN coalesce(l.sessions, 0) >= m.max_sessions THEN 'full'
                ELSE 'available' END AS state
    FROM mitras m LEFT JOIN living l ON l.mitra_id = m.mitra_id)
SELECT count(*) FILTER (WHERE state = 'available') AS available, count(*) FILTER (WHERE state = 'full') AS full,
       count(*) FILTER (WHERE state = 'silent') AS silent, count(*) FILTER (WHERE state = 'offline') AS offline,
       count(*) FILTER (WHERE state = 'deactivated') AS deactivated,
       (SELECT coalesce(jsonb_object_agg(f.cause, f.count), '{}')
        FROM (SELECT cause, count(*) AS count FROM pairing_failures
              WHERE at > at(%(now)s) - interval '24 hours' AND extension_id IS NULL GROUP BY cause) f) AS failures,
       (SELECT coalesce(jsonb_agg(jsonb_build_object('kind', w.kind, 'status', w.status, 'count', w.count, 'oldest_due_at', w.oldest_due_at)
                                  ORDER BY w.kind, w.status), '[]')
        FROM (SELECT kind, status, count(*) AS count,
                     floor(extract(epoch FROM min(least(due_at, first_attempt_at)) FILTER (WHERE status = 'due')) * 1000)::bigint AS oldest_due_at
              FROM outbox WHERE status IN ('due', 'dead') GROUP BY kind, status) w) AS outbox
FROM seen

-- name: list_sessions
SELECT session_id, status, end_reason, customer_id, mitra_id, topic_sensitivity, duration_minutes, paid_amount, currency, created_at,
       started_at, expires_at, deadline_at, ended_at, extensions_accepted, owner, epoch, version
FROM chat_sessions
WHERE CASE %(status)s::text WHEN 'living' THEN status <> 'ended' ELSE status = coalesce(%(status)s::text, status) END
  AND (%(end_reason)s::text IS NULL OR end_reason = %(end_reason)s::text)
  AND (%(topic)s::text IS NULL OR topic_sensitivity = %(topic)s::text)
  AND (%(since)s::bigint IS NULL OR created_at >= at(%(since)s::bigint))
  AND (%(cursor)s::uuid IS NULL
       OR (created_at, session_id) < (SELECT c.created_at, c.session_id FROM chat_sessions c WHERE c.session_id = %(cursor)s::uuid))
ORDER BY created_at DESC, session_id DESC
LIMIT %(limit)s

-- name: find_sessions
-- By the beginning of an id: of its own, its customer's, its mitra's, or of something that belongs to it; each by its index.
WITH found AS (
    SELECT session_id FROM chat_sessions WHERE session_id BETWEEN %(first)s::uuid AND %(last)s::uuid
    UNION SELECT session_id FROM chat_sessions WHERE customer_id BETWEEN %(first)s::uuid AND %(last)s::uuid
    UNION SELECT session_id FROM chat_sessions WHERE mitra_id BETWEEN %(first)s::uuid AND %(last)s::uuid
    UNION SELECT session_id FROM chat_sessions WHERE payment_request_id BETWEEN %(first)s::uuid AND %(last)s::uuid
    UNION SELECT session_id FROM payment_requests WHERE payment_request_id BETWEEN %(first)s::uuid AND %(last)s::uuid
    UNION SELECT session_id FROM session_extensions WHERE extension_id BETWEEN %(first)s::uuid AND %(last)s::uuid
    UNION SELECT coalesce(r.session_id, s.session_id) FROM refunds r LEFT JOIN chat_sessions s USING (payment_request_id)
          WHERE r.refund_id BETWEEN %(first)s::uuid AND %(last)s::uuid
    UNION SELECT coalesce(session_id, rerouted_session_id) FROM pairings WHERE pairing_id BETWEEN %(first)s::uuid AND %(last)s::uuid
    UNION SELECT coalesce(p.session_id, p.rerouted_session_id) FROM offers o JOIN pairings p USING (pairing_id)
          WHERE o.offer_id BETWEEN %(first)s::uuid AND %(last)s::uuid)
SELECT s.session_id, status, end_reason, customer_id, mitra_id, topic_sensitivity, duration_minutes, paid_amount, currency, created_at,
       started_at, expires_at, deadline_at, ended_at, extensions_accepted, owner, epoch, version
FROM chat_sessions s JOIN found ON found.session_id = s.session_id
WHERE CASE %(status)s::text WHEN 'living' THEN status <> 'ended' ELSE status = coalesce(%(status)s::text, status) END
  AND (%(end_reason)s::text IS NULL OR end_reason = %(end_reason)s::text)
  AND (%(topic)s::text IS NULL OR topic_sensitivity = %(topic)s::text)
  AND (%(since)s::bigint IS NULL OR created_at >= at(%(since)s::bigint))
  AND (%(cursor)s::uuid IS NULL
       OR (created_at, s.session_id) < (SELECT c.created_at, c.session_id FROM chat_sessions c WHERE c.session_id = %(cursor)s::uuid))
ORDER BY created_at DESC, s.session_id DESC
LIMIT %(limit)s

-- name: list_things
-- What an id is that is none of a session or a customer, with or without a session: by the primary keys, so many of each kind at most.
(SELECT 'payment' AS kind, payment_request_id AS thing_id, p.status, p.customer_id, NULL::uuid AS mitra_id,
        coalesce(p.session_id, s.session_id) AS session_id
 FROM payment_requests p LEFT JOIN chat_sessions s USING (payment_request_id)
 WHERE payment_request_id BETWEEN %(first)s::uuid AND %(last)s::uuid ORDER BY payment_request_id LIMIT %(limit)s)
UNION ALL
(SELECT 'refund', refund_id, r.status, r.customer_id, NULL, coalesce(r.session_id, s.session_id)
 FROM refunds r LEFT JOIN chat_sessions s USING (payment_request_id)
 WHERE refund_id BETWEEN %(first)s::uuid AND %(last)s::uuid ORDER BY refund_id LIMIT %(limit)s)
UNION ALL
(SELECT 'extension', extension_id, e.status, s.customer_id, s.mitra_id, e.session_id
 FROM session_extensions e JOIN chat_sessions s USING (session_id)
 WHERE extension_id BETWEEN %(first)s::uuid AND %(last)s::uuid ORDER BY extension_id LIMIT %(limit)s)
UNION ALL
(SELECT 'search', pairing_id, status, customer_id, NULL, coalesce(session_id, rerouted_session_id)
 FROM pairings WHERE pairing_id BETWEEN %(first)s::uuid AND %(last)s::uuid ORDER BY pairing_id LIMIT %(limit)s)
UNION ALL
(SELECT 'offer', offer_id, o.status, p.customer_id, o.mitra_id, coalesce(p.session_id, p.rerouted_session_id)
 FROM offers o JOIN pairings p USING (pairing_id)
 WHERE offer_id BETWEEN %(first)s::uuid AND %(last)s::uuid ORDER BY offer_id LIMIT %(limit)s)
UNION ALL
(SELECT 'mitra', mitra_id, CASE WHEN NOT is_active THEN 'deactivated' WHEN is_online THEN 'online' ELSE 'offline' END, NULL, mitra_id, NULL
 FROM mitras WHERE mitra_id BETWEEN %(first)s::uuid AND %(last)s::uuid ORDER BY mitra_id LIMIT %(limit)s)

-- name: list_mitras
WITH seen AS (
    SELECT m.mitra_id, m.display_name, m.last_heartbeat_at, m.max_sessions, m.created_at, l.capacity,
           CASE WHEN NOT m.is_active THEN 'deactivated'
                WHEN NOT m.is_online THEN 'offline'
                WHEN m.last_heartbeat_at IS NULL OR m.last_heartbeat_at < at(%(heard_since)s) THEN 'silent'
                WHEN l.capacity >= m.max_sessions THEN 'full'
                ELSE 'available' END AS state
    FROM mitras m, LATERAL (SELECT count(*) AS capacity FROM chat_sessions s WHERE s.mitra_id = m.mitra_id AND s.status <> 'ended') l
    WHERE (%(cursor)s::uuid IS NULL OR m.mitra_id > %(cursor)s::uuid)
      AND (%(search)s::text IS NULL OR m.display_name ILIKE %(search)s::text OR m.mitra_id::text LIKE %(beginning)s::text))
SELECT mitra_id, display_name, state, last_heartbeat_at, capacity, max_sessions, created_at
FROM seen WHERE %(state)s::text IS NULL OR state = %(state)s::text
ORDER BY mitra_id
LIMIT %(limit)s

-- name: list_living_of
SELECT session_id, status, end_reason, customer_id, mitra_id, topic_sensitivity, duration_minutes, paid_amount, currency, created_at,
       started_at, expires_at, deadline_at, ended_at, extensions_accepted, owner, epoch, version
FROM chat_sessions
WHERE mitra_id = %(mitra_id)s::uuid AND status <> 'ended'
ORDER BY created_at, session_id
LIMIT %(limit)s

-- name: count_failures
SELECT cause AS name, NULL::text AS decided_by, count(*) FILTER (WHERE at > at(%(now)s) - interval '24 hours') AS day, count(*) AS week
FROM pairing_failures
WHERE at > at(%(now)s) - interval '7 days' AND extension_id IS NULL
GROUP BY cause ORDER BY week DESC, cause

-- name: list_failures
SELECT failure_id, cause, pairing_id, session_id, extension_id, customer_id, mitra_id, evidence, at
FROM pairing_failures
WHERE extension_id IS NULL AND (%(cause)s::text IS NULL OR cause = %(cause)s::text)
  AND failure_id < coalesce(%(cursor)s::bigint, 9223372036854775807)
ORDER BY failure_id DESC
LIMIT %(limit)s

-- name: count_outcomes
SELECT status AS name, decided_by, count(*) FILTER (WHERE responded_at > at(%(now)s) - interval '24 hours') AS day, count(*) AS week
FROM session_extensions
WHERE responded_at > at(%(now)s) - interval '7 days'
GROUP BY status, decided_by ORDER BY week DESC, status, decided_by

-- name: list_outcomes
SELECT e.extension_id, e.session_id, e.status, e.decided_by, e.duration_minutes, e.price, e.currency, e.requested_at, e.responded_at,
       f.failure_id
FROM session_extensions e LEFT JOIN pairing_failures f ON f.extension_id = e.extension_id
WHERE e.responded_at IS NOT NULL AND (%(status)s::text IS NULL OR e.status = %(status)s::text)
  AND (%(cursor)s::uuid IS NULL
       OR (e.responded_at, e.extension_id) < (SELECT c.responded_at, c.extension_id FROM session_extensions c
                                              WHERE c.extension_id = %(cursor)s::uuid))
ORDER BY e.responded_at DESC, e.extension_id DESC
LIMIT %(limit)s

-- name: sum_refunds
SELECT status, currency, count(*) AS count, sum(amount)::bigint AS amount
FROM (SELECT status, currency, amount FROM refunds WHERE status = 'due'
      UNION ALL SELECT status, currency, amount FROM refunds WHERE status = 'dead'
      UNION ALL SELECT status, currency, amount FROM refunds WHERE delivered_at > at(%(now)s) - interval '30 days' AND status = 'delivered') r
GROUP BY status, currency ORDER BY status, currency

-- name: list_actions
SELECT action_id, operator, action, subject, details, at, outcome, code, times, trace_id
FROM operator_actions
WHERE (%(operator)s::text IS NULL OR operator = %(operator)s::text) AND (%(subject)s::text IS NULL OR subject = %(subject)s::text)
  AND (%(outcome)s::text IS NULL OR outcome = %(outcome)s::text)
  AND action_id < coalesce(%(cursor)s::bigint, 9223372036854775807)
ORDER BY action_id DESC
LIMIT %(limit)s

-- name: list_watchdog_actions
-- What was done to the session itself, and to a request, a payment, a refund or a search of it.
SELECT action_id, operator, action, subject, details, at, outcome, code, times, trace_id
FROM operator_actions
WHERE operator = 'watchdog' AND (details ->> 'session_id' = %(session_id)s::text OR subject = %(session_id)s::text)
ORDER BY action_id DESC
LIMIT %(limit)s

-- name: list_config_steps
-- The value before a change is the one of the last change before it that named the key.
SELECT h.version, h.changed_by, h.changed_at, entry.key, entry.value AS new,
       (SELECT b.changes -> entry.key FROM live_config_history b
        WHERE b.version < h.version AND b.changes ? entry.key ORDER BY b.version DESC LIMIT 1) AS old
FROM (SELECT * FROM live_config_history ORDER BY version DESC LIMIT %(limit)s) h, jsonb_each(h.changes) AS entry (key, value)
ORDER BY h.version DESC, entry.key
