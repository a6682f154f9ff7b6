-- The whole ground: people, payments, sessions, messages, pairing, and what makes every transition one guarded transaction.
-- Columns have the names of the wire. The unique indexes are the last word on the invariants of the specification (M1, M3, S2, C3).

CREATE FUNCTION at(ms bigint) RETURNS timestamptz LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$ SELECT to_timestamp(ms::float8 / 1000) $$;

-- One row per command that wrote something: its first insert, so that a commit whose answer was lost can be asked about.
CREATE TABLE operations (
    operation_id uuid PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX operations_at ON operations (at);

-- One row per running server. A node is alive while it holds the advisory lock of its `lock_key`.
CREATE TABLE nodes (
    node_id uuid PRIMARY KEY,
    lock_key bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    started_at timestamptz NOT NULL DEFAULT now(),
    alive_at timestamptz NOT NULL DEFAULT now(),
    -- Since when it had lost its clocks, while what it owes its sessions for that is not all written down yet.
    gap_since timestamptz
);

CREATE TABLE live_config (
    key text PRIMARY KEY,
    value jsonb NOT NULL
);
CREATE TABLE live_config_history (
    version bigint PRIMARY KEY,
    changes jsonb NOT NULL,
    changed_by text NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE operator_actions (
    action_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    operator text NOT NULL,
    action text NOT NULL,
    subject text NOT NULL,
    details jsonb NOT NULL DEFAULT '{}',
    at timestamptz NOT NULL DEFAULT now()
);

-- ---- people

CREATE TABLE customers (
    customer_id uuid PRIMARY KEY,
    display_name text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE mitras (
    mitra_id uuid PRIMARY KEY,
    display_name text NOT NULL DEFAULT '',
    is_active boolean NOT NULL DEFAULT true,
    is_online boolean NOT NULL DEFAULT false,
    last_heartbeat_at timestamptz,
    max_sessions integer NOT NULL DEFAULT 3 CHECK (max_sessions BETWEEN 1 AND 100),
    -- Rises with every change of the mitra's living sessions; orders capacity writes in the mirror.
    capacity_version bigint NOT NULL DEFAULT 0,
    idle_since timestamptz NOT NULL DEFAULT now(),
    created_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50); -- each cycle of the heartbeat mirror updates the rows of all who are online, in place where there is room
CREATE INDEX mitras_online ON mitras (idle_since) WHERE is_online AND is_active;

CREATE TABLE auth_sessions (
    auth_session_id uuid PRIMARY KEY,
    user_type text NOT NULL CHECK (user_type IN ('customer', 'mitra')),
    user_id uuid NOT NULL,
    refresh_token_hash bytea NOT NULL UNIQUE,
    push_token text,
    created_at timestamptz NOT NULL DEFAULT now(),
    refreshed_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz,
    revoked_because text
);
CREATE INDEX auth_sessions_revoked_at ON auth_sessions (revoked_at) WHERE revoked_at IS NOT NULL;
CREATE INDEX auth_sessions_user ON auth_sessions (user_id) WHERE revoked_at IS NULL;

-- Hashes of refresh tokens that were rotated away: seeing one again means that it was stolen.
CREATE TABLE retired_refresh_tokens (
    refresh_token_hash bytea PRIMARY KEY,
    auth_session_id uuid NOT NULL REFERENCES auth_sessions ON DELETE CASCADE,
    retired_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE idempotency_keys (
    user_id text NOT NULL,
    route text NOT NULL,
    key text NOT NULL,
    body_hash bytea NOT NULL,
    status integer,
    answer bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, route, key)
);
CREATE INDEX idempotency_keys_created_at ON idempotency_keys (created_at);

-- ---- money

CREATE TABLE payment_requests (
    payment_request_id uuid PRIMARY KEY,
    customer_id uuid NOT NULL REFERENCES customers,
    session_id uuid,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'confirmed', 'consumed', 'failed')),
    amount bigint NOT NULL CHECK (amount >= 0),
    currency text NOT NULL,
    duration_minutes integer NOT NULL CHECK (duration_minutes > 0),
    is_extension boolean NOT NULL DEFAULT false,
    is_first_session_discount boolean NOT NULL DEFAULT false,
    failure_cause text,
    provider_ref text,
    created_at timestamptz NOT NULL DEFAULT now(),
    confirmed_at timestamptz,
    consumed_at timestamptz,
    failed_at timestamptz,
    CHECK ((status = 'failed') = (failure_cause IS NOT NULL)),
    CHECK (status <> 'consumed' OR (confirmed_at IS NOT NULL AND consumed_at IS NOT NULL)),
    CHECK (NOT (is_extension AND is_first_session_discount))
);
CREATE INDEX payment_requests_customer ON payment_requests (customer_id, created_at);
CREATE INDEX payment_requests_session ON payment_requests (session_id) WHERE session_id IS NOT NULL;
-- A customer holds one first-session discount at a time, and consumes one in a life.
CREATE UNIQUE INDEX payment_requests_one_discount ON payment_requests (customer_id)
    WHERE is_first_session_discount AND status IN ('confirmed', 'consumed');

-- Deliveries of the payment provider that were taken; the same `webhook-id` again changes nothing.
CREATE TABLE webhook_deliveries (
    webhook_id text PRIMARY KEY,
    payment_request_id uuid NOT NULL,
    type text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now()
);

-- ---- sessions

CREATE TABLE chat_sessions (
    session_id uuid PRIMARY KEY,
    customer_id uuid NOT NULL REFERENCES customers,
    mitra_id uuid NOT NULL REFERENCES mitras,
    payment_request_id uuid NOT NULL REFERENCES payment_requests,
    topic_sensitivity text NOT NULL DEFAULT 'regular' CHECK (topic_sensitivity IN ('regular', 'sensitive')),
    status text NOT NULL CHECK (status IN ('pending_payment', 'active', 'extending', 'closing', 'rerouting', 'ended')),
    end_reason text CHECK (end_reason IN ('completed', 'ended_by_customer', 'ended_by_mitra', 'payment_timeout', 'payment_failed',
                                          'no_mitra', 'mitra_deactivated', 'ended_by_admin')),
    duration_minutes integer NOT NULL,
    minute_ms integer NOT NULL CHECK (minute_ms > 0),
    price bigint NOT NULL,
    currency text NOT NULL,
    paid_amount bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    running_since timestamptz,
    expires_at timestamptz,
    deadline_at timestamptz,
    ended_at timestamptz,
    paid_ms bigint NOT NULL DEFAULT 0,
    served_ms bigint NOT NULL DEFAULT 0,
    refunded_ms bigint NOT NULL DEFAULT 0,
    forfeited_ms bigint NOT NULL DEFAULT 0,
    remaining_ms bigint NOT NULL DEFAULT 0,
    grace_left_ms bigint,
    extensions_accepted integer NOT NULL DEFAULT 0,
    owner uuid,
    epoch bigint NOT NULL DEFAULT 1,
    version bigint NOT NULL DEFAULT 1,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CHECK ((status = 'ended') = (end_reason IS NOT NULL)),
    CHECK ((status = 'ended') = (deadline_at IS NULL)),
    CHECK ((status = 'active') = (running_since IS NOT NULL)),
    CHECK ((running_since IS NULL) = (expires_at IS NULL)),
    CHECK (paid_ms = served_ms + refunded_ms + forfeited_ms + remaining_ms),
    CHECK (least(served_ms, refunded_ms, forfeited_ms, remaining_ms) >= 0)
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX chat_sessions_payment ON chat_sessions (payment_request_id);
CREATE INDEX chat_sessions_living_mitra ON chat_sessions (mitra_id) WHERE status <> 'ended';
CREATE INDEX chat_sessions_living_customer ON chat_sessions (customer_id) WHERE status <> 'ended';
CREATE INDEX chat_sessions_living_owner ON chat_sessions (owner) WHERE status <> 'ended';
CREATE INDEX chat_sessions_created_at ON chat_sessions (created_at);
ALTER TABLE payment_requests ADD FOREIGN KEY (session_id) REFERENCES chat_sessions;

CREATE TABLE session_extensions (
    extension_id uuid PRIMARY KEY,
    session_id uuid NOT NULL REFERENCES chat_sessions,
    payment_request_id uuid NOT NULL REFERENCES payment_requests,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'accepted', 'rejected', 'timeout', 'cancelled')),
    duration_minutes integer NOT NULL,
    price bigint NOT NULL,
    currency text NOT NULL,
    requested_at timestamptz NOT NULL,
    deadline_at timestamptz NOT NULL,
    timeout_seconds integer NOT NULL,
    default_action_on_timeout text NOT NULL CHECK (default_action_on_timeout IN ('auto_approve', 'auto_reject')),
    refusal_outcome text NOT NULL CHECK (refusal_outcome IN ('resume', 'close')),
    config_version bigint NOT NULL,
    responded_at timestamptz,
    decided_by text CHECK (decided_by IN ('answered', 'timeout', 'safeguard', 'cancelled', 'session_ended', 'payment_failed')),
    CHECK ((status = 'pending') = (responded_at IS NULL)),
    CHECK ((status = 'pending') = (decided_by IS NULL))
);
CREATE UNIQUE INDEX session_extensions_one_pending ON session_extensions (session_id) WHERE status = 'pending';
CREATE UNIQUE INDEX session_extensions_one_payment ON session_extensions (payment_request_id) WHERE status IN ('pending', 'accepted');
CREATE INDEX session_extensions_session ON session_extensions (session_id);

-- The ledger: append-only.
CREATE TABLE customer_transactions (
    transaction_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    payment_request_id uuid NOT NULL UNIQUE REFERENCES payment_requests,
    customer_id uuid NOT NULL REFERENCES customers,
    session_id uuid NOT NULL REFERENCES chat_sessions,
    type text NOT NULL CHECK (type IN ('session', 'extension')),
    amount bigint NOT NULL,
    currency text NOT NULL,
    duration_minutes integer NOT NULL,
    at timestamptz NOT NULL
);
CREATE INDEX customer_transactions_session ON customer_transactions (session_id);
CREATE FUNCTION ledger_is_append_only() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'customer_transactions is append-only (M5)'; END $$;
CREATE TRIGGER customer_transactions_append_only BEFORE UPDATE OR DELETE ON customer_transactions
    FOR EACH ROW EXECUTE FUNCTION ledger_is_append_only();

CREATE TABLE refunds (
    refund_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    payment_request_id uuid NOT NULL REFERENCES payment_requests,
    session_id uuid REFERENCES chat_sessions,
    customer_id uuid NOT NULL REFERENCES customers,
    kind text NOT NULL CHECK (kind IN ('payment_failed', 'time_left')),
    cause text NOT NULL,
    amount bigint NOT NULL CHECK (amount >= 0),
    currency text NOT NULL,
    refunded_ms bigint NOT NULL DEFAULT 0,
    status text NOT NULL DEFAULT 'due' CHECK (status IN ('due', 'delivered', 'dead')),
    created_at timestamptz NOT NULL,
    delivered_at timestamptz,
    UNIQUE (payment_request_id, kind)
);
CREATE INDEX refunds_due ON refunds (created_at) WHERE status = 'due';
CREATE INDEX refunds_session ON refunds (session_id) WHERE session_id IS NOT NULL;

-- What is to leave halo, written in the transition's own transaction.
CREATE TABLE outbox (
    outbox_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    kind text NOT NULL CHECK (kind IN ('push', 'refund')),
    user_id uuid NOT NULL,
    session_id uuid,
    template text NOT NULL,
    payload jsonb NOT NULL DEFAULT '{}',
    collapse_key text NOT NULL,
    status text NOT NULL DEFAULT 'due' CHECK (status IN ('due', 'sent', 'cancelled', 'expired', 'dead')),
    attempts integer NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL,
    expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX outbox_due ON outbox (due_at) WHERE status = 'due';
CREATE INDEX outbox_collapse_key ON outbox (collapse_key) WHERE status = 'due';

-- Every step of every session: what happened, where it led, why, and on what evidence.
CREATE TABLE session_timeline (
    session_id uuid NOT NULL REFERENCES chat_sessions,
    version bigint NOT NULL,
    epoch bigint NOT NULL,
    at timestamptz NOT NULL,
    event text NOT NULL,
    from_status text,
    to_status text NOT NULL,
    cause text NOT NULL,
    evidence jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (session_id, version)
);

CREATE TABLE messages (
    session_id uuid NOT NULL,
    seq bigint NOT NULL CHECK (seq > 0),
    sender text NOT NULL,
    id text NOT NULL,
    body text NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (session_id, seq),
    UNIQUE (session_id, sender, id)
);

-- ---- pairing

CREATE TABLE pairings (
    pairing_id uuid PRIMARY KEY,
    customer_id uuid NOT NULL REFERENCES customers,
    payment_request_id uuid NOT NULL REFERENCES payment_requests,
    topic_sensitivity text NOT NULL DEFAULT 'regular' CHECK (topic_sensitivity IN ('regular', 'sensitive')),
    status text NOT NULL DEFAULT 'searching' CHECK (status IN ('searching', 'matched', 'failed', 'cancelled')),
    wave integer NOT NULL DEFAULT 0,
    deadline_at timestamptz NOT NULL,
    session_id uuid REFERENCES chat_sessions,
    cause text,
    owner uuid,
    created_at timestamptz NOT NULL,
    resolved_at timestamptz,
    CHECK ((status = 'matched') = (session_id IS NOT NULL)),
    CHECK ((status IN ('failed', 'cancelled')) = (cause IS NOT NULL))
);
CREATE UNIQUE INDEX pairings_one_search ON pairings (payment_request_id) WHERE status IN ('searching', 'matched');
CREATE INDEX pairings_searching ON pairings (deadline_at) WHERE status = 'searching';

CREATE TABLE offers (
    offer_id uuid PRIMARY KEY,
    pairing_id uuid NOT NULL REFERENCES pairings,
    mitra_id uuid NOT NULL REFERENCES mitras,
    wave integer NOT NULL,
    status text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'accepted', 'declined', 'taken', 'cancelled', 'timed_out')),
    deadline_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    resolved_at timestamptz,
    UNIQUE (pairing_id, mitra_id)
);
CREATE UNIQUE INDEX offers_one_accepted ON offers (pairing_id) WHERE status = 'accepted';
CREATE INDEX offers_open ON offers (mitra_id) WHERE status = 'open';

-- Audit: why a pairing or an extension came to nothing, one cause each.
CREATE TABLE pairing_failures (
    failure_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    cause text NOT NULL CHECK (cause IN ('no_mitra_available', 'all_declined', 'timed_out', 'customer_cancelled', 'payment_expired',
                                         'payment_failed', 'extension_rejected', 'extension_timed_out', 'extension_safeguard_tripped', 'session_ended')),
    pairing_id uuid REFERENCES pairings,
    session_id uuid REFERENCES chat_sessions,
    extension_id uuid UNIQUE REFERENCES session_extensions,
    customer_id uuid NOT NULL REFERENCES customers,
    mitra_id uuid REFERENCES mitras,
    evidence jsonb NOT NULL DEFAULT '{}',
    at timestamptz NOT NULL
);
CREATE INDEX pairing_failures_at ON pairing_failures (at);
