-- API tokens. Times are seconds since the epoch.
CREATE TABLE tokens (
    id TEXT PRIMARY KEY,          -- the public part
    digest BLOB NOT NULL,         -- SHA-256 of the whole token, which is kept nowhere
    user TEXT NOT NULL,
    scope TEXT NOT NULL CHECK (scope IN ('user', 'admin')),
    created REAL NOT NULL,
    expires REAL,                 -- NULL: never
    revoked REAL                  -- NULL: it is not
) WITHOUT ROWID;
