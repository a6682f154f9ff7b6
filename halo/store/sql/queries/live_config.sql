-- Live configuration: one row a key, and one row of history a change.

-- name: load
-- One statement, one snapshot: values and version belong together.
SELECT (SELECT coalesce(max(h.version), 0) FROM live_config_history h) AS version,
       (SELECT coalesce(jsonb_object_agg(c.key, c.value), '{}') FROM live_config c) AS stored

-- name: lock
-- Against another writer only; whoever reads is not held up.
LOCK TABLE live_config IN SHARE ROW EXCLUSIVE MODE

-- name: save
INSERT INTO live_config (key, value)
SELECT entry.key, entry.value FROM jsonb_each(%(changes)s::jsonb) AS entry (key, value)
ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value

-- name: insert_history
INSERT INTO live_config_history (version, changes, changed_by) VALUES (%(version)s, %(changes)s::jsonb, %(changed_by)s)

-- name: audit
INSERT INTO operator_actions (operator, action, subject, details, trace_id)
VALUES (%(changed_by)s, 'change_config', 'live_config',
        jsonb_build_object('version', %(version)s::bigint, 'before', %(before)s::jsonb, 'changes', %(changes)s::jsonb), %(trace_id)s)

-- name: notify
SELECT pg_notify('halo_live_config', %(version)s::text)::text AS told

-- name: list_history
SELECT version, changes, changed_by, changed_at FROM live_config_history ORDER BY version DESC LIMIT %(limit)s
