-- What the deadlines of a measurement need: living sessions whose paid time ends one after the other, and when each deadline was acted upon.

-- name: spread_ends
-- Session k of n ends after `lead_ms` and its part of `span_ms`: the clock is moved back as a whole, so that no account changes.
WITH ranked AS (
    SELECT session_id, row_number() OVER (ORDER BY session_id) - 1 AS k, count(*) OVER () AS n, expires_at AS was FROM chat_sessions
), moved AS (
    SELECT session_id, was - (now() + (%(lead_ms)s + %(span_ms)s * k / n) * interval '1 millisecond') AS back FROM ranked
)
UPDATE chat_sessions s SET started_at = started_at - back, running_since = running_since - back, expires_at = expires_at - back,
    deadline_at = deadline_at - back
FROM moved WHERE moved.session_id = s.session_id

-- name: count_living
SELECT count(*) AS count FROM chat_sessions WHERE status <> 'ended'

-- name: list_reached
SELECT session_id, from_status, at, (evidence ->> 'deadline_at')::timestamptz AS deadline_at
FROM session_timeline WHERE event = 'deadline_reached' ORDER BY at
