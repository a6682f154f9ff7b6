-- Who went offline by herself is told apart from whom a sweep set offline, whatever else of her row moves meanwhile.

-- Rises with every word on whether the mitra is there, also one that says what the row said already. Nothing else touches it.
ALTER TABLE mitras ADD COLUMN presence_version bigint NOT NULL DEFAULT 0;
