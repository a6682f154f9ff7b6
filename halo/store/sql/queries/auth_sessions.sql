-- Families of tokens. A mitra's row is locked before her families are: deactivation and a new family cannot pass each other.

-- name: lock_user_id
-- One id is a customer or a mitra, never both; two first openings of one id wait for each other. Two keys: nodes use the form with one.
SELECT pg_advisory_xact_lock(7102, hashtext(%(user_id)s))

-- name: find_other_type
SELECT 'customer' AS user_type FROM customers WHERE customer_id = %(user_id)s AND %(user_type)s::text <> 'customer'
UNION ALL
SELECT 'mitra' FROM mitras WHERE mitra_id = %(user_id)s AND %(user_type)s::text <> 'mitra'

-- name: save_customer
INSERT INTO customers (customer_id, display_name, created_at)
VALUES (%(user_id)s, coalesce(%(display_name)s::text, ''), at(%(at)s))
ON CONFLICT (customer_id) DO UPDATE SET display_name = coalesce(%(display_name)s::text, customers.display_name)

-- name: save_mitra
INSERT INTO mitras (mitra_id, display_name, max_sessions, idle_since, created_at)
VALUES (%(user_id)s, coalesce(%(display_name)s::text, ''), coalesce(%(max_sessions)s::integer, 3), at(%(at)s), at(%(at)s))
ON CONFLICT (mitra_id) DO UPDATE SET
    display_name = coalesce(%(display_name)s::text, mitras.display_name),
    max_sessions = coalesce(%(max_sessions)s::integer, mitras.max_sessions)
RETURNING is_active

-- name: release_push_token
-- A phone belongs to whoever signed in on it last: what is for others must not appear on it.
UPDATE auth_sessions SET push_token = NULL WHERE push_token = %(push_token)s AND user_id <> %(user_id)s

-- name: open
-- The same auth_session_id again is a repeat whose first answer was lost: its refresh token gives way to this one.
INSERT INTO auth_sessions (auth_session_id, user_type, user_id, refresh_token_hash, push_token, locale, created_at, refreshed_at, expires_at)
VALUES (%(auth_session_id)s, %(user_type)s, %(user_id)s, %(refresh_token_hash)s, %(push_token)s, %(locale)s, at(%(at)s), at(%(at)s), at(%(expires_at)s))
ON CONFLICT (auth_session_id) DO UPDATE SET
    refresh_token_hash = EXCLUDED.refresh_token_hash, push_token = EXCLUDED.push_token, locale = EXCLUDED.locale,
    expires_at = EXCLUDED.expires_at
WHERE auth_sessions.user_id = EXCLUDED.user_id AND auth_sessions.revoked_at IS NULL
RETURNING auth_session_id

-- name: rotate
-- The row lock lets one of many through; the others find the hash changed and match nothing.
WITH rotated AS (
    UPDATE auth_sessions a SET refresh_token_hash = %(new_hash)s, refreshed_at = at(%(at)s), expires_at = at(%(expires_at)s)
    WHERE a.refresh_token_hash = %(old_hash)s AND a.revoked_at IS NULL AND a.expires_at > at(%(at)s)
      AND (a.user_type = 'customer' OR EXISTS (SELECT FROM mitras m WHERE m.mitra_id = a.user_id AND m.is_active))
    RETURNING a.auth_session_id, a.user_type, a.user_id),
retired AS (
    INSERT INTO retired_refresh_tokens (refresh_token_hash, auth_session_id, retired_at)
    SELECT %(old_hash)s, auth_session_id, at(%(at)s) FROM rotated)
SELECT auth_session_id, user_type, user_id FROM rotated

-- name: find_refused
-- Why a token was not rotated: whose it is or was, and whether the mitra behind it may come in at all.
SELECT a.auth_session_id, a.user_type = 'mitra' AND NOT coalesce(m.is_active, false) AS is_deactivated,
       a.refresh_token_hash <> %(old_hash)s AS is_reused
FROM auth_sessions a LEFT JOIN mitras m ON a.user_type = 'mitra' AND m.mitra_id = a.user_id
WHERE a.refresh_token_hash = %(old_hash)s
   OR a.auth_session_id = (SELECT r.auth_session_id FROM retired_refresh_tokens r WHERE r.refresh_token_hash = %(old_hash)s)

-- name: revoke
WITH revoked AS (
    UPDATE auth_sessions SET revoked_at = at(%(at)s), revoked_because = %(because)s
    WHERE auth_session_id = %(auth_session_id)s AND revoked_at IS NULL
    RETURNING auth_session_id)
SELECT auth_session_id, pg_notify('halo_auth_revoked', auth_session_id || ' ' || %(because)s::text)::text FROM revoked

-- name: revoke_user
WITH revoked AS (
    UPDATE auth_sessions SET revoked_at = at(%(at)s), revoked_because = %(because)s
    WHERE user_id = %(user_id)s AND revoked_at IS NULL
    RETURNING auth_session_id)
SELECT auth_session_id, pg_notify('halo_auth_revoked', auth_session_id || ' ' || %(because)s::text)::text FROM revoked

-- name: is_alive
SELECT auth_session_id FROM auth_sessions WHERE auth_session_id = %(auth_session_id)s AND revoked_at IS NULL AND expires_at > at(%(at)s)

-- name: list_recently_revoked
SELECT auth_session_id, user_id, revoked_at, revoked_because FROM auth_sessions
WHERE revoked_at >= at(%(since)s) ORDER BY revoked_at

-- name: delete_ended
-- Retired tokens go with their family.
DELETE FROM auth_sessions WHERE least(expires_at, revoked_at) < at(%(before)s)
