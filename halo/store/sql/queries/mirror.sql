-- What Postgres knows of who is there. Postgres is the truth; the mirror in Valkey is built from these rows and judged against them.

-- name: presences
SELECT mitra_id, is_active, is_online, last_heartbeat_at
FROM mitras
WHERE mitra_id = ANY(%(mitra_ids)s::uuid[])

-- name: mitras_packed
-- A page in the order of ids, packed into two texts, because 100,000 rows cost the reader more than Postgres: the last heartbeat of each
-- mitra in 24 characters ('-' where she should have none, blank where none is known), and all else of her in a line. Both run in the same
-- order. The count and its version come from one snapshot, so a higher version never carries an older count. The letters: d deactivated,
-- o offline, w online and with room, f online and full.
WITH page AS (
    SELECT mitra_id, is_active, is_online, last_heartbeat_at, capacity_version, max_sessions, idle_since
    FROM mitras
    WHERE mitra_id > %(after)s::uuid AND mitra_id <= %(upto)s::uuid
    ORDER BY mitra_id
    LIMIT %(page)s::bigint
), bound AS MATERIALIZED (
    SELECT mitra_id FROM page ORDER BY mitra_id DESC LIMIT 1
), busy AS (
    SELECT mitra_id, count(*) AS living
    FROM chat_sessions
    WHERE status <> 'ended' AND mitra_id > %(after)s::uuid AND mitra_id <= (SELECT mitra_id FROM bound)
    GROUP BY mitra_id
)
SELECT
    count(*) AS mitras,
    (SELECT mitra_id FROM bound) AS last,
    coalesce(
        string_agg(
            CASE
                WHEN NOT (m.is_online AND m.is_active) THEN repeat('-', 24)
                WHEN m.last_heartbeat_at IS NULL THEN repeat(' ', 24)
                ELSE to_char(m.last_heartbeat_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
            END,
            ''
        ),
        ''
    ) AS beats,
    coalesce(
        string_agg(
            m.mitra_id
            || CASE
                WHEN NOT m.is_active THEN ' d '
                WHEN NOT m.is_online THEN ' o '
                WHEN coalesce(b.living, 0) < m.max_sessions THEN ' w '
                ELSE ' f '
            END
            || coalesce(b.living, 0) || ' ' || m.capacity_version || ' ' || floor(extract(epoch FROM m.idle_since) * 1000)::bigint,
            E'\n'
        ),
        ''
    ) AS states
FROM page AS m
LEFT JOIN busy AS b USING (mitra_id)

-- name: pages_touched
-- Which of the pages that begin behind these ids (from 1) hold a row written by a transaction that had not ended when `since` was asked,
-- and what to ask with the next time; without `since` none. Never too few: every older transaction had ended, and its subtransactions
-- with it. Too many at most, when a long transaction is open: whoever asks compares what the pages say. Whoever changes a mitra's living
-- sessions raises her version, and so writes her row.
SELECT
    pg_snapshot_xmin(pg_current_snapshot())::xid::text AS since,
    ARRAY(
        SELECT DISTINCT width_bucket(m.mitra_id, %(begins)s::uuid[]) - (m.mitra_id = ANY (%(begins)s::uuid[]))::integer
        FROM mitras AS m
        WHERE age(m.xmin) <= age(%(since)s::text::xid)
    ) AS pages

-- name: mitras_named
-- All that the mirror says of these, from one snapshot.
SELECT
    m.mitra_id,
    m.is_active,
    m.is_online,
    m.last_heartbeat_at,
    c.capacity,
    m.capacity_version,
    c.capacity < m.max_sessions AS has_room,
    m.idle_since
FROM mitras AS m
CROSS JOIN LATERAL (SELECT count(*) AS capacity FROM chat_sessions AS s WHERE s.mitra_id = m.mitra_id AND s.status <> 'ended') AS c
WHERE m.mitra_id = ANY(%(mitra_ids)s::uuid[])
