-- Dump of a database of schema 2, as that version wrote it.
BEGIN TRANSACTION;
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
INSERT INTO "jobs" VALUES(1,'users/ada/discoveries/af3cc855b06d4a2dbc91e6d1485dcc2f','ada','done',X'94742D5A0089C0D7309629DCC5F9F4D5E7F474286F3A9D4F931897073E4CFD06',5,1.79601849229136800766e+09,1.79601849229245066645e+09,1.79601849229961657529e+09,'',46,11,2.0,28,0,0.00596107499950449,0,46,4,'c0ffee',X'DBB1FB0499654D5D1972482DD274AFCB9E4DF569D4E7DFBC2D81C4C43A170932',1,'{"builtin":null,"gates":false,"measurement":{"ablation":"resample","kv_receivers":"group","metric":"kl_divergence","model":"toy","precision":"fp32"},"method":"acdc","threshold":2.0}','{"answers":[],"clean":[[1,2],[3,4]],"corrupted":[[1,5],[3,6]],"positions":null,"wrong_answers":[]}');
INSERT INTO "jobs" VALUES(2,'users/ada/discoveries/d506ad34ed9a4265be6d6532a1fbfab0','ada',NULL,X'94742D5A0089C0D7309629DCC5F9F4D5E7F474286F3A9D4F931897073E4CFD06',5,1.79601849229994869235e+09,1.79601849229994869235e+09,1.79601849229994869235e+09,'',46,11,2.0,28,0,0.0,0,46,4,'c0ffee',X'DBB1FB0499654D5D1972482DD274AFCB9E4DF569D4E7DFBC2D81C4C43A170932',1,'{"builtin":null,"gates":false,"measurement":{"ablation":"resample","kv_receivers":"group","metric":"kl_divergence","model":"toy","precision":"fp32"},"method":"acdc","threshold":2.0}','{"answers":[],"clean":[[1,2],[3,4]],"corrupted":[[1,5],[3,6]],"positions":null,"wrong_answers":[]}');
INSERT INTO "jobs" VALUES(3,'users/bob/discoveries/c38ec888d4af403fb808fd6430ee7ddb','bob',NULL,X'828CF1F1C05165D4E0E68BF66ADAAA1FDFCE95B0E9710F1BA3EB750C0F543EEB',6,1796018492.30136,NULL,1.79601849230574178695e+09,'internal error (RuntimeError); see the server''s log',0,0,0.0,0,0,3.05859994114143773913e-05,0,46,4,'c0ffee',X'3A12420F2C96148979E3FAFF5F20F2855F1D22C2C0E0E39146881C9B70ED93E4',3,'{"builtin":null,"gates":false,"measurement":{"ablation":"resample","kv_receivers":"group","metric":"kl_divergence","model":"bad","precision":"fp32"},"method":"acdc","threshold":2.0}','{"answers":[],"clean":[[1,2],[3,4]],"corrupted":[[1,5],[3,6]],"positions":null,"wrong_answers":[]}');
INSERT INTO "jobs" VALUES(4,'users/ada/discoveries/4815c7eee65846c6b0dc31d1b9a67d97','ada','running',X'5F44945E7F42103A6B603505F852DEA058F74B5D63BA1F06428292D490C4545D',2,1.79601849230611038208e+09,1.79601849230925440792e+09,NULL,'',19,2,1.0,9,0,1.31417300053726648911e-03,0,46,4,'c0ffee',X'B87EC43EF737B8E76E54A96A4567A197AA099AE6296ECE24311375D618EB5CF6',4,'{"builtin":null,"gates":false,"measurement":{"ablation":"resample","kv_receivers":"group","metric":"kl_divergence","model":"toy","precision":"fp32"},"method":"acdc","threshold":1.5}','{"answers":[],"clean":[[1,2],[3,4]],"corrupted":[[1,5],[3,6]],"positions":[0,1],"wrong_answers":[]}');
INSERT INTO "jobs" VALUES(5,'users/bob/discoveries/3444b239505a49f08e9f3e0826f1344e','bob',NULL,X'9FEF285888DE82395805AACE7A3966DD31290FDE5630DA4743C58AECF6132D3E',3,1.79601849231110930445e+09,NULL,NULL,'',0,0,0.0,0,0,0.0,0,46,4,'c0ffee',X'F3B541D4072CD41AA094B7430ED72FFD495FCFD9B176C77270A2123176626704',5,'{"builtin":null,"gates":false,"measurement":{"ablation":"resample","kv_receivers":"group","metric":"kl_divergence","model":"toy","precision":"fp32"},"method":"acdc","threshold":0.25}','{"answers":[],"clean":[[1,2],[3,4]],"corrupted":[[1,5],[3,6]],"positions":null,"wrong_answers":[]}');
INSERT INTO "jobs" VALUES(6,'users/ada/discoveries/8c29f304da86472eb41aab7545d97556','ada','queued',X'B4BD1A823D911A8C60A840B0F51C66681DAC5473CEDE6D35355AF32043B98A12',1,1.79601849231719779961e+09,NULL,NULL,'',0,0,0.0,0,0,0.0,0,46,4,'c0ffee',X'AD8111CE1328F25D2D28965440B68DC432C4FD8D60B875CAD9BBEF4A1F7D0D41',6,'{"builtin":{"name":"ioi","num_prompts":4,"seed":7},"gates":false,"measurement":{"ablation":"resample","kv_receivers":"group","metric":"kl_divergence","model":"toy","precision":"fp32"},"method":"single_edge","threshold":null}',NULL);
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
INSERT INTO "results" VALUES(1,2.0,1.0,1.0,X'944830600090','{"heads":2,"kv_heads":2,"kv_receivers":"group","layers":2,"mlps":true,"parallel":false}','kl_divergence','{"model_revision":"c0ffee","parameters":{"ablation":"resample","gates":false,"kv_receivers":"group","method":"acdc","metric":"kl_divergence","threshold":2.0},"policy":"fp32","task_hash":"c9c52dc88b4cac684fde7adbb7372e5caee4636af2ac0c515ebb4bc82954eee0","version":"1.2.3"}','{"counts":{"batches":18,"replayed":0,"rows":38,"wasted":7},"device":"abacus","ended":"2026-11-30T06:01:32.299+00:00","hardware":{"beads":"100"},"model":"toy","seconds":0.007,"started":"2026-11-30T06:01:32.292+00:00"}');
CREATE TABLE tokens (
    id TEXT PRIMARY KEY,          -- the public part
    digest BLOB NOT NULL,         -- SHA-256 of the whole token, which is kept nowhere
    user TEXT NOT NULL,
    scope TEXT NOT NULL CHECK (scope IN ('user', 'admin')),
    created REAL NOT NULL,
    expires REAL,                 -- NULL: never
    revoked REAL                  -- NULL: it is not
) WITHOUT ROWID;
INSERT INTO "tokens" VALUES('0123456789abcdef',X'07F178C10F2C6D029C7D822621D83414EDA9BB6DA85D47154807F14F3DDCF932','ada','user',1700000000.0,4000000000.0,NULL);
INSERT INTO "tokens" VALUES('fedcba9876543210',X'CE4675BE06CB1CD8C9BDF8D2FC691F9EA59F9E3308A181850D9AEC1DACC5F905','root','admin',1700000001.0,NULL,1700000500.0);
CREATE TABLE verdicts (
    log INTEGER NOT NULL,
    first INTEGER NOT NULL,       -- number of the first one, from 0
    data BLOB NOT NULL,
    PRIMARY KEY (log, first)
) WITHOUT ROWID;
INSERT INTO "verdicts" VALUES(1,0,X'002D000000000000000000000000000040000000000000F03F00002C00000000000000000000000000000000000000000000C000');
INSERT INTO "verdicts" VALUES(1,2,X'002B000000000000000000000000001440000000000000144001');
INSERT INTO "verdicts" VALUES(1,3,X'002A000000000000000000000000000000000000000000000000002900000000000000000000000000F03F000000000000F03F00');
INSERT INTO "verdicts" VALUES(1,5,X'0028000000000000000000000000001440000000000000104001');
INSERT INTO "verdicts" VALUES(1,6,X'002700000000000000000000000000F03F000000000000000000');
INSERT INTO "verdicts" VALUES(1,7,X'001C00000000000000000000000000F03F000000000000000000001B00000000000000000000000000F03F000000000000000000');
INSERT INTO "verdicts" VALUES(1,9,X'001A000000000000000000000000001840000000000000144001');
INSERT INTO "verdicts" VALUES(1,10,X'0019000000000000000000000000001840000000000000144001');
INSERT INTO "verdicts" VALUES(1,11,X'0014000000000000000000000000000040000000000000F03F000013000000000000000000000000001040000000000000004001');
INSERT INTO "verdicts" VALUES(1,13,X'0012000000000000000000000000001440000000000000084001');
INSERT INTO "verdicts" VALUES(1,14,X'001100000000000000000000000000F03F000000000000F0BF00000C000000000000000000000000000840000000000000004001');
INSERT INTO "verdicts" VALUES(1,16,X'000B00000000000000000000000000F03F000000000000000000000A00000000000000000000000000F03F000000000000000000');
INSERT INTO "verdicts" VALUES(1,18,X'0009000000000000000000000000001840000000000000144001');
INSERT INTO "verdicts" VALUES(1,19,X'0008000000000000000000000000000040000000000000F03F00000700000000000000000000000000F03F000000000000F0BF00');
INSERT INTO "verdicts" VALUES(1,21,X'0006000000000000000000000000000000000000000000F0BF000005000000000000000000000000001040000000000000104001');
INSERT INTO "verdicts" VALUES(1,23,X'000400000000000000000000000000F03F000000000000F03F000003000000000000000000000000001440000000000000104001');
INSERT INTO "verdicts" VALUES(1,25,X'000200000000000000000000000000F03F0000000000000000000001000000000000000000000000000040000000000000F03F00');
INSERT INTO "verdicts" VALUES(1,27,X'0000000000000000000000000000001040000000000000004001');
INSERT INTO "verdicts" VALUES(4,0,X'002D000000000000000000000000000040000000000000F03F00002C00000000000000000000000000000000000000000000C000');
INSERT INTO "verdicts" VALUES(4,2,X'002B000000000000000000000000001440000000000000144001');
INSERT INTO "verdicts" VALUES(4,3,X'002A000000000000000000000000000000000000000000000000002900000000000000000000000000F03F000000000000F03F00');
INSERT INTO "verdicts" VALUES(4,5,X'0028000000000000000000000000001440000000000000104001');
INSERT INTO "verdicts" VALUES(4,6,X'002700000000000000000000000000F03F000000000000000000');
INSERT INTO "verdicts" VALUES(4,7,X'001C00000000000000000000000000F03F000000000000000000001B00000000000000000000000000F03F000000000000000000');
CREATE UNIQUE INDEX jobs_by_request ON jobs (user, request_id);
CREATE INDEX jobs_by_user ON jobs (user, id);
CREATE INDEX jobs_by_state ON jobs (state, user);
CREATE INDEX jobs_by_content ON jobs (user, content, state);
CREATE INDEX jobs_by_log ON jobs (log);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('jobs',6);
COMMIT;
PRAGMA application_id = 1346455633;
PRAGMA user_version = 2;
