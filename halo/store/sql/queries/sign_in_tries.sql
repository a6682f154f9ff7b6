-- Tries to sign in, of which each account and each address has five in a quarter of an hour.

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

-- name: delete_old
DELETE FROM sign_in_tries WHERE at < at(%(before)s)
