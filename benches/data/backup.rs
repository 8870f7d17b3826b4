//! `pg_dump` as a step against bare `pg_dump -Fc` of the same database of about 500 MB: with
//! the same compression, with and without reading the dump back, and as the step is shipped.

use crate::Workshop;
use crate::measure::Race;
use crate::postgres::Database;
use crate::quiet;

const ROWS: u64 = 2_500_000;
const TABLE: &str = "CREATE TABLE scans (id bigint PRIMARY KEY, session_id int NOT NULL, barcode text NOT NULL, scanned_by uuid NOT NULL, \
     scanned_at timestamptz NOT NULL, notes text); CREATE INDEX scans_session ON scans (session_id)";

const PLAYBOOK: &str = r#"
version: 1
name: backup
connections: {main: {url: "URL"}}
steps:
  - id: dump
    pg_dump: {file: "DIR/{{ run.id }}.dump"FIELDS}
"#;

/// The checksum is computed on the way.
pub fn checksum(workshop: &Workshop) -> Race {
    race(workshop, "checksum", ", compression: 6, verify: checksum, with: [], globals: false", 1.0 / 1.10)
}

/// It is also read to its end.
pub fn archive(workshop: &Workshop) -> Race {
    race(workshop, "archive", ", compression: 6, with: [], globals: false", 1.0 / 1.35)
}

/// As shipped: compression 1, read back, counted.
pub fn shipped(workshop: &Workshop) -> Race {
    race(workshop, "shipped", "", 1.0)
}

/// As shipped, by several connections.
pub fn directory(workshop: &Workshop) -> Race {
    race(workshop, "directory", ", format: directory", 1.0)
}

fn race(workshop: &Workshop, name: &str, fields: &str, at_least: f64) -> Race {
    let database = filled(workshop, name);
    let (ours, theirs) = (workshop.path(&format!("{name}.ours")), workshop.path(&format!("{name}.dump")));
    let playbook = PLAYBOOK.replace("URL", database.url()).replace("DIR", &ours.display().to_string()).replace("FIELDS", fields);
    let playbook = workshop.write(&format!("backup-{name}.yaml"), &playbook);
    let (to_clear, to_write, to_check) = ((ours.clone(), theirs.clone()), theirs.clone(), (ours, theirs));
    Race {
        rounds: 3,
        rows: ROWS,
        prepare: Box::new(move || {
            let _ = std::fs::remove_dir_all(&to_clear.0);
            let _ = std::fs::remove_file(&to_clear.1);
        }),
        subject: Box::new(workshop.run(&playbook)),
        baseline: Box::new(move || {
            let mut dump = quiet("pg_dump");
            dump.args(["-Fc", "-d", database.url(), "-f"]).arg(&to_write);
            dump
        }),
        verify: Box::new(move || assert!(to_check.0.exists() || to_check.1.exists(), "something was dumped")),
        at_least,
        megabytes: Some(50),
    }
}

fn filled(workshop: &Workshop, name: &str) -> Database {
    let database = workshop.database(&format!("backup-{name}"));
    database.psql(TABLE);
    database.psql(&format!(
        "INSERT INTO scans SELECT i, i % 500, 'R-' || lpad((i::bigint * 7919 % 1000000)::text, 9, '0'), md5(i::text)::uuid, \
         '2026-01-01'::timestamptz + i * interval '13 seconds', repeat(md5((i / 3)::text), 3) FROM generate_series(1, {ROWS}) i"
    ));
    database.psql("VACUUM ANALYZE scans");
    database
}
