-- Rows that are small and read by key, or as a whole table.
CREATE TABLE entries (
    name TEXT NOT NULL, -- of the table, as gateway/state/backend.py lists them
    key BLOB NOT NULL,
    value BLOB NOT NULL,
    tenant TEXT NOT NULL,
    expires_at REAL NOT NULL,
    PRIMARY KEY (name, key)
) WITHOUT ROWID;
CREATE INDEX entries_by_age ON entries (expires_at);
CREATE INDEX entries_by_tenant ON entries (tenant);

-- Conversations are trimmed as a whole: an incomplete transcript cannot be replayed.
CREATE TABLE conversations (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    used_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX conversations_by_age ON conversations (used_at);
CREATE INDEX conversations_by_tenant ON conversations (tenant, used_at);

CREATE TABLE records (
    key BLOB PRIMARY KEY,
    parent BLOB NOT NULL,
    conversation TEXT NOT NULL,
    value BLOB NOT NULL
);
CREATE INDEX records_by_conversation ON records (conversation);

-- From the digest of a response id to its record.
CREATE TABLE responses (
    key BLOB PRIMARY KEY,
    record BLOB NOT NULL,
    conversation TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX responses_by_conversation ON responses (conversation);
