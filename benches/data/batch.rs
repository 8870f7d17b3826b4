//! `sql_batch` over a million racks with two secondary indexes against one UPDATE of them
//! all, and over a hundred thousand against the `LIMIT 100` loop that guides recommend.

use crate::measure::Race;
use crate::postgres::Database;
use crate::{Workshop, psql};

const TABLE: &str = "CREATE TABLE racks (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, audit_session_id int NOT NULL, \
     location_id int NOT NULL, rack_number text NOT NULL, barcode text, scanned_at timestamptz NOT NULL DEFAULT now())";
const INDEXES: &str =
    "CREATE INDEX racks_session ON racks (audit_session_id); CREATE INDEX racks_location ON racks (location_id, rack_number)";

/// Rows that one UPDATE is raced over.
pub const ROWS: u64 = 1_000_000;

const ONE_UPDATE: Plain =
    Plain { rows: ROWS, rounds: 3, sql: "UPDATE racks SET barcode = 'R-' || lpad(id::text, 9, '0') WHERE barcode IS NULL" };

const PLAYBOOK: &str = r#"
version: 1
name: barcodes
connections: {main: {url: "URL"}}
steps:
  - id: assign
    sql_batch:
      table: racks
      where: barcode IS NULL
      set: {barcode: "'R-' || lpad(id::text, 9, '0')"}
      order: ORDER
      workers: WORKERS
"#;

/// What the guides recommend: a hundred rows at a time, found anew each time.
const THE_GUIDES_LOOP: Plain = Plain {
    rows: 100_000,
    rounds: 3,
    sql: "DO $$ DECLARE changed bigint; BEGIN LOOP \
          UPDATE racks SET barcode = 'R-' || lpad(id::text, 9, '0') WHERE id IN (SELECT id FROM racks WHERE barcode IS NULL LIMIT 100); \
          GET DIAGNOSTICS changed = ROW_COUNT; COMMIT; EXIT WHEN changed = 0; END LOOP; END $$",
};

pub fn key_1(workshop: &Workshop) -> Race {
    race(workshop, "key-1", ONE_UPDATE, 1.0)
}

pub fn key_2(workshop: &Workshop) -> Race {
    race(workshop, "key-2", ONE_UPDATE, 1.6)
}

pub fn physical_1(workshop: &Workshop) -> Race {
    race(workshop, "physical-1", ONE_UPDATE, 1.5)
}

pub fn physical_2(workshop: &Workshop) -> Race {
    race(workshop, "physical-2", ONE_UPDATE, 2.5)
}

/// In the order the engine chooses, with the one worker it has by itself.
pub fn guides_loop(workshop: &Workshop) -> Race {
    race(workshop, "auto-1", THE_GUIDES_LOOP, 15.0)
}

/// The plain way, over so many rows and so often.
struct Plain {
    rows: u64,
    rounds: usize,
    sql: &'static str,
}

fn race(workshop: &Workshop, way: &str, plain: Plain, at_least: f64) -> Race {
    let Plain { rows, rounds, sql } = plain;
    let (order, workers) = way.split_once('-').expect("ORDER-WORKERS");
    let template = template(workshop, &format!("template_{way}"), rows);
    let control = workshop.database(&format!("control_{way}"));
    let database = workshop.database(&format!("racks_{way}"));
    let playbook = workshop.write(&format!("{way}.yaml"), &playbook(database.url(), order, workers));
    let (to_fill, to_update, to_count) = (database.clone(), database.clone(), database);
    Race {
        rounds,
        rows,
        prepare: Box::new(move || {
            control.psql(&format!("DROP DATABASE IF EXISTS {}", to_fill.name()));
            control.psql(&format!("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy", to_fill.name(), template.name()));
        }),
        subject: Box::new(workshop.run(&playbook)),
        baseline: Box::new(move || psql(&to_update, sql)),
        verify: Box::new(move || {
            let right = "SELECT count(*) FROM racks WHERE barcode = 'R-' || lpad(id::text, 9, '0')";
            assert_eq!(to_count.psql(right), rows.to_string());
        }),
        at_least,
        megabytes: None,
    }
}

/// The migration, for a database, an `order` and a number of `workers`.
pub fn playbook(url: &str, order: &str, workers: &str) -> String {
    PLAYBOOK.replace("URL", url).replace("ORDER", order).replace("WORKERS", workers)
}

/// A database with so many racks, to be copied.
pub fn template(workshop: &Workshop, name: &str, rows: u64) -> Database {
    let template = workshop.database(name);
    template.psql(TABLE);
    template.psql(&format!(
        "INSERT INTO racks (audit_session_id, location_id, rack_number) SELECT i % 500, i % 2000, 'A-' || i FROM generate_series(1, {rows}) i"
    ));
    template.psql(INDEXES);
    template.psql("VACUUM ANALYZE racks");
    template
}
