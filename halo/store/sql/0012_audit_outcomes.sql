-- What became of what somebody wanted to do. Whoever writes a row in the transaction that does it leaves the default; others write
-- `attempted` first and the rest afterwards, so what died in between is told as it is.
ALTER TABLE operator_actions
    ADD COLUMN outcome text NOT NULL DEFAULT 'done' CHECK (outcome IN ('attempted', 'done', 'refused')),
    -- The code of the refusal.
    ADD COLUMN code text CHECK ((outcome = 'refused') = (code IS NOT NULL)),
    ADD COLUMN trace_id text,
    -- How often, where equal refusals of one minute are one row: nobody who may do nothing can fill the table.
    ADD COLUMN times bigint NOT NULL DEFAULT 1,
    ADD COLUMN counted_in timestamptz,
    ALTER COLUMN at SET DEFAULT clock_timestamp();
-- These were written before they were tried, and what became of them nobody wrote down.
UPDATE operator_actions SET outcome = 'attempted'
WHERE operator <> 'watchdog' AND action IN ('end_session', 'transfer_session', 'revive', 'read_messages');
CREATE UNIQUE INDEX operator_actions_refusals ON operator_actions (counted_in, operator, action, subject, code) WHERE counted_in IS NOT NULL;
CREATE INDEX operator_actions_outcome ON operator_actions (outcome, action_id);
