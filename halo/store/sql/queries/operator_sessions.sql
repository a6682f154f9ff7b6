-- Who is signed in on the status page. A session ends by sign-out, by a new password, after the idle time, and after twelve hours.

-- name: open
-- Only while that is the password still; the row is locked, so a change that is under way is waited for.
WITH owner AS (
    UPDATE operators SET signed_in_at = at(%(at)s) WHERE name = %(name)s AND password_hash = %(password_hash)s RETURNING name
), audit AS (
    INSERT INTO operator_actions (operator, action, subject, trace_id) SELECT name, 'sign_in', name, %(trace_id)s FROM owner
)
INSERT INTO operator_sessions (session_hash, name, opened_at, used_at)
SELECT %(session_hash)s, name, at(%(at)s), at(%(at)s) FROM owner
RETURNING name

-- name: find
SELECT o.name, o.role, s.used_at
FROM operator_sessions s JOIN operators o USING (name)
WHERE s.session_hash = %(session_hash)s AND s.used_at > at(%(idle_since)s) AND s.opened_at > at(%(opened_since)s)

-- name: touch
UPDATE operator_sessions SET used_at = at(%(at)s)
WHERE session_hash = %(session_hash)s AND used_at < at(%(at)s)

-- name: close
WITH closed AS (DELETE FROM operator_sessions WHERE session_hash = %(session_hash)s RETURNING name)
INSERT INTO operator_actions (operator, action, subject, trace_id) SELECT name, 'sign_out', name, %(trace_id)s FROM closed

-- name: delete_ended
DELETE FROM operator_sessions WHERE opened_at < at(%(before)s)
