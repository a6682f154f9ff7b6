-- Who had a session before its mitra: none of them is asked again, and each counted her own messages.
ALTER TABLE chat_sessions ADD COLUMN former_mitra_ids uuid[] NOT NULL DEFAULT '{}';

UPDATE chat_sessions s SET former_mitra_ids = former.mitra_ids
FROM (SELECT session_id, array_agg((evidence ->> 'from')::uuid ORDER BY version) AS mitra_ids
      FROM session_timeline WHERE event = 'mitra_assigned' GROUP BY session_id) AS former
WHERE s.session_id = former.session_id;

-- From now on `sender` says which mitra of a session it was: the second is `mitra:2`, because client ids are unique for a person. What was
-- said until now is put under its own mitra too, so that a message that is sent again after the update is still known.
UPDATE messages m SET sender = 'mitra:' || 1 + (
    SELECT count(*) FROM session_timeline t WHERE t.session_id = m.session_id AND t.event = 'mitra_assigned' AND t.at <= m.at)
FROM (SELECT session_id, min(at) AS at FROM session_timeline WHERE event = 'mitra_assigned' GROUP BY session_id) AS first
WHERE m.session_id = first.session_id AND m.sender = 'mitra' AND m.at >= first.at;
