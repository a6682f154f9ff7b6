-- What must always hold (spec 5). Each query returns no row when its invariant holds; a row says where it is broken.
-- Run by the tests, by `halo demo`, and by hand: psql -f scripts/check_invariants.sql
-- The watchdog runs them too, each behind the window that `windows.sql` and `watchdog.py` give it: then a name such as `chat_sessions`
-- stands for what lives or has changed lately. So a query groups by every column that it shows, for a window has no primary key.

-- name: m1_charged_at_most_once
SELECT payment_request_id::text AS subject, count(*) || ' ledger rows' AS fact
FROM customer_transactions GROUP BY payment_request_id HAVING count(*) > 1
UNION ALL
SELECT p.payment_request_id::text, 'consumed without a ledger row' FROM payment_requests p
WHERE p.status = 'consumed' AND NOT EXISTS (SELECT FROM customer_transactions t WHERE t.payment_request_id = p.payment_request_id)
UNION ALL
SELECT p.payment_request_id::text, 'a ledger row, but the payment is ' || p.status
FROM customer_transactions t JOIN payment_requests p USING (payment_request_id) WHERE p.status <> 'consumed';

-- name: m2_accepted_means_charged
SELECT e.extension_id::text AS subject, 'accepted, payment ' || p.status || ', ledger type ' || coalesce(t.type, 'none') AS fact
FROM session_extensions e JOIN payment_requests p USING (payment_request_id)
LEFT JOIN customer_transactions t USING (payment_request_id)
WHERE e.status = 'accepted' AND (p.status <> 'consumed' OR t.type IS DISTINCT FROM 'extension')
UNION ALL
SELECT t.payment_request_id::text, 'an extension was charged that nobody accepted'
FROM customer_transactions t WHERE t.type = 'extension' AND NOT EXISTS (
    SELECT FROM session_extensions e WHERE e.payment_request_id = t.payment_request_id AND e.status = 'accepted')
UNION ALL
SELECT s.session_id::text, 'extensions_accepted is ' || s.extensions_accepted || ', accepted are ' || count(e.*)
FROM chat_sessions s LEFT JOIN session_extensions e ON e.session_id = s.session_id AND e.status = 'accepted'
GROUP BY s.session_id, s.extensions_accepted HAVING s.extensions_accepted <> count(e.*);

-- name: m3_payment_bound_once
SELECT payment_request_id::text AS subject, count(*) || ' pending or accepted extensions' AS fact
FROM session_extensions WHERE status IN ('pending', 'accepted') GROUP BY payment_request_id HAVING count(*) > 1;

-- name: m4_amounts_agree
SELECT t.payment_request_id::text AS subject, 'ledger ' || t.amount || ' for ' || t.duration_minutes || ' min, payment ' || p.amount || ' for ' || p.duration_minutes AS fact
FROM customer_transactions t JOIN payment_requests p USING (payment_request_id)
WHERE (t.amount, t.currency, t.duration_minutes) IS DISTINCT FROM (p.amount, p.currency, p.duration_minutes)
UNION ALL
SELECT e.extension_id::text, 'extension ' || e.price || ' for ' || e.duration_minutes || ' min, payment ' || p.amount || ' for ' || p.duration_minutes
FROM session_extensions e JOIN payment_requests p USING (payment_request_id)
WHERE (e.price, e.currency, e.duration_minutes) IS DISTINCT FROM (p.amount, p.currency, p.duration_minutes)
UNION ALL
SELECT s.session_id::text, 'paid_amount ' || s.paid_amount || ', ledger ' || coalesce(sum(t.amount), 0)
FROM chat_sessions s LEFT JOIN customer_transactions t ON t.session_id = s.session_id
GROUP BY s.session_id, s.paid_amount HAVING s.paid_amount <> coalesce(sum(t.amount), 0);

-- name: m5_ledger_append_only
SELECT 'customer_transactions' AS subject, 'the trigger that keeps it append-only is missing or off' AS fact
WHERE NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'customer_transactions_append_only' AND tgenabled = 'O');

-- name: m6_refused_means_refunded
SELECT e.extension_id::text AS subject, e.status || ', payment ' || p.status || ' (' || coalesce(p.failure_cause, 'no cause') || '), refunds ' || count(r.*) AS fact
FROM session_extensions e JOIN payment_requests p USING (payment_request_id)
LEFT JOIN refunds r ON r.payment_request_id = p.payment_request_id AND r.kind = 'payment_failed' AND r.amount = p.amount
WHERE e.status IN ('rejected', 'timeout')
GROUP BY e.extension_id, e.status, e.decided_by, p.payment_request_id, p.status, p.failure_cause
HAVING p.status <> 'failed' OR count(r.*) <> 1 OR p.failure_cause IS DISTINCT FROM (
    CASE WHEN e.status = 'rejected' THEN 'extension_rejected' WHEN e.decided_by = 'safeguard' THEN 'extension_safeguard_tripped' ELSE 'extension_timed_out' END)
UNION ALL
SELECT p.payment_request_id::text, 'failed after its money had come, and no refund is due' FROM payment_requests p
WHERE p.status = 'failed' AND p.confirmed_at IS NOT NULL
  AND NOT EXISTS (SELECT FROM refunds r WHERE r.payment_request_id = p.payment_request_id AND r.kind = 'payment_failed')
UNION ALL
SELECT r.refund_id::text, 'refunds more than was paid' FROM refunds r JOIN payment_requests p USING (payment_request_id)
WHERE r.kind = 'payment_failed' AND r.amount <> p.amount;

-- name: refunds_within_charges
SELECT r.payment_request_id::text AS subject,
       'refunds ' || r.amount || ', ' || r.time_left || ' of it for time left, of a payment of ' || p.amount || ', charged ' || coalesce(t.amount, 0) AS fact
FROM (SELECT payment_request_id, sum(amount) AS amount, coalesce(sum(amount) FILTER (WHERE kind = 'time_left'), 0) AS time_left
      FROM refunds GROUP BY payment_request_id) AS r
JOIN payment_requests p USING (payment_request_id)
LEFT JOIN (SELECT payment_request_id, max(amount) AS amount FROM customer_transactions GROUP BY payment_request_id) AS t USING (payment_request_id)
WHERE r.amount > p.amount OR r.time_left > coalesce(t.amount, 0)
UNION ALL
SELECT s.session_id::text, 'its time left is worth ' || s.worth || ', and ' || coalesce(sum(r.amount), 0) || ' is refunded'
FROM (SELECT session_id, CASE WHEN paid_ms > 0 THEN div(paid_amount::numeric * refunded_ms + paid_ms - 1, paid_ms) ELSE 0 END AS worth
      FROM chat_sessions WHERE status = 'ended') AS s
LEFT JOIN refunds r ON r.session_id = s.session_id AND r.kind = 'time_left'
GROUP BY s.session_id, s.worth HAVING s.worth <> coalesce(sum(r.amount), 0);

-- name: m7_nothing_left_undecided
SELECT e.extension_id::text AS subject, 'pending since ' || e.requested_at || ', deadline was ' || e.deadline_at AS fact
FROM session_extensions e
WHERE e.status = 'pending' AND e.deadline_at < clock_timestamp() - interval '5 seconds'
  AND EXISTS (SELECT FROM nodes n WHERE n.alive_at > clock_timestamp() - interval '3 seconds' AND n.started_at < clock_timestamp() - interval '10 seconds')
UNION ALL
SELECT p.payment_request_id::text, 'confirmed, but its session has ended'
FROM payment_requests p JOIN chat_sessions s ON s.session_id = p.session_id
WHERE p.status IN ('pending', 'confirmed') AND s.status = 'ended';

-- name: t1_time_adds_up
SELECT s.session_id::text AS subject,
       'paid ' || s.paid_ms || ', bought ' || coalesce(sum(t.duration_minutes), 0) * s.minute_ms || ', served ' || s.served_ms || ', refunded ' || s.refunded_ms
       || ', forfeited ' || s.forfeited_ms || ', remaining ' || s.remaining_ms AS fact
FROM chat_sessions s LEFT JOIN customer_transactions t ON t.session_id = s.session_id
GROUP BY s.session_id, s.status, s.minute_ms, s.paid_ms, s.served_ms, s.refunded_ms, s.forfeited_ms, s.remaining_ms, s.expires_at, s.running_since
HAVING s.paid_ms <> s.served_ms + s.refunded_ms + s.forfeited_ms + s.remaining_ms
    OR s.paid_ms <> coalesce(sum(t.duration_minutes), 0) * s.minute_ms
    OR (s.status = 'ended' AND s.remaining_ms <> 0)
    OR (s.status = 'active' AND s.expires_at IS DISTINCT FROM s.running_since + s.remaining_ms * interval '1 millisecond')
UNION ALL
SELECT s.session_id::text, 'refunded ' || s.refunded_ms || ' ms, but the refund says ' || coalesce(sum(r.refunded_ms), 0)
FROM chat_sessions s LEFT JOIN refunds r ON r.session_id = s.session_id AND r.kind = 'time_left'
WHERE s.paid_amount > 0
GROUP BY s.session_id, s.refunded_ms HAVING s.refunded_ms <> coalesce(sum(r.refunded_ms), 0);

-- name: t2_never_before_its_deadline
SELECT session_id::text AS subject, cause || ' at ' || at || ', before its deadline ' || (evidence ->> 'deadline_at') AS fact
FROM session_timeline WHERE event = 'deadline_reached' AND at < (evidence ->> 'deadline_at')::timestamptz
UNION ALL
SELECT session_id::text, 'a deadline was acted upon without being written down'
FROM session_timeline WHERE event = 'deadline_reached' AND evidence ->> 'deadline_at' IS NULL;

-- name: s1_history_follows_the_rules
WITH steps AS (
    SELECT session_id, version, from_status, to_status,
           lag(to_status) OVER (PARTITION BY session_id ORDER BY version) AS before
    FROM session_timeline)
SELECT session_id::text AS subject, 'step ' || version || ' goes from ' || coalesce(from_status, 'nothing') || ' to ' || to_status || ' after ' || coalesce(before, 'nothing') AS fact
FROM steps
WHERE from_status IS DISTINCT FROM before
   OR (from_status IS NULL AND to_status NOT IN ('pending_payment', 'active'))
   OR (from_status IS NOT NULL AND (from_status, to_status) NOT IN (
        ('pending_payment', 'pending_payment'), ('pending_payment', 'active'), ('pending_payment', 'ended'),
        ('active', 'active'), ('active', 'closing'), ('active', 'extending'), ('active', 'rerouting'), ('active', 'ended'),
        ('extending', 'extending'), ('extending', 'active'), ('extending', 'closing'), ('extending', 'ended'),
        ('closing', 'closing'), ('closing', 'extending'), ('closing', 'ended'),
        ('rerouting', 'rerouting'), ('rerouting', 'active'), ('rerouting', 'ended')))
UNION ALL
SELECT s.session_id::text, 'is ' || s.status || ', but its history ends in ' || coalesce(t.to_status, 'nothing')
FROM chat_sessions s LEFT JOIN session_timeline t ON t.session_id = s.session_id AND t.version = s.version
WHERE t.to_status IS DISTINCT FROM s.status;

-- name: s2_one_pending_extension
SELECT s.session_id::text AS subject, s.status || ' with ' || count(e.*) || ' pending extensions' AS fact
FROM chat_sessions s LEFT JOIN session_extensions e ON e.session_id = s.session_id AND e.status = 'pending'
GROUP BY s.session_id, s.status HAVING count(e.*) <> CASE WHEN s.status = 'extending' THEN 1 ELSE 0 END;

-- name: s3_writes_are_ordered
WITH steps AS (
    SELECT session_id, version, epoch, lag(epoch, 1, 0::bigint) OVER (PARTITION BY session_id ORDER BY version) AS epoch_before,
           row_number() OVER (PARTITION BY session_id ORDER BY version) AS place
    FROM session_timeline)
SELECT session_id::text AS subject, 'step ' || version || ' of epoch ' || epoch || ' after epoch ' || epoch_before AS fact
FROM steps WHERE version <> place OR epoch < epoch_before;

-- name: s4_everybody_has_an_owner
SELECT s.session_id::text AS subject, 'living, without a living owner' AS fact
FROM chat_sessions s LEFT JOIN nodes o ON o.node_id = s.owner
WHERE s.status <> 'ended'
  AND (o.node_id IS NULL OR o.alive_at < clock_timestamp() - interval '20 seconds')
  AND EXISTS (SELECT FROM nodes n WHERE n.alive_at > clock_timestamp() - interval '3 seconds' AND n.started_at < clock_timestamp() - interval '20 seconds');

-- name: s5_deadlines_fire
SELECT s.session_id::text AS subject, s.status || ' past its deadline ' || s.deadline_at AS fact
FROM chat_sessions s
WHERE s.status <> 'ended' AND (s.deadline_at IS NULL OR s.deadline_at < clock_timestamp() - interval '15 seconds')
  AND EXISTS (SELECT FROM nodes n WHERE n.alive_at > clock_timestamp() - interval '3 seconds' AND n.started_at < clock_timestamp() - interval '20 seconds');

-- name: c2_seq_is_dense
SELECT session_id::text AS subject, count(*) || ' messages, seq from ' || min(seq) || ' to ' || max(seq) AS fact
FROM messages GROUP BY session_id HAVING min(seq) <> 1 OR max(seq) <> count(*);

-- name: c3_ids_are_unique
-- For each person: `sender` says which of a session's mitras it was. While the index stands there cannot be two, so a look at a part of the
-- messages asks after the index first.
SELECT 'messages' AS subject, 'no valid unique index on (session_id, sender, id)' AS fact
WHERE NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = to_regclass('messages') AND i.indisunique AND i.indisvalid
                  AND pg_get_indexdef(i.indexrelid) ~ '\(session_id, sender, id\)$')
UNION ALL
SELECT session_id::text, 'the id ' || id || ' of the ' || sender || ' is there ' || count(*) || ' times'
FROM messages GROUP BY session_id, sender, id HAVING count(*) > 1;

-- name: c6_nothing_after_the_end
SELECT m.session_id::text AS subject, 'seq ' || m.seq || ' at ' || m.at || ', after the end at ' || s.ended_at AS fact
FROM messages m JOIN chat_sessions s USING (session_id) WHERE s.status = 'ended' AND m.at > s.ended_at
UNION ALL
SELECT m.session_id::text, 'messages without a session' FROM messages m
WHERE NOT EXISTS (SELECT FROM chat_sessions s WHERE s.session_id = m.session_id) GROUP BY m.session_id;

-- name: a5_capacity_is_kept
SELECT m.mitra_id::text AS subject, count(*) || ' living sessions, at most ' || m.max_sessions AS fact
FROM mitras m JOIN chat_sessions s ON s.mitra_id = m.mitra_id AND s.status <> 'ended'
GROUP BY m.mitra_id HAVING count(*) > m.max_sessions;

-- name: pairing_matched_once
SELECT p.pairing_id::text AS subject, p.status || ' with ' || count(o.*) || ' accepted offers' AS fact
FROM pairings p LEFT JOIN offers o ON o.pairing_id = p.pairing_id AND o.status = 'accepted'
GROUP BY p.pairing_id, p.status HAVING (p.status = 'matched') <> (count(o.*) = 1);

-- name: reroute_has_one_search
SELECT p.pairing_id::text AS subject, 'seeks another mitra for a session that is ' || s.status AS fact
FROM pairings p JOIN chat_sessions s ON s.session_id = p.rerouted_session_id
WHERE p.status = 'searching' AND s.status <> 'rerouting'
UNION ALL
SELECT s.session_id::text, 'is rerouting, and nobody seeks'
FROM chat_sessions s
WHERE s.status = 'rerouting' AND s.updated_at < clock_timestamp() - interval '20 seconds'
  AND NOT EXISTS (SELECT FROM pairings p WHERE p.rerouted_session_id = s.session_id
                  AND (p.status = 'searching' OR p.resolved_at > clock_timestamp() - interval '20 seconds'))
  AND EXISTS (SELECT FROM nodes n WHERE n.alive_at > clock_timestamp() - interval '3 seconds' AND n.started_at < clock_timestamp() - interval '20 seconds');

-- name: search_has_a_keeper
SELECT p.pairing_id::text AS subject, 'searching, without a living owner' AS fact
FROM pairings p LEFT JOIN nodes o ON o.node_id = p.owner
WHERE p.status = 'searching'
  AND (o.node_id IS NULL OR o.alive_at < clock_timestamp() - interval '20 seconds')
  AND EXISTS (SELECT FROM nodes n WHERE n.alive_at > clock_timestamp() - interval '3 seconds' AND n.started_at < clock_timestamp() - interval '20 seconds');
