//! Files as people have them, into a real database: what is loaded, what is rejected and
//! why, what happens at the limits, and that nothing is ever loaded twice.

mod batches;
mod crashes;
mod direct;

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::crash::wait_until;
use crate::environment::{Output, TestEnv};
use crate::postgres::Database;
use crate::stock_audit::{run_of, stable};

const TABLES: &str = "
    CREATE TABLE customers (id bigint PRIMARY KEY, name text NOT NULL);
    INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 10) n;
    CREATE TYPE order_state AS ENUM ('open', 'shipped');
    CREATE TABLE orders (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        order_no varchar(12) NOT NULL UNIQUE,
        customer_id bigint REFERENCES customers (id),
        amount numeric(8,2) NOT NULL,
        state order_state NOT NULL DEFAULT 'open',
        placed_on date,
        note text,
        import_run text);";

const PLAYBOOK: &str = r#"
version: 1
name: load
connections:
  main: {url: "{{ env.DATABASE_URL }}"}
steps:
  - id: load
    import:
      file: orders.csv
      table: orders
      columns:
        order_no: {type: text, required: true, pattern: "A-\\d+"}
        customer_id: {type: bigint, references: customers.id}
        amount: {type: numeric, min: 0}
        state: {type: text, required: true}
        placed_on: {type: date, max: "2026-12-31"}
        note: {type: text}
      rejects: {file: rejects.csv}
      run_column: import_run
"#;

const HEADER: &str = "order_no,customer_id,amount,state,placed_on,note\n";

/// A database with the tables, and the playbook.
struct Site {
    env: TestEnv,
    database: Database,
}

impl Site {
    fn new(file: impl AsRef<[u8]>) -> Self {
        Self::with(PLAYBOOK, file)
    }

    fn with(playbook: &str, file: impl AsRef<[u8]>) -> Self {
        let mut env = TestEnv::new();
        let database = env.database();
        database.psql(TABLES);
        env.write("load.yaml", playbook);
        env.write("orders.csv", file);
        Self { env, database }
    }

    fn run(&self) -> Output {
        self.env.runbook(["run", "load.yaml"]).run()
    }

    fn orders(&self) -> String {
        self.database.psql("SELECT count(*) FROM orders")
    }
}

/// Good orders, `from..to`.
fn orders(from: usize, to: usize) -> String {
    (from..to).fold(String::new(), |mut text, n| {
        writeln!(text, "A-{n},{},{}.50,open,2026-05-01,", n % 10 + 1, n % 1000).unwrap();
        text
    })
}

// ---- what a file may look like ---------------------------------------------------

#[test]
fn good_records_are_loaded_as_they_are_written() {
    let file = "\u{FEFF}note,order_no,amount,state,customer_id,placed_on\r\n\
         \"two\nlines, \"\"quoted\"\"\",A-1,12.50,open,1,2026-05-01\r\n\
         \r\n\
         tab\there \\ and \\N,A-2,1e2,shipped,,\r\n\
         =1+1,A-3,0,open,10,2026-02-28";
    let site = Site::new(file);
    let done = site.run().exits(0);
    insta::assert_snapshot!(stable(&done.stdout), @"
    load  1 step, run [RUN]
      main: [DATABASE] (system [ID])

    done           [DURATION]  load → 3 rows imported, 0 of 3 records rejected (0%)
      finding   column `note`: 1 text that a spreadsheet would take for a formula, kept as text

    done after [DURATION]: 1 done
      1 finding:
        load: column `note`: 1 text that a spreadsheet would take for a formula, kept as text
      runbook show [RUN]  every step, who confirmed what
    ");
    insta::assert_snapshot!(site.database.psql("SELECT order_no, customer_id, amount, state, placed_on, note FROM orders ORDER BY 1"), @r#"
    A-1|1|12.50|open|2026-05-01|two
    lines, "quoted"
    A-2||100.00|shipped||tab	here \ and \N
    A-3|10|0.00|open|2026-02-28|=1+1
    "#);
    assert_eq!(site.database.psql("SELECT DISTINCT import_run FROM orders"), run_of(&done));
    assert_eq!(site.env.read("rejects.csv"), "line,column,reason,raw\n");
}

#[test]
fn other_formats_and_encodings_are_read() {
    let playbook =
        PLAYBOOK.replace("file: orders.csv", "file: orders.csv\n      delimiter: ';'\n      encoding: windows-1252\n      quote: \"'\"");
    let site = Site::with(&playbook, b"order_no;customer_id;amount;state;placed_on;note\nA-1;1;2;open;;'Caf\xe9; \x80'\n");
    site.run().exits(0);
    assert_eq!(site.database.psql("SELECT note FROM orders"), "Café; €");

    let site = Site::with(&PLAYBOOK.replace("orders.csv", "orders.ndjson"), "");
    site.env.write(
        "orders.ndjson",
        "{\"order_no\": \"A-1\", \"amount\": 123456.78, \"state\": \"open\", \"note\": null, \"other\": {}}\n\n\
         {\"order_no\": \"A-2\", \"amount\": \"1\", \"state\": \"open\", \"note\": \"\\u00e9\"}",
    );
    let done = site.run().exits(0);
    assert_eq!(site.database.psql("SELECT order_no, amount, note FROM orders ORDER BY 1"), "A-1|123456.78|\nA-2|1.00|é");
    assert!(done.stdout.contains("not imported: other"), "{done}");

    let utf16: Vec<u8> = format!("\u{FEFF}{HEADER}A-1,1,2,open,,Ж\n").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let site = Site::new(&utf16);
    let refused = site.run().exits(3);
    assert!(refused.stdout.contains("encoding: utf-16le"), "{refused}");
    let site = Site::with(&PLAYBOOK.replace("file: orders.csv", "file: orders.csv\n      encoding: utf-16le"), &utf16);
    site.run().exits(0);
    assert_eq!(site.database.psql("SELECT note FROM orders"), "Ж");
}

#[test]
fn a_header_that_does_not_fit_is_said_before_anything_is_read() {
    let site = Site::new("order_no,customer,amount,state,placed_on,note\nA-1,1,1,open,,\n");
    insta::assert_snapshot!(stable(&site.run().exits(3).stdout), @"
    load  1 step, run [RUN]
      main: [DATABASE] (system [ID])

    FAILED         [DURATION]  load
      cannot import [DIR]/orders.csv: the header has no `customer_id`; it has `order_no`, `customer`, `amount`, `state`, `placed_on`, `note`
      step      load
      where     load.yaml:[PLACE]
                [LINE] |       file: orders.csv
      state     this step changed nothing, or what it changed was rolled back
      next      runbook show [RUN] load  its attempts and output
                runbook resume [RUN]  tries again from here; what is done stays done

    failed after [DURATION]: 1 failed
      runbook resume [RUN]  tries again; what is done stays done
    ");
}

// ---- rejects and the gate ---------------------------------------------------------

/// One record of each kind of mistake.
const BAD: &[u8] = b"A-1,1,1.00,open,2026-05-01,fine\n\
    A-2,1,-1,open,2026-05-01,negative\n\
    B-3,x,1.005,closed,2026-02-30,\"everything\nis wrong\"\n\
    A-4,99,1,open,,no such customer\n\
    A-5,1,1,open\n\
    A-6,1,1,open,,nul\0here\n\
    A-7,1,1,open,,\xff\xfe\n\
    A-8,1,1000000,open,,too large for the column\n\
    A-123456789012,1,1,open,,too long for the column\n\
    ,1,1,open,,no number\n\
    A-11,1,1,open,2027-01-01,\"not yet\n";

#[test]
fn rejects_are_listed_with_line_column_reason_and_text() {
    let site = Site::new([HEADER.as_bytes(), BAD].concat());
    let failed = site.run().exits(3);
    insta::assert_snapshot!(stable(&failed.stdout), @r#"
    load  1 step, run [RUN]
      main: [DATABASE] (system [ID])

    FAILED         [DURATION]  load → 10 of 11 records (90.9091%) were rejected
      10 of 11 records (90.9091%) were rejected, more than 10%; nothing was loaded
      step         load
      where        load.yaml:[PLACE]
                   [LINE] |       table: orders
      all of them  [DIR]/rejects.csv
      rows         line | column                                          | reason                                           | raw
                   -----+-------------------------------------------------+--------------------------------------------------+-------------------------------------------------
                      3 | amount                                          | less than 0                                      | A-2,1,-1,open,2026-05-01,negative
                      4 | order_no; customer_id; amount; state; placed_on | does not match A-\d+; not a whole number; does … | B-3,x,1.005,closed,2026-02-30,"everything↵is wr…
                      7 |                                                 | 4 fields instead of 6                            | A-5,1,1,open
                      8 | note                                            | holds a NUL character                            | A-6,1,1,open,,nul�here
                      9 | note                                            | not UTF-8 text                                   | A-7,1,1,open,,��
                     10 | amount                                          | does not fit numeric(8,2) of the column          | A-8,1,1000000,open,,too large for the column
                     11 | order_no                                        | longer than the 12 characters of the column      | A-123456789012,1,1,open,,too long for the column
                     12 | order_no                                        | has no value                                     | ,1,1,open,,no number
                     13 |                                                 | a quote is opened and never closed               | A-11,1,1,open,2027-01-01,"not yet
                      6 | customer_id                                     | there is no customers.id 99                      | A-4,99,1,open,,no such customer
      state        this step changed nothing, or what it changed was rolled back
      hint         correct the file, or the rules in `columns`, and run again
      next         runbook show [RUN] load  its attempts and output
                   runbook resume [RUN]  tries again from here; what is done stays done

    failed after [DURATION]: 1 failed
      runbook resume [RUN]  tries again; what is done stays done
    "#);
    insta::assert_snapshot!(site.env.read("rejects.csv").replace('\u{FFFD}', "?"), @r#"
    line,column,reason,raw
    3,amount,less than 0,"A-2,1,-1,open,2026-05-01,negative"
    4,order_no; customer_id; amount; state; placed_on,"does not match A-\d+; not a whole number; does not fit numeric(8,2) of the column; not one of the allowed values; not a date such as 2026-05-01","B-3,x,1.005,closed,2026-02-30,""everything
    is wrong"""
    7,,4 fields instead of 6,"A-5,1,1,open"
    8,note,holds a NUL character,"A-6,1,1,open,,nul?here"
    9,note,not UTF-8 text,"A-7,1,1,open,,??"
    10,amount,"does not fit numeric(8,2) of the column","A-8,1,1000000,open,,too large for the column"
    11,order_no,longer than the 12 characters of the column,"A-123456789012,1,1,open,,too long for the column"
    12,order_no,has no value,",1,1,open,,no number"
    13,,a quote is opened and never closed,"A-11,1,1,open,2027-01-01,""not yet"
    6,customer_id,there is no customers.id 99,"A-4,99,1,open,,no such customer"
    "#);
    let mode = std::fs::metadata(site.env.path("rejects.csv")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(site.orders(), "0");
    assert!(!site.env.path("rejects.csv.partial").exists());
}

fn with_bad(good: usize, bad: usize) -> String {
    let bad = (0..bad).fold(String::new(), |text, n| text + &format!("wrong {n},1,1,open,,\n"));
    format!("{HEADER}{}{bad}", orders(0, good))
}

#[test]
fn at_the_limits_the_gate_passes_warns_and_stops() {
    let five = Site::new(with_bad(95, 5));
    let done = five.run().exits(0);
    assert!(done.stdout.contains("95 rows imported, 5 of 100 records rejected (5%)"), "{done}");

    let seven = Site::new(with_bad(93, 7));
    let done = seven.run().exits(0);
    assert!(done.stdout.contains("7 of 100 records (7%) were rejected, more than 5%"), "{done}");
    assert_eq!(seven.orders(), "93");

    let twenty = Site::new(with_bad(80, 20));
    let failed = twenty.run().exits(3);
    assert!(failed.stdout.contains("20 of 100 records (20%) were rejected, more than 10%; nothing was loaded"), "{failed}");
    assert_eq!(twenty.orders(), "0");

    let all = Site::new(with_bad(0, 1000));
    let failed = all.run().exits(3);
    assert!(failed.stdout.contains("1000 of 1000 records (100%)"), "{failed}");
    assert_eq!(all.env.read("rejects.csv").lines().count(), 1001);
}

#[test]
fn on_a_protected_database_somebody_confirms_a_bad_file() {
    let playbook = PLAYBOOK.replace("name: load\n", "name: load\nenvironment: staging\n");
    let site = Site::with(&playbook, with_bad(93, 7));
    site.env.runbook(["stamp", "staging"]).run().exits(0);
    let waiting = site.run().exits(5);
    assert!(waiting.stdout.contains("Load the other 93 into orders?"), "{waiting}");
    assert_eq!(site.orders(), "0");

    // Another file is another question: the answer to the first one does not count.
    site.env.runbook(["approve", &run_of(&waiting), "load", "--as", "ada"]).run().exits(0);
    site.env.write("orders.csv", with_bad(92, 8));
    let again = site.env.runbook(["resume", &run_of(&waiting)]).run().exits(5);
    assert!(again.stdout.contains("Load the other 92 into orders?"), "{again}");
    site.env.runbook(["approve", &run_of(&waiting), "load", "--as", "ada"]).run().exits(0);
    let done = site.env.runbook(["resume", &run_of(&waiting)]).run().exits(0);
    assert!(done.stdout.contains("confirmed by ada"), "{done}");
    assert_eq!(site.orders(), "92");

    let declined = Site::with(&playbook, with_bad(93, 7));
    declined.env.runbook(["stamp", "staging"]).run().exits(0);
    let waiting = declined.run().exits(5);
    declined.env.runbook(["approve", &run_of(&waiting), "load", "--decline"]).run().exits(0);
    declined.env.runbook(["resume", &run_of(&waiting)]).run().exits(3);
    assert_eq!(declined.orders(), "0");
}

#[test]
fn a_quote_that_swallows_the_file_counts_for_every_line_of_it() {
    let site = Site::new(format!("{HEADER}{}A-x,1,1,open,,\"never closed\n{}", orders(0, 60), orders(60, 100)));
    let failed = site.run().exits(3);
    assert!(failed.stdout.contains("41 of 101 records"), "{failed}");
    assert!(site.env.read("rejects.csv").contains("62,,a quote is opened and never closed,"), "{failed}");
    assert_eq!(site.orders(), "0");
}

#[test]
fn a_column_must_be_as_complete_as_is_asked() {
    let playbook = PLAYBOOK.replace("note: {type: text}", "note: {type: text, completeness: 90%}");
    let site = Site::with(&playbook, format!("{HEADER}{}A-9,1,1,open,,there\n", orders(0, 9)));
    let failed = site.run().exits(3);
    assert!(failed.stdout.contains("10% of the accepted records have a value, expected at least 90%"), "{failed}");
    assert_eq!(site.orders(), "0");
}

// ---- duplicates --------------------------------------------------------------------

fn with_duplicates(words: &str) -> Site {
    let playbook = PLAYBOOK.replace("run_column: import_run", &format!("run_column: import_run\n      {words}"));
    let site = Site::with(&playbook, format!("{HEADER}A-1,1,1,open,,first\nA-2,1,2,open,,two\nA-1,1,3,open,,last\n"));
    site.database.psql("INSERT INTO orders (order_no, amount, note) VALUES ('A-2', 20, 'old')");
    site
}

const SEEN: &str = "SELECT order_no, amount, note, import_run IS NOT NULL FROM orders ORDER BY 1";

#[test]
fn duplicates_fail_are_skipped_or_update() {
    let fails = with_duplicates("key: [order_no]");
    insta::assert_snapshot!(stable(&fails.run().exits(3).stdout), @r#"
    load  1 step, run [RUN]
      main: [DATABASE] (system [ID])

    FAILED         [DURATION]  load
      duplicate key value violates unique constraint "orders_order_no_key"
      step        load
      where       load.yaml:[PLACE]
                  [LINE] |       table: orders
      code        23505
      DETAIL      Key (order_no)=(A-2) already exists.
      constraint  orders_order_no_key
      rows        line | order_no | there already
                  -----+----------+--------------------
                     3 | A-2      | in the table
                     4 | A-1      | earlier in the file
      state       this step changed nothing, or what it changed was rolled back
      hint        say what shall happen to duplicates: `on_duplicate: skip` or `update`, with `key`
      next        runbook show [RUN] load  its attempts and output
                  runbook resume [RUN]  tries again from here; what is done stays done

    failed after [DURATION]: 1 failed
      runbook resume [RUN]  tries again; what is done stays done
    "#);
    assert_eq!(fails.database.psql(SEEN), "A-2|20.00|old|f");

    let skips = with_duplicates("on_duplicate: skip");
    let done = skips.run().exits(0);
    assert!(done.stdout.contains("1 row imported, 2 skipped"), "{done}");
    assert_eq!(skips.database.psql(SEEN), "A-1|1.00|first|t\nA-2|20.00|old|f");

    // What was only updated is not this run's: taking the import back must not delete it.
    let updates = with_duplicates("on_duplicate: update\n      key: [order_no]");
    let done = updates.run().exits(0);
    assert!(done.stdout.contains("1 row imported, 1 updated"), "{done}");
    assert_eq!(updates.database.psql(SEEN), "A-1|3.00|last|t\nA-2|2.00|two|f");
}

#[test]
fn rows_without_a_column_for_it_are_attributed_by_their_key() {
    let site = Site::with(&PLAYBOOK.replace("      run_column: import_run\n", ""), format!("{HEADER}{}", orders(0, 3)));
    site.database.psql("INSERT INTO orders (order_no, amount) VALUES ('A-9', 1)");
    let done = site.run().exits(0);
    let noted = "SELECT o.order_no FROM runbook.imported i JOIN orders o ON o.id = (i.key ->> 'id')::bigint
                  WHERE i.table_name = 'orders' AND i.run = ";
    assert_eq!(site.database.psql(&format!("{noted} '{}' ORDER BY 1", run_of(&done))), "A-0\nA-1\nA-2");

    site.database.psql("CREATE TABLE loose AS SELECT order_no, customer_id, amount, state, placed_on, note FROM orders WHERE false");
    let loose = PLAYBOOK.replace("      run_column: import_run\n", "").replace("table: orders", "table: loose");
    site.env.write("load.yaml", loose);
    let refused = site.run().exits(3);
    assert!(refused.stdout.contains("`loose` has no primary key"), "{refused}");
}

// ---- SQLite ------------------------------------------------------------------------

#[test]
fn sqlite_takes_the_same_step() {
    let mut env = TestEnv::new();
    env.set("DATABASE_URL", "sqlite:shop.db?mode=rwc");
    let tables = "CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT);
        INSERT INTO customers VALUES (1, 'one'), (2, 'two');
        CREATE TABLE orders (order_no TEXT PRIMARY KEY, customer_id INTEGER, amount NUMERIC, state TEXT, placed_on TEXT, note TEXT);
        INSERT INTO orders VALUES ('A-2', 1, 20, 'open', NULL, 'old');";
    env.write("tables.sql", tables);
    let setup = "  - id: setup\n    sql: {file: tables.sql}\n";
    let playbook = PLAYBOOK.replace("steps:\n", &format!("steps:\n{setup}")).replace("      run_column: import_run\n", "");
    let look = "
  - id: look
    sql:
      query: SELECT order_no, amount, typeof(amount) AS type, note FROM orders ORDER BY 1
      expect: {rows: 3, each_row: type != 'text', any_row: order_no == 'A-2' and amount == 2 and note == 'new'}
  - id: noted
    sql:
      query: SELECT group_concat(key, ' ') FROM (SELECT key FROM runbook_imported ORDER BY key)
";
    env.write("load.yaml", format!("{playbook}      on_duplicate: update\n      key: [order_no]\n{look}"));
    let rows = format!("{HEADER}A-1,1,1.5,open,,\"it's\ntwo\"\nA-2,2,2,open,,new\nA-3,2,3,open,,\n");
    env.write("orders.csv", format!("{rows}A-4,99,3,open,,\n"));
    let failed = env.runbook(["run", "load.yaml"]).run().exits(3);
    assert!(failed.stdout.contains("1 of 4 records (25%) were rejected"), "{failed}");
    assert!(env.read("rejects.csv").contains("6,customer_id,there is no customers.id 99,"), "{}", env.read("rejects.csv"));

    env.write("orders.csv", rows);
    let done = env.runbook(["resume", &run_of(&failed)]).run().exits(0);
    insta::assert_snapshot!(stable(&done.stdout), @r#"
    load  4 steps, run [RUN]
      main: shop.db
      goes on: 1 of 4 steps settled, what is done stays done

    done           [DURATION]  load → 2 rows imported, 1 updated, 0 of 3 records rejected (0%)
    done           [DURATION]  look → 3 rows
    done           [DURATION]  noted → {"order_no":"A-1"} {"order_no":"A-3"}

    done after [DURATION]: 4 done
      runbook show [RUN]  every step, who confirmed what
    "#);
}

// ---- hostile files ------------------------------------------------------------------

/// Runs it and makes sure that it needs less than 100 MB, however large the file is.
fn run_in_little_memory(site: &Site) -> Output {
    let running = site.env.runbook(["run", "load.yaml"]).spawn();
    let status = format!("/proc/{}/status", running.pid());
    let mut most = 0;
    while !running.has_ended() {
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        most = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0).max(most);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(most > 0 && most < 100_000_000 / 1024, "{most} KiB");
    running.wait()
}

/// One of 64 MB in an ordinary run, and of 1 GB with `RUNBOOK_TEST_CRASHES=all`. Written as a
/// hole, it takes no room on the disk.
#[test]
fn a_line_of_a_gigabyte_is_a_reject_and_memory_stays_small() {
    let length = if std::env::var("RUNBOOK_TEST_CRASHES").as_deref() == Ok("all") { 1 << 30 } else { 64 << 20 };
    for quote in ["", "\""] {
        let site = Site::new(format!("{HEADER}{}A-1,1,1,open,,{quote}", orders(0, 50)));
        let mut file = std::fs::OpenOptions::new().append(true).open(site.env.path("orders.csv")).unwrap();
        file.set_len(file.metadata().unwrap().len() + length).unwrap();
        file.write_all(format!("{quote}\n{}", orders(50, 100)).as_bytes()).unwrap();
        run_in_little_memory(&site).exits(0);
        assert!(site.env.read("rejects.csv").contains("52,,longer than 4 MiB"), "{}", site.env.read("rejects.csv"));
        assert_eq!(site.orders(), "100");
    }
}

#[test]
fn records_just_short_of_too_long_are_loaded_in_little_memory() {
    let text = "\\".repeat((4 << 20) - 100);
    let file = (0..10).fold(HEADER.to_owned(), |file, n| file + &format!("A-{n},1,1,open,,{text}\n"));
    let site = Site::new(file);
    run_in_little_memory(&site).exits(0);
    assert_eq!(site.database.psql("SELECT count(*), min(length(note)) FROM orders"), format!("10|{}", (4 << 20) - 100));
}

#[test]
fn a_file_of_nothing_but_commas_or_zeros_is_rejected_in_little_memory() {
    for byte in [b',', 0] {
        let mut file = HEADER.as_bytes().to_vec();
        file.extend(std::iter::repeat_n(byte, 16 << 20));
        let site = Site::new(file);
        run_in_little_memory(&site).exits(3);
        assert_eq!(site.orders(), "0");
    }
}

// ---- stopped -------------------------------------------------------------------------

#[test]
fn a_step_whose_time_is_up_stops_reading_and_loads_nothing() {
    let playbook = PLAYBOOK.replace("  - id: load\n", "  - id: load\n    timeout: 500ms\n").replace("file: rejects.csv", "max_ratio: 100%");
    let site = Site::with(&playbook, format!("{HEADER}{}", "A-1,1,1,open,,\n".repeat(2_000_000)));
    let failed = site.run().exits(3);
    assert!(failed.stdout.contains("not done within its timeout"), "{failed}");
    assert_eq!(site.orders(), "0");
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'runbook/%'";
    wait_until("its sessions to end", || site.database.psql(busy) == "0");
}

#[test]
fn a_second_interrupt_stops_the_statement_that_loads() {
    let site = Site::new(format!("{HEADER}{}", orders(0, 100)));
    let mut blocker = site.database.session();
    blocker.run("BEGIN; LOCK TABLE orders IN SHARE MODE");
    let playbook = PLAYBOOK.replace("      run_column", "      lock_timeout: 10m\n      run_column");
    site.env.write("load.yaml", playbook);
    let running = site.env.runbook(["run", "load.yaml"]).spawn();
    wait_until("the statement to wait", || {
        site.database.psql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO orders%'")
            == "1"
    });
    running.signal(Signal::SIGINT).wait_for("Once more cancels");
    running.signal(Signal::SIGINT);
    let stopped = running.wait().exits(130);
    blocker.run("ROLLBACK");
    assert_eq!(site.orders(), "0");
    site.env.runbook(["resume", &run_of(&stopped)]).run().exits(0);
    assert_eq!(site.orders(), "100");
}
