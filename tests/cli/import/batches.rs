//! Files that are loaded in batches: what a batch that fails leaves, and how it goes on.

use super::{HEADER, PLAYBOOK, Site, orders, run_of};

fn in_batches(size: usize, words: &str) -> String {
    PLAYBOOK.replace("run_column: import_run", &format!("run_column: import_run\n      batch_size: {size}{words}"))
}

#[test]
fn every_batch_is_a_transaction_of_its_own() {
    let site = Site::with(&in_batches(300, ""), format!("{HEADER}{}", orders(0, 1000)));
    let done = site.run().exits(0);
    assert!(done.stdout.contains("1000 rows imported, 0 of 1000 records rejected (0%)"), "{done}");
    let seen = "SELECT count(*), count(DISTINCT order_no), count(DISTINCT xmin::text), count(DISTINCT import_run) FROM orders";
    assert_eq!(site.database.psql(seen), "1000|1000|4|1");
    assert_eq!(site.database.psql("SELECT count(*) FROM runbook.importing"), "0");

    let noted = site.env.read("load.yaml").replace("run_column: import_run\n      ", "");
    site.env.write("load.yaml", noted);
    site.database.psql("TRUNCATE orders");
    let done = site.run().exits(0);
    let noted =
        format!("SELECT count(*) FROM runbook.imported i JOIN orders o ON o.id = (i.key ->> 'id')::bigint WHERE run = '{}'", run_of(&done));
    assert_eq!(site.database.psql(&noted), "1000");
}

#[test]
fn of_records_in_different_batches_the_first_stays_and_the_last_updates() {
    let file = format!("{HEADER}A-1,1,1,open,,first\n{}A-1,1,3,open,,last\n", orders(10, 20));
    let seen = "SELECT note FROM orders WHERE order_no = 'A-1'";
    let skips = Site::with(&in_batches(4, "\n      on_duplicate: skip"), &file);
    let done = skips.run().exits(0);
    assert!(done.stdout.contains("11 rows imported, 1 skipped"), "{done}");
    assert_eq!(skips.database.psql(seen), "first");

    let updates = Site::with(&in_batches(4, "\n      on_duplicate: update\n      key: [order_no]"), &file);
    let done = updates.run().exits(0);
    assert!(done.stdout.contains("11 rows imported, 1 updated"), "{done}");
    assert_eq!(updates.database.psql(seen), "last");
}

#[test]
fn duplicates_are_found_before_the_first_batch() {
    let site = Site::with(&in_batches(4, "\n      key: [order_no]"), format!("{HEADER}{}A-3,1,1,open,,\n", orders(0, 10)));
    site.database.psql("INSERT INTO orders (order_no, amount, note) VALUES ('A-8', 20, 'old')");
    let failed = site.run().exits(3);
    insta::assert_snapshot!(
        failed.stdout.lines().skip_while(|line| !line.starts_with("FAILED")).skip(1).take(10).collect::<Vec<_>>().join("\n")
    );
    assert_eq!(site.orders(), "1");
}

#[test]
fn a_batch_that_fails_leaves_those_before_it_and_a_resume_goes_on_with_the_same_file() {
    let file = format!("{HEADER}{}", orders(0, 100));
    let site = Site::with(&in_batches(10, ""), &file);
    site.database.psql("ALTER TABLE orders ADD CONSTRAINT odd CHECK (order_no <> 'A-57')");
    let failed = site.run().exits(3);
    assert!(failed.stdout.contains("the rows up to line 51 are loaded"), "{failed}");
    assert!(!failed.stdout.contains("changed nothing"), "{failed}");
    assert_eq!(site.orders(), "50");

    site.env.write("orders.csv", file.replace("A-70,", "A-700,"));
    let refused = site.env.runbook(["resume"]).run().exits(3);
    insta::assert_snapshot!(
        refused.stdout.lines().skip_while(|line| !line.starts_with("FAILED")).skip(1).take(8).collect::<Vec<_>>().join("\n")
    );
    assert_eq!(site.orders(), "50");

    site.env.write("orders.csv", &file);
    site.database.psql("ALTER TABLE orders DROP CONSTRAINT odd");
    let done = site.env.runbook(["resume"]).run().exits(0);
    assert!(done.stdout.contains("100 rows imported, 0 of 100 records rejected"), "{done}");
    assert_eq!(site.database.psql("SELECT count(*), count(DISTINCT order_no), count(DISTINCT import_run) FROM orders"), "100|100|1");
}

#[test]
fn a_batch_that_takes_too_long_is_halved() {
    let site = Site::with(&in_batches(64, "\n      statement_timeout: 400ms"), format!("{HEADER}{}", orders(0, 64)));
    site.database.psql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.01); RETURN new; END'; \
         CREATE TRIGGER slow BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    site.run().exits(0);
    let batches: u32 = site.database.psql("SELECT count(DISTINCT xmin::text) FROM orders").parse().unwrap();
    assert!(batches > 1);
    assert_eq!(site.orders(), "64");
}

#[test]
fn without_a_ledger_there_are_no_batches() {
    let playbook =
        in_batches(10, "").replace("main: {url: \"{{ env.DATABASE_URL }}\"}", "main: {url: \"{{ env.DATABASE_URL }}\", ledger: none}");
    let site = Site::with(&playbook, format!("{HEADER}{}", orders(0, 10)));
    let refused = site.run().exits(3);
    assert!(refused.stdout.contains("batches need their place in it"), "{refused}");
}

/// What a role needs is said before the file is read, and is enough.
#[test]
fn a_role_without_privileges_is_told_what_to_run() {
    let playbook = in_batches(10, "").replace("run_column: import_run\n      ", "");
    let site = Site::with(&playbook, format!("{HEADER}{}", orders(0, 10)));
    let role = format!("loader_{}", site.database.name());
    site.database.psql(&format!(
        "CREATE ROLE {role} LOGIN; REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC; CREATE SCHEMA runbook; GRANT USAGE ON SCHEMA runbook TO {role}; \
         CREATE TABLE runbook.ledger (run text, step text, result json NOT NULL, recorded_at timestamptz NOT NULL DEFAULT now(), \
         recorded_by text NOT NULL DEFAULT current_user, PRIMARY KEY (run, step)); GRANT SELECT, INSERT ON runbook.ledger TO {role}; \
         GRANT SELECT ON customers TO {role}",
        site.database.name()
    ));
    let mut env = crate::environment::TestEnv::new();
    env.set("DATABASE_URL", &site.database.url_as(&role));
    env.write("load.yaml", playbook);
    env.write("orders.csv", format!("{HEADER}{}", orders(0, 10)));
    let mut hints = Vec::new();
    for _ in 0..3 {
        let refused = env.runbook(["run", "load.yaml"]).run().exits(3);
        let (_, hint) = refused.stdout.split_once("an administrator run once: ").unwrap_or_else(|| panic!("{refused}"));
        let (hint, _) = hint.split_once("\n  next ").unwrap();
        let hint = hint.split_whitespace().collect::<Vec<_>>().join(" ");
        site.database.psql(&hint);
        hints.push(hint.replace(&role, "ROLE").replace(site.database.name(), "DATABASE"));
    }
    insta::assert_snapshot!(hints.join("\n"));
    env.runbook(["run", "load.yaml"]).run().exits(0);
    assert_eq!(site.orders(), "10");
}
