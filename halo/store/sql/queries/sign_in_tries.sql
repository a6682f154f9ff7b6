-- Tries to sign in, of which each account has five in a quarter of an hour, and each address as many as `halo/store/sign_in_tries.py` says.

-- name: lock
-- One after the other, so that many at once cannot all see room for one more.
SELECT pg_advisory_xact_lock(%(lock_class)s::int, %(lock_key)s::int)

-- name: count
-- How many there were in the window, and when the oldest of the newest %(most)s was: with that one gone, there is room again.
SELECT count(*) AS tries, min(at) AS oldest
FROM (SELECT at FROM sign_in_tries WHERE subject = %(subject)s AND at > at(%(since)s) ORDER BY at DESC LIMIT %(most)s) newest

-- name: add
INSERT INTO sign_in_tries (subject, at) VALUES (%(subject)s, at(%(at)s)) RETURNING try_id

-- name: give_back
DELETE FROM sign_in_tries WHERE try_id = ANY (%(try_ids)s::bigint[])

-- name: note_refused
-- In the trail, one row for a name and a minute. A name that nobody has is not kept: it may be a password in the wrong field, and there
-- are more of them than rows should be.
INSERT INTO operator_actions (operator, action, subject, outcome, code, trace_id, counted_in)
VALUES (%(stranger)s, 'sign_in', coalesce((SELECT o.name FROM operators o WHERE o.name = %(name)s), %(unknown)s), 'refused', %(code)s,
        %(trace_id)s, date_trunc('minute', clock_timestamp(), 'UTC'))
ON CONFLICT (counted_in, operator, action, subject, code) WHERE counted_in IS NOT NULL
DO UPDATE SET times = operator_actions.times + 1

-- name: delete_old
DELETE FROM sign_in_tries WHERE at < at(%(before)s)
