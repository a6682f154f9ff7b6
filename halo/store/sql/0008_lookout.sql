-- What operators look for: everything of one customer or one mitra, what was decided lately, what was done to somebody.
CREATE INDEX chat_sessions_customer ON chat_sessions (customer_id, created_at);
CREATE INDEX chat_sessions_mitra ON chat_sessions (mitra_id, created_at);
CREATE INDEX session_extensions_responded_at ON session_extensions (responded_at) WHERE responded_at IS NOT NULL;
CREATE INDEX refunds_created_at ON refunds (created_at);
CREATE INDEX refunds_dead ON refunds (created_at) WHERE status = 'dead';
CREATE INDEX refunds_delivered_at ON refunds (delivered_at) WHERE delivered_at IS NOT NULL;
CREATE INDEX operator_actions_subject ON operator_actions (subject, action_id);
