-- Jobs of all users. Times are seconds since the epoch.
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    user TEXT NOT NULL,
    request_id TEXT,              -- NULL: none was given
    payload BLOB NOT NULL,        -- SHA-256 of what was asked for
    state INTEGER NOT NULL,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    error TEXT NOT NULL,
    decided INTEGER NOT NULL,
    kept INTEGER NOT NULL,
    metric REAL NOT NULL,
    evaluations INTEGER NOT NULL,
    dropped INTEGER NOT NULL,     -- evaluations of earlier tries, whose verdicts were given up
    charged REAL NOT NULL,        -- seconds of work
    deaths INTEGER NOT NULL,      -- processes that took it up since its last verdict, and died
    total INTEGER NOT NULL,       -- edges of the graph
    tokens INTEGER NOT NULL,      -- of all prompts
    revision TEXT NOT NULL,       -- of the model
    content BLOB NOT NULL,        -- SHA-256 of all that determines the result
    log INTEGER,                  -- whose verdicts and result it has: its own id, or that of an equal job
    spec TEXT NOT NULL,           -- JSON, without prompts
    prompts TEXT                  -- JSON; NULL for a built-in task
);
CREATE UNIQUE INDEX jobs_by_request ON jobs (user, request_id);
CREATE INDEX jobs_by_user ON jobs (user, id);
CREATE INDEX jobs_by_state ON jobs (state, user);
CREATE INDEX jobs_by_content ON jobs (user, content, state);
CREATE INDEX jobs_by_log ON jobs (log);

-- Verdicts in order, in runs that were decided together. They outlive their own job as long as another has them.
CREATE TABLE verdicts (
    log INTEGER NOT NULL,
    first INTEGER NOT NULL,       -- number of the first one, from 0
    data BLOB NOT NULL,
    PRIMARY KEY (log, first)
) WITHOUT ROWID;

CREATE TABLE results (
    log INTEGER PRIMARY KEY,
    value REAL NOT NULL,          -- metric of the circuit, the full model, the empty circuit
    full_model REAL NOT NULL,
    empty_circuit REAL NOT NULL,
    kept BLOB NOT NULL,           -- one bit per edge
    graph TEXT NOT NULL,          -- JSON
    metric TEXT NOT NULL,         -- name
    request TEXT NOT NULL,        -- provenance, JSON
    run TEXT NOT NULL
);
