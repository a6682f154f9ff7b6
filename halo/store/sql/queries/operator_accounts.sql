-- Operators' accounts and their one-time links.

-- name: find_password
SELECT password_hash FROM operators WHERE name = %(name)s

-- name: list
SELECT name, role, password_hash IS NOT NULL AS has_password, created_at, signed_in_at FROM operators ORDER BY name

-- name: add
INSERT INTO operators (name, role, password_hash, created_at) VALUES (%(name)s, %(role)s, %(password_hash)s, at(%(at)s))
ON CONFLICT (name) DO NOTHING

-- name: add_first
-- Nobody else may come in between: whoever holds the lock sees all who were added before.
INSERT INTO operators (name, role, password_hash, created_at)
SELECT %(name)s, %(role)s, %(password_hash)s, at(%(at)s) WHERE NOT EXISTS (SELECT FROM operators)
ON CONFLICT (name) DO NOTHING

-- name: lock
LOCK TABLE operators IN SHARE ROW EXCLUSIVE MODE

-- name: remove
DELETE FROM operators WHERE name = %(name)s

-- name: has_signed_in
SELECT EXISTS (SELECT FROM operators WHERE signed_in_at IS NOT NULL) AS anybody

-- name: lock_one
SELECT name FROM operators WHERE name = %(name)s FOR UPDATE

-- name: invite
INSERT INTO operator_links (name, link_hash, expires_at) VALUES (%(name)s, %(link_hash)s, at(%(expires_at)s))
ON CONFLICT (name) DO UPDATE SET link_hash = excluded.link_hash, expires_at = excluded.expires_at

-- name: find_invited
SELECT name FROM operator_links WHERE link_hash = %(link_hash)s AND expires_at > at(%(at)s)

-- name: lock_invited
-- The operator's row before the link's, as whoever invites, resets or removes her does: so no two wait for each other.
SELECT name FROM operators
WHERE name = (SELECT l.name FROM operator_links l WHERE l.link_hash = %(link_hash)s AND l.expires_at > at(%(at)s))
FOR UPDATE

-- name: spend_link
-- After the lock: it may have been replaced while that was waited for.
DELETE FROM operator_links WHERE link_hash = %(link_hash)s AND expires_at > at(%(at)s) RETURNING name

-- name: revoke_link
DELETE FROM operator_links WHERE name = %(name)s

-- name: set_password
UPDATE operators SET password_hash = %(password_hash)s WHERE name = %(name)s

-- name: clear_password
UPDATE operators SET password_hash = NULL WHERE name = %(name)s

-- name: revoke_sessions
DELETE FROM operator_sessions WHERE name = %(name)s

-- name: audit
INSERT INTO operator_actions (operator, action, subject, details, trace_id)
VALUES (%(operator)s, %(action)s, %(name)s, %(details)s::jsonb, %(trace_id)s)
