-- The journal's one statement: the rows of every session that wrote in this tick. A session that has another owner by now has
-- another epoch, and its rows fall away (S3); so do those of a session that has ended or stands still, however late they come (C6). Who
-- raises an epoch waits for what is under way (`list_writers` in `sessions.sql`), so that no row has to be locked here.

-- name: append
INSERT INTO messages (session_id, seq, sender, id, body, at)
SELECT m.session_id, m.seq, m.sender, m.id, m.body, m.at
FROM unnest(%(session_ids)s::uuid[], %(epochs)s::bigint[], %(seqs)s::bigint[], %(senders)s::text[], %(ids)s::text[], %(bodies)s::text[],
            %(ats)s::timestamptz[]) AS m (session_id, epoch, seq, sender, id, body, at)
JOIN chat_sessions s ON s.session_id = m.session_id AND s.epoch = m.epoch AND s.status IN ('active', 'closing')

-- name: list_written
-- Which of these messages are there, and whose they are.
SELECT m.session_id, m.sender, m.id
FROM unnest(%(session_ids)s::uuid[], %(seqs)s::bigint[]) AS w (session_id, seq)
JOIN messages m ON m.session_id = w.session_id AND m.seq = w.seq
