-- The history of every run. `hash` covers the previous hash, the run and the body,
-- so that a changed, missing or reordered entry is noticed.
CREATE TABLE event (
    run      TEXT    NOT NULL,
    sequence INTEGER NOT NULL,
    body     TEXT    NOT NULL,
    hash     BLOB    NOT NULL,
    PRIMARY KEY (run, sequence)
) STRICT, WITHOUT ROWID;
