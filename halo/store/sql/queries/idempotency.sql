-- Idempotency keys. Postgres' clock decides which request is too old to be still running, because several nodes ask.

-- name: begin
-- Takes the key when it is new, or when whoever took it with the same body has not finished for so long that it must have died.
INSERT INTO idempotency_keys (user_id, route, key, body_hash, held_by, created_at)
VALUES (%(user_id)s, %(route)s, %(key)s, %(body_hash)s, %(held_by)s, clock_timestamp())
ON CONFLICT (user_id, route, key) DO UPDATE SET held_by = EXCLUDED.held_by, created_at = EXCLUDED.created_at
WHERE idempotency_keys.status IS NULL AND idempotency_keys.body_hash = EXCLUDED.body_hash
  AND idempotency_keys.created_at < EXCLUDED.created_at - %(takeover_ms)s::bigint * interval '1 millisecond'

-- name: find
SELECT body_hash = %(body_hash)s AS is_same_body, status, answer
FROM idempotency_keys WHERE user_id = %(user_id)s AND route = %(route)s AND key = %(key)s

-- name: finish
UPDATE idempotency_keys SET status = %(status)s, answer = %(answer)s
WHERE user_id = %(user_id)s AND route = %(route)s AND key = %(key)s AND status IS NULL AND held_by = %(held_by)s

-- name: abandon
DELETE FROM idempotency_keys
WHERE user_id = %(user_id)s AND route = %(route)s AND key = %(key)s AND status IS NULL AND held_by = %(held_by)s

-- name: delete_old
DELETE FROM idempotency_keys WHERE created_at < at(%(before)s)
