-- What nobody can ask for any more.

-- name: delete_operations
DELETE FROM operations WHERE at < at(%(before)s)

-- name: delete_outbox
DELETE FROM outbox WHERE status IN ('sent', 'cancelled', 'expired') AND created_at < at(%(before)s)
