-- What the watchdog did to a request, a payment or a search is found by its session too: its page and `halo explain` list it.
CREATE INDEX operator_actions_session ON operator_actions ((details ->> 'session_id'), action_id) WHERE details ->> 'session_id' IS NOT NULL;
-- Dead pushes go some days after their time: found without reading the dead refunds, which stay.
CREATE INDEX outbox_dead_pushes ON outbox (coalesce(expires_at, created_at)) WHERE status = 'dead' AND kind = 'push';
