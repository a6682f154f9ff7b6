-- A search for another mitra, for a session that has lost its own. The session keeps its payment, so one payment may see several searches.
ALTER TABLE pairings ADD COLUMN rerouted_session_id uuid REFERENCES chat_sessions;
DROP INDEX pairings_one_search;
CREATE UNIQUE INDEX pairings_one_search ON pairings (payment_request_id)
    WHERE status IN ('searching', 'matched') AND rerouted_session_id IS NULL;
CREATE UNIQUE INDEX pairings_one_reroute ON pairings (rerouted_session_id) WHERE status = 'searching';
CREATE INDEX pairings_rerouted ON pairings (rerouted_session_id) WHERE rerouted_session_id IS NOT NULL;
