-- The people on the status page, who is signed in, and how often somebody tried. Secrets are here as hashes only.
CREATE TABLE operators (
    name text PRIMARY KEY,
    role text NOT NULL CHECK (role IN ('viewer', 'operator')),
    -- NULL: the link was not used yet, nobody can sign in.
    password_hash text,
    created_at timestamptz NOT NULL,
    signed_in_at timestamptz
);

-- One at most for each operator: a new one replaces the one before.
CREATE TABLE operator_links (
    name text PRIMARY KEY REFERENCES operators ON DELETE CASCADE,
    link_hash bytea NOT NULL UNIQUE,
    expires_at timestamptz NOT NULL
);

CREATE TABLE operator_sessions (
    session_hash bytea PRIMARY KEY,
    name text NOT NULL REFERENCES operators ON DELETE CASCADE,
    opened_at timestamptz NOT NULL,
    -- When a person last asked for something; a page that renews itself does not count.
    used_at timestamptz NOT NULL
);
CREATE INDEX operator_sessions_name ON operator_sessions (name);
CREATE INDEX operator_sessions_opened_at ON operator_sessions (opened_at);

-- Tries to sign in, twice each: for the account and for the address. Hashed, because people type passwords into the field above.
CREATE TABLE sign_in_tries (
    try_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subject bytea NOT NULL,
    at timestamptz NOT NULL
);
CREATE INDEX sign_in_tries_subject ON sign_in_tries (subject, at);
