-- What nobody can ask for any more.

-- name: delete_operations
DELETE FROM operations WHERE at < at(%(before)s)

-- name: delete_outbox
DELETE FROM outbox WHERE status IN ('sent', 'cancelled', 'expired') AND created_at < at(%(before)s)

-- name: delete_dead_pushes
-- Never refunds: those are somebody's money until an operator has dealt with them.
DELETE FROM outbox WHERE kind = 'push' AND status = 'dead' AND coalesce(expires_at, created_at) < at(%(before)s)
