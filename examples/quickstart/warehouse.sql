-- A warehouse of 8 aisles with 30 racks each, none with a barcode yet.
DROP TABLE IF EXISTS racks;
DROP TABLE IF EXISTS aisles;

CREATE TABLE aisles (
    id    INTEGER PRIMARY KEY,
    code  TEXT NOT NULL UNIQUE
);

CREATE TABLE racks (
    id           INTEGER PRIMARY KEY,
    aisle_id     INTEGER NOT NULL,
    rack_number  TEXT NOT NULL,
    barcode      TEXT,
    UNIQUE (aisle_id, rack_number)
);

INSERT INTO aisles (id, code)
VALUES (1, 'A'), (2, 'B'), (3, 'C'), (4, 'D'), (5, 'E'), (6, 'F'), (7, 'G'), (8, 'H');

WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 30)
INSERT INTO racks (aisle_id, rack_number)
SELECT a.id, printf('%03d', n)
  FROM aisles a, numbers
 ORDER BY a.id, n;
