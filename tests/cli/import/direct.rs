//! Imports that need no staging go straight into the table, and differ in nothing else.

use super::{HEADER, PLAYBOOK, Site, orders, run_of, with_bad};
use crate::stock_audit::stable;

/// Nothing in it has to be compared with other rows.
pub(super) fn plain() -> String {
    PLAYBOOK.replace("customer_id: {type: bigint, references: customers.id}", "customer_id: {type: bigint}")
}

/// The statements that put rows into the table.
const WATCHED: &str = "
    CREATE TABLE seen (statement text);
    CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO seen SELECT current_query(); RETURN null; END';
    CREATE TRIGGER watch AFTER INSERT ON orders FOR EACH STATEMENT EXECUTE FUNCTION watch();";

fn watched(playbook: &str, file: impl AsRef<[u8]>) -> Site {
    let site = Site::with(playbook, file);
    site.database.psql(WATCHED);
    site
}

fn first_words(site: &Site) -> String {
    site.database.psql("SELECT split_part(statement, '(', 1) FROM seen")
}

#[test]
fn every_row_is_written_once_and_as_it_stands_in_the_file() {
    let file = format!("{HEADER}\"A-1\",1,12.50,open,2026-05-01,\"two\nlines, tab\t, \\ and \\N\"\nwrong,1,1,open,,\n{}", orders(10, 40));
    let site = watched(&plain(), file);
    let done = site.run().exits(0);
    assert!(done.stdout.contains("31 rows imported, 1 of 32 records rejected (3.125%)"), "{done}");
    assert_eq!(first_words(&site), "COPY orders");
    assert_eq!(
        site.database.psql("SELECT amount, placed_on, note FROM orders WHERE order_no = 'A-1'"),
        "12.50|2026-05-01|two\nlines, tab\t, \\ and \\N"
    );
    assert_eq!(site.database.psql("SELECT DISTINCT import_run FROM orders"), run_of(&done));
    assert!(site.env.read("rejects.csv").contains("4,order_no,does not match"), "{}", site.env.read("rejects.csv"));
}

#[test]
fn a_bad_file_does_not_even_touch_the_table() {
    let site = Site::with(&plain(), with_bad(80, 20));
    let failed = site.run().exits(3);
    assert!(failed.stdout.contains("20 of 100 records (20%) were rejected, more than 10%; nothing was loaded"), "{failed}");
    assert_eq!(site.database.psql("SELECT pg_relation_size('orders')"), "0");
}

#[test]
fn rows_of_a_file_that_turns_bad_are_taken_back_and_it_says_so() {
    let site = Site::with(&plain(), with_bad(80_000, 20_000));
    let failed = site.run().exits(3);
    assert!(failed.stdout.contains("20000 of 100000 records (20%) were rejected, more than 10%; nothing was loaded"), "{failed}");
    assert!(failed.stdout.contains("rows copied before were rolled back"), "{failed}");
    assert_eq!(site.orders(), "0");
    assert_eq!(site.env.read("rejects.csv").lines().count(), 20_001);

    let site = Site::with(&plain(), with_bad(93_000, 7_000));
    let done = site.run().exits(0);
    assert!(done.stdout.contains("7000 of 100000 records (7%) were rejected, more than 5%"), "{done}");
    assert!(done.stdout.contains("rows were copied before that and rolled back"), "{done}");
    assert_eq!(site.orders(), "93000");
}

#[test]
fn duplicates_are_told_as_always() {
    let playbook = plain().replace("run_column: import_run", "run_column: import_run\n      key: [order_no]");
    let site = Site::with(&playbook, format!("{HEADER}A-1,1,1,open,,first\nA-2,1,2,open,,two\nA-1,1,3,open,,last\n"));
    site.database.psql("INSERT INTO orders (order_no, amount, note) VALUES ('A-2', 20, 'old')");
    let failed = site.run().exits(3);
    let shown = stable(&failed.stdout);
    insta::assert_snapshot!(shown.lines().skip_while(|line| !line.starts_with("FAILED")).skip(1).take(14).collect::<Vec<_>>().join("\n"));
    assert_eq!(site.orders(), "1");
}

#[test]
fn where_copy_is_unlike_insert_rows_are_inserted() {
    let site = watched(&plain(), format!("{HEADER}{}", orders(0, 10)));
    site.database.psql("CREATE RULE note AS ON INSERT TO orders DO ALSO NOTIFY loaded");
    site.run().exits(0);
    assert_eq!(first_words(&site), "INSERT INTO orders");

    // COPY would fill a column that only the table fills.
    let playbook = plain().replace("order_no: {type: text", "id: {type: bigint}\n        order_no: {type: text");
    let site = Site::with(&playbook, "id,order_no,customer_id,amount,state,placed_on,note\n7,A-1,1,1,open,,\n");
    let refused = site.run().exits(3);
    assert!(refused.stdout.contains("cannot insert a non-DEFAULT value into column \"id\""), "{refused}");
}
