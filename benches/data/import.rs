//! `import` of a million records, one in a hundred of them bad, against psql's `\copy` of
//! the good ones alone.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use crate::measure::Race;
use crate::{Workshop, psql};

const RECORDS: u64 = 1_000_000;
/// Every so many-th record is bad.
const BAD: u64 = 100;

const TABLE: &str = "CREATE TABLE orders (id bigint PRIMARY KEY, order_no text NOT NULL, customer_id bigint NOT NULL, \
     amount numeric(10,2) NOT NULL, state text NOT NULL, placed_on date, note text, import_run text)";

const PLAYBOOK: &str = r#"
version: 1
name: load
connections: {main: {url: "URL"}}
steps:
  - id: load
    import:
      file: "FILE"
      table: orders
      columns:
        id: {type: bigint, required: true}
        order_no: {type: text, required: true, pattern: "[A-Z]{2}-\\d{6,8}"}
        customer_id: {type: bigint, required: true, min: 1}
        amount: {type: numeric, min: 0}
        state: {type: text, required: true, enum: [open, shipped, returned]}
        placed_on: {type: date, min: "2000-01-01"}
        note: {type: text}
      rejects: {file: "REJECTS"}
      EXTRA
"#;

/// Rows that carry their run in a column.
pub fn with_run_column(workshop: &Workshop) -> Race {
    race(workshop, "import", "run_column: import_run")
}

/// Rows whose keys are noted, which writes another row for each.
pub fn with_noted_keys(workshop: &Workshop) -> Race {
    race(workshop, "import-noted", "")
}

fn race(workshop: &Workshop, name: &str, extra: &str) -> Race {
    let database = workshop.database(name);
    database.psql(TABLE);
    let (dirty, clean) = (workshop.path("dirty.csv"), workshop.path("clean.csv"));
    if !clean.exists() {
        write_records(&dirty, true);
        write_records(&clean, false);
    }
    let playbook = PLAYBOOK
        .replace("URL", database.url())
        .replace("FILE", &dirty.display().to_string())
        .replace("REJECTS", &workshop.path("rejects.csv").display().to_string())
        .replace("EXTRA", extra);
    let playbook = workshop.write(&format!("{name}.yaml"), &playbook);
    let rows = RECORDS - RECORDS / BAD;
    let copy = format!("\\copy orders (id, order_no, customer_id, amount, state, placed_on, note) FROM '{}' CSV HEADER", clean.display());
    let (to_empty, to_count, to_copy) = (database.clone(), database.clone(), database);
    Race {
        rounds: 5,
        rows,
        prepare: Box::new(move || {
            to_empty.psql("TRUNCATE orders");
            to_empty.psql("DROP TABLE IF EXISTS runbook.imported");
            to_empty.psql("CHECKPOINT");
        }),
        subject: Box::new(workshop.run(&playbook)),
        baseline: Box::new(move || psql(&to_copy, &copy)),
        verify: Box::new(move || assert_eq!(to_count.psql("SELECT count(*) FROM orders"), rows.to_string())),
        at_least: 0.8,
        megabytes: Some(100),
    }
}

/// About 80 bytes a record; of the bad ones, each of a few reasons in turn.
fn write_records(path: &Path, with_bad: bool) {
    let mut file = BufWriter::new(File::create(path).expect("own directory"));
    let mut record = |text: String| writeln!(file, "{text}").expect("own directory");
    record("id,order_no,customer_id,amount,state,placed_on,note".into());
    for n in 1..=RECORDS {
        let (customer, cents, day, state) =
            (n * 7919 % 50_000 + 1, n * 31 % 1_000_000, n % 28 + 1, ["open", "shipped", "returned"][n as usize % 3]);
        let number = match (n % BAD, n / BAD % 3) {
            (0, _) if !with_bad => continue,
            (0, 0) => format!("wrong {n}"),
            (0, 1) => String::new(),
            (0, _) => format!("AB-{n:08},too many"),
            _ => format!("AB-{n:08}"),
        };
        record(format!("{n},{number},{customer},{}.{:02},{state},2026-05-{day:02},\"order {n}, of a customer\"", cents / 100, cents % 100));
    }
    file.flush().expect("own directory");
}
