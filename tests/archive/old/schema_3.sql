BEGIN TRANSACTION;
CREATE TABLE grants (
    number INTEGER PRIMARY KEY, worker INTEGER, granted_ms INTEGER NOT NULL,
    still INTEGER NOT NULL,          -- messages that are not back
    entries BLOB NOT NULL,           -- lane, first position, count: u64 each
    back BLOB NOT NULL               -- positions that wait again: u64 each
);
INSERT INTO "grants" VALUES(4,1,1700000000000,1,X'00000000000000000000B000000000000100000000000000',X'');
CREATE TABLE lanes (number INTEGER PRIMARY KEY, queue INTEGER NOT NULL, task TEXT NOT NULL);
INSERT INTO "lanes" VALUES(0,0,'t');
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO "meta" VALUES('batch',12);
INSERT INTO "meta" VALUES('log',X'CD072CD8BE6F9F62AC4C09C28206E7E3');
INSERT INTO "meta" VALUES('rows',4);
INSERT INTO "meta" VALUES('shed',0);
CREATE TABLE names (number INTEGER PRIMARY KEY, text TEXT NOT NULL);
INSERT INTO "names" VALUES(1,'73737373737373737373737373737373/1');
INSERT INTO "names" VALUES(2,'t');
INSERT INTO "names" VALUES(3,'q');
CREATE TABLE queues (number INTEGER PRIMARY KEY, name TEXT NOT NULL, history TEXT NOT NULL);
INSERT INTO "queues" VALUES(0,'q','');
CREATE TABLE results (position INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
INSERT INTO "results" VALUES(5242880,X'32');
INSERT INTO "results" VALUES(8388608,X'93A145A16DA57472616365');
CREATE TABLE tasks (
    position INTEGER PRIMARY KEY,
    id,                              -- 16 bytes of a UUIDv7, or the text its caller chose
    task INTEGER,                    -- names; NULL for a plain message
    queue INTEGER,                   -- names: where it was published to
    root TEXT,
    parent TEXT,
    published_ms INTEGER,            -- all times: milliseconds since 1970
    worker INTEGER,                  -- names: session/member; NULL where none is known
    state INTEGER NOT NULL,          -- qprotocol.states.State
    failures INTEGER NOT NULL,
    started_ms INTEGER,
    finished_ms INTEGER NOT NULL,
    run_ms INTEGER,
    keep_until_ms INTEGER NOT NULL,  -- until then callers may ask for it; 0: not any more
    brief INTEGER NOT NULL,          -- 1: the row goes when nobody may ask any more
    reason TEXT,                     -- why it failed for good, or was revoked
    error TEXT,                      -- the failure's kind
    message TEXT,                    -- and how it begins; all of it is in results
    content INTEGER,                 -- how the result is encoded; NULL without one
    preview TEXT                     -- what the client showed of the arguments; NULL without one
);
INSERT INTO "tasks" VALUES(2097152,'t1.0',2,3,'t0',NULL,1700000000000,1,6,0,1700000000000,1700000000000,NULL,0,0,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(2097153,'t1.1',2,3,'t0',NULL,1700000000000,1,6,0,1700000000000,1700000000000,NULL,0,0,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(5242880,'t2.0',2,3,'t0',NULL,1700000000000,1,6,0,1699999999995,1700000000000,5,1700086400000,0,NULL,NULL,NULL,1,NULL);
INSERT INTO "tasks" VALUES(8388608,'t3.0',2,3,'t0',NULL,1700000000000,1,7,1,1699999999995,1700000000000,5,1700086400000,0,NULL,'E','m',1,NULL);
CREATE TABLE tries (
    position INTEGER PRIMARY KEY, failures INTEGER NOT NULL, published_ms INTEGER NOT NULL,
    lane INTEGER NOT NULL
);
INSERT INTO "tries" VALUES(8388608,1,0,0);
CREATE INDEX tasks_id ON tasks (id);
CREATE INDEX tasks_task ON tasks (task, finished_ms);
CREATE INDEX tasks_kept ON tasks (keep_until_ms) WHERE keep_until_ms > 0;
CREATE VIEW history AS
    SELECT position, CASE typeof(id) WHEN 'blob' THEN lower(hex(id)) ELSE id END AS id,
        t.text AS task, q.text AS queue, w.text AS worker,
        CASE state WHEN 6 THEN 'SUCCESS' WHEN 7 THEN 'FAILURE' ELSE 'REVOKED' END AS state,
        failures, published_ms, started_ms, finished_ms, run_ms, reason, error, message, preview
    FROM tasks LEFT JOIN names t ON t.number = task LEFT JOIN names q ON q.number = queue
        LEFT JOIN names w ON w.number = worker;
CREATE INDEX tasks_finished ON tasks (finished_ms, queue, worker);
CREATE INDEX tasks_unsuccessful ON tasks (finished_ms, state, error) WHERE state <> 6;
COMMIT;
