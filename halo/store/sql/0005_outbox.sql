-- The outbox is sent: claims with a lease, so that a sender that dies loses nothing; what became of each row, and why.
ALTER TABLE outbox
    -- Until then the row belongs to whoever has claimed it. Afterwards it is sent again: at least once, never not at all.
    ADD COLUMN claimed_until timestamptz,
    -- Attempts that an operator's replay has forgiven; the waits between attempts begin anew after it.
    ADD COLUMN attempts_forgiven integer NOT NULL DEFAULT 0,
    -- Patience is counted from here, not from the insert: a row may have waited for weeks until its address was configured.
    ADD COLUMN first_attempt_at timestamptz,
    ADD COLUMN finished_at timestamptz,
    -- Why it was not delivered; never a token, a name or a text.
    ADD COLUMN last_error text,
    -- The auth sessions whose devices have it already: a second attempt spares them.
    ADD COLUMN reached uuid[] NOT NULL DEFAULT '{}',
    -- Names the ping that followed the frame out of the node `told_by`: its pong says that nobody needs the push.
    ADD COLUMN receipt text,
    ADD COLUMN told_by uuid,
    ADD COLUMN traceparent text;
ALTER TABLE outbox SET (fillfactor = 70); -- each row is updated two or three times
DROP INDEX outbox_due;
-- By kind: refunds that wait for an address stand in nobody's way.
CREATE INDEX outbox_due ON outbox (kind, due_at) WHERE status = 'due';
CREATE INDEX outbox_dead ON outbox (created_at) WHERE status = 'dead';

ALTER TABLE auth_sessions ADD COLUMN locale text NOT NULL DEFAULT 'id' CHECK (locale IN ('id', 'en'));
-- One token is one phone, whoever signs in on it.
CREATE INDEX auth_sessions_push_token ON auth_sessions (push_token) WHERE push_token IS NOT NULL;
