-- What ended, was settled or was resolved since the watchdog's last look is found by these, however much is kept from before.
-- Each row enters its index once or twice in its life, at a write that touches other indexes anyway.
CREATE INDEX chat_sessions_ended_at ON chat_sessions (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX payment_requests_settled ON payment_requests (greatest(confirmed_at, consumed_at, failed_at)) WHERE confirmed_at IS NOT NULL;
CREATE INDEX pairings_resolved_at ON pairings (resolved_at) WHERE resolved_at IS NOT NULL;
