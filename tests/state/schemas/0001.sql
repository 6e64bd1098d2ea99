BEGIN TRANSACTION;
CREATE TABLE conversations (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    used_at REAL NOT NULL
) WITHOUT ROWID;
INSERT INTO "conversations" VALUES('000000000000000000000001','laptop',500,1000000000.0);
CREATE TABLE entries (
    name TEXT NOT NULL, -- of the table, as gateway/state/backend.py lists them
    key BLOB NOT NULL,
    value BLOB NOT NULL,
    tenant TEXT NOT NULL,
    expires_at REAL NOT NULL,
    PRIMARY KEY (name, key)
) WITHOUT ROWID;
INSERT INTO "entries" VALUES('owners',X'01',X'0061','laptop',9000000000.0);
CREATE TABLE records (
    key BLOB PRIMARY KEY,
    parent BLOB NOT NULL,
    conversation TEXT NOT NULL,
    value BLOB NOT NULL
);
INSERT INTO "records" VALUES(X'000000000000000000000001',X'','000000000000000000000001',X'0072');
CREATE TABLE responses (
    key BLOB PRIMARY KEY,
    record BLOB NOT NULL,
    conversation TEXT NOT NULL
) WITHOUT ROWID;
INSERT INTO "responses" VALUES(X'02',X'000000000000000000000001','000000000000000000000001');
CREATE INDEX entries_by_age ON entries (expires_at);
CREATE INDEX entries_by_tenant ON entries (tenant);
CREATE INDEX conversations_by_age ON conversations (used_at);
CREATE INDEX conversations_by_tenant ON conversations (tenant, used_at);
CREATE INDEX records_by_conversation ON records (conversation);
CREATE INDEX responses_by_conversation ON responses (conversation);
COMMIT;
PRAGMA user_version = 1;
