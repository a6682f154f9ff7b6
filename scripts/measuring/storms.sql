-- Questions of the measurement of storms.

-- name: count_running
SELECT count(*) AS count FROM chat_sessions WHERE status = 'active'
