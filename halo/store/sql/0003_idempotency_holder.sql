-- The fence of a key that was taken over is a name made up for each take: two takes may share a moment, and clocks are set back.
-- NULL: taken by the version before, of which no node of this version is the holder; its own nodes go by the moment.
ALTER TABLE idempotency_keys ADD COLUMN held_by uuid;
