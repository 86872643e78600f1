-- Jobs of any method, their journals and their artifacts. Rows of older versions are converted by any_method.py,
-- which drops what is left over at the end: jobs.kept, jobs.metric, verdicts and results.
ALTER TABLE jobs RENAME COLUMN decided TO done;            -- units of work, of "total"
ALTER TABLE jobs RENAME COLUMN evaluations TO records;     -- of the journal; of a succeeded job, what it had
ALTER TABLE jobs RENAME COLUMN deaths TO crash_count;      -- processes that took it up since its last record, and died
ALTER TABLE jobs ADD COLUMN unit TEXT NOT NULL DEFAULT 'edges';
ALTER TABLE jobs ADD COLUMN stage TEXT NOT NULL DEFAULT '';    -- what is being done
ALTER TABLE jobs ADD COLUMN figures TEXT NOT NULL DEFAULT '{}';  -- of the moment: JSON, numbers by name

-- Records of unfinished, cancelled and failed jobs, in order, in runs that were written together. Only the job's
-- method knows what the bytes mean.
CREATE TABLE journal (
    log INTEGER NOT NULL,         -- id of the job
    first INTEGER NOT NULL,       -- number of the first record, from 0
    count INTEGER NOT NULL,       -- of records
    data BLOB NOT NULL,           -- the records, then a checksum
    PRIMARY KEY (log, first)
) WITHOUT ROWID;

CREATE TABLE artifacts (
    log INTEGER PRIMARY KEY,      -- id of the job that found it; equal jobs share it by jobs.log
    kind TEXT NOT NULL,
    version INTEGER NOT NULL,     -- of the kind's format
    data BLOB NOT NULL,
    figures TEXT NOT NULL,        -- JSON: numbers by name
    warnings TEXT NOT NULL,       -- JSON: list of sentences
    request TEXT NOT NULL,        -- provenance, JSON
    run TEXT NOT NULL,
    summary_sum BLOB,             -- checksum of what lists of jobs tell
    checksum BLOB
);
