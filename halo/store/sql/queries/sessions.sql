-- Sessions, their extensions and messages, to read; and who owns them.

-- name: list_sessions
SELECT s.*, e.extension_id AS e_extension_id, e.payment_request_id AS e_payment_request_id, e.duration_minutes AS e_duration_minutes,
       e.price AS e_price, e.currency AS e_currency, e.requested_at AS e_requested_at, e.deadline_at AS e_deadline_at,
       e.timeout_seconds AS e_timeout_seconds, e.default_action_on_timeout AS e_default_action_on_timeout,
       e.refusal_outcome AS e_refusal_outcome, e.config_version AS e_config_version,
       coalesce((SELECT max(m.seq) FROM messages m WHERE m.session_id = s.session_id), 0) AS last_seq
FROM chat_sessions s LEFT JOIN session_extensions e ON e.session_id = s.session_id AND e.status = 'pending'
WHERE s.session_id = ANY(%(session_ids)s::uuid[])

-- name: take_up
-- Who took a session up and died before its first step, the credit, has not kept its clock: `updated_at` still says who did.
WITH orphans AS (
    SELECT s.session_id, CASE WHEN t.epoch = s.epoch THEN greatest(coalesce(n.gap_since, n.alive_at), s.updated_at) ELSE s.updated_at END AS last_kept_at
    FROM chat_sessions s LEFT JOIN nodes n ON n.node_id = s.owner
    LEFT JOIN session_timeline t ON t.session_id = s.session_id AND t.version = s.version
    WHERE s.status <> 'ended'
      AND (s.owner IS NULL OR n.node_id IS NULL OR (s.owner <> %(owner)s AND NOT EXISTS (
            SELECT FROM pg_locks l
            WHERE l.locktype = 'advisory' AND l.classid = %(lock_class)s AND l.objid = n.lock_key AND l.granted
              AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))))
      -- Another node that restores at the same moment may have taken it since our snapshot: the locked row is newer than what we judged.
      AND s.epoch = (SELECT seen.epoch FROM chat_sessions seen WHERE seen.session_id = s.session_id)
    ORDER BY s.deadline_at
    LIMIT %(limit)s
    FOR UPDATE OF s SKIP LOCKED)
UPDATE chat_sessions s SET owner = %(owner)s, epoch = s.epoch + 1, updated_at = o.last_kept_at
FROM orphans o WHERE o.session_id = s.session_id
RETURNING s.session_id, s.epoch, o.last_kept_at

-- name: compare
-- By id and epoch, not by how many there are: an actor whose row is another node's by now would make up for a row without an actor. A FULL
-- JOIN is never a loop over ten thousand for each of ten thousand, whatever the planner believes of them.
SELECT coalesce(own.session_id, kept.session_id) AS session_id, coalesce(own.epoch, kept.epoch) AS epoch,
       own.session_id IS NOT NULL AS is_own, own.updated_at AS last_kept_at
FROM (SELECT session_id, epoch, updated_at FROM chat_sessions WHERE owner = %(owner)s AND status <> 'ended') own
FULL JOIN unnest(%(session_ids)s::uuid[], %(epochs)s::bigint[]) AS kept (session_id, epoch)
    ON own.session_id = kept.session_id AND own.epoch = kept.epoch
WHERE own.session_id IS NULL OR kept.session_id IS NULL

-- name: list_writers
-- Transactions that write messages at this moment. An append holds this lock before it looks at the epoch, and until it is over: whoever is
-- not among them after an epoch was raised sees the new one.
SELECT l.virtualtransaction AS writer FROM pg_locks l
WHERE l.locktype = 'relation' AND l.relation = 'messages'::regclass AND l.mode = 'RowExclusiveLock' AND l.granted
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())

-- name: list_living_of
SELECT session_id FROM chat_sessions WHERE (customer_id = %(user_id)s OR mitra_id = %(user_id)s) AND status <> 'ended' ORDER BY created_at

-- name: list_without_active_mitra
-- Not those in `rerouting`: the customer waits for another mitra already, and must not lose the search with the one who is gone.
SELECT s.session_id, s.mitra_id FROM mitras m JOIN chat_sessions s ON s.mitra_id = m.mitra_id
WHERE s.status NOT IN ('ended', 'rerouting') AND s.owner = %(owner)s AND NOT m.is_active

-- name: load_extension
SELECT * FROM session_extensions WHERE extension_id = %(extension_id)s AND session_id = %(session_id)s

-- name: list_messages
SELECT seq, sender, id, body, at FROM messages WHERE session_id = %(session_id)s AND seq > %(after_seq)s ORDER BY seq LIMIT %(limit)s

-- name: list_messages_to
-- For several who read; `place` is 1 for the first. Whether each is a participant, and what was said, in one snapshot: a session that is handed
-- on in between shows her nothing of her successor's. No row at all: there is no such session, or it is none of hers; a row without `seq`:
-- there is nothing to read.
SELECT w.place, m.seq, m.sender, m.id, m.body, m.at, l.last_seq
FROM unnest(%(reader_ids)s::uuid[], %(session_ids)s::uuid[], %(after_seqs)s::bigint[], %(limits)s::bigint[])
     WITH ORDINALITY AS w (reader_id, session_id, after_seq, most, place)
JOIN chat_sessions s ON s.session_id = w.session_id AND w.reader_id IN (s.customer_id, s.mitra_id)
CROSS JOIN LATERAL (SELECT coalesce(max(o.seq), 0) AS last_seq FROM messages o WHERE o.session_id = s.session_id) l
LEFT JOIN LATERAL (SELECT * FROM messages o WHERE o.session_id = s.session_id AND o.seq > w.after_seq ORDER BY o.seq LIMIT w.most) m ON true
ORDER BY w.place, m.seq

-- name: list_message_ids
-- Of several sessions; `place` is 1 for the first.
SELECT w.place, m.seq, m.sender, m.id
FROM unnest(%(session_ids)s::uuid[], %(after_seqs)s::bigint[], %(limits)s::bigint[]) WITH ORDINALITY AS w (session_id, after_seq, most, place)
CROSS JOIN LATERAL (SELECT o.seq, o.sender, o.id FROM messages o WHERE o.session_id = w.session_id AND o.seq > w.after_seq ORDER BY o.seq LIMIT w.most) m
ORDER BY w.place, m.seq

-- name: find_message
SELECT seq, body, at FROM messages WHERE session_id = %(session_id)s AND sender = %(sender)s AND id = %(id)s

-- name: load_capacity
SELECT m.capacity_version AS version, (SELECT count(*) FROM chat_sessions s WHERE s.mitra_id = m.mitra_id AND s.status <> 'ended') AS count
FROM mitras m WHERE m.mitra_id = %(mitra_id)s

-- name: list_timeline
SELECT version, epoch, at, event, from_status, to_status, cause, evidence FROM session_timeline WHERE session_id = %(session_id)s ORDER BY version
