//! playbooks/order-import.yaml and its two companions, on the example they are written for:
//! files that are good, bad, and bad in ways that show only after something is loaded.

use crate::environment::{Output, TestEnv};
use crate::postgres::Database;
use crate::stock_audit::{run_of, said_of, stable};

/// The example's shop, with files to import.
struct Shop {
    env: TestEnv,
    database: Database,
}

const COUNTS: &str = "SELECT (SELECT count(*) FROM customers), (SELECT count(*) FROM orders), (SELECT count(*) FROM order_items)";

impl Shop {
    fn new(files: &[&str]) -> Self {
        let mut env = TestEnv::new();
        let database = env.database();
        env.copy_from_project("playbooks");
        env.copy_from_project("examples/order-import");
        database.psql(&env.read("examples/order-import/schema.sql"));
        env.runbook(["stamp", "staging"]).run().exits(0);
        let shop = Self { env, database };
        shop.generate(files);
        shop
    }

    fn generate(&self, arguments: &[&str]) {
        let arguments = ["--orders", "400"].iter().chain(arguments).chain(&["orders"]);
        self.env.command(self.env.path("examples/order-import/generate"), arguments).run().exits(0);
    }

    fn run(&self, playbook: &str, more: &[&str]) -> Output {
        let database = format!("database={}", self.database.name());
        let told = ["run", playbook, "--param", "env=staging", "--param", &database];
        self.env.runbook(told.iter().chain(more)).run()
    }

    fn import(&self, more: &[&str]) -> Output {
        self.run("playbooks/order-import.yaml", more)
    }

    fn counts(&self) -> String {
        self.database.psql(COUNTS)
    }
}

#[test]
fn good_files_are_imported_shown_and_taken_back() {
    let shop = Shop::new(&[]);
    let done = shop.import(&[]).exits(0);
    insta::assert_snapshot!(stable(&done.stdout), @"
    order-import  17 steps, run [RUN], environment staging
      main: [DATABASE] (system [ID])

    done           [DURATION]  Nothing is orphaned already → 2 rows
    done           [DURATION]  How much there is before → 3 rows
    done           [DURATION]  Check the customers → 81 rows checked, nothing loaded, 0 of 81 records rejected (0%)
    done           [DURATION]  Check the orders → 400 rows checked, nothing loaded, 0 of 400 records rejected (0%)
    done           [DURATION]  Check the order items → 800 rows checked, nothing loaded, 0 of 800 records rejected (0%)
    done           [DURATION]  Dump the three tables → [SIZE], 3 tables with 60 rows, sha256 [SUM]
    done           [DURATION]  Load the customers → 81 rows imported, 0 of 81 records rejected (0%)
    done           [DURATION]  Load the orders → 400 rows imported, 0 of 400 records rejected (0%)
    done           [DURATION]  Load the order items → 800 rows imported, 0 of 800 records rejected (0%)
    done           [DURATION]  Every loaded row is there → 3 rows
    done           [DURATION]  Nothing is orphaned → 2 rows
    done           [DURATION]  The items of every imported order come to its total → 0 rows
    done           [DURATION]  More than 90 % of the imported customers can be written to → customers 81, complete 0.97530864197530864198
    done           [DURATION]  How much there is after → 3 rows
      ┃ Import completed
      ┃ 81 customers, 400 orders, 800 items.
      ┃ To take it back: runbook run playbooks/order-import-rollback.yaml --param env=staging --param database=[DATABASE] --param run=[RUN]
    done           [DURATION]  imported → told console

    done after [DURATION]: 15 done
      runbook show [RUN]  every step, who confirmed what
    ");
    assert_eq!(shop.counts(), "101|420|820");

    // The same files again bring nothing new, and nothing twice.
    let again = shop.import(&[]).exits(0);
    assert!(said_of(&again, "Load the orders").contains("0 rows imported, 400 skipped"), "{again}");
    assert_eq!(shop.counts(), "101|420|820");

    let status = shop.run("playbooks/order-import-status.yaml", &[]).exits(0);
    insta::assert_snapshot!(stable(&status.stdout), @"
    order-import-status  6 steps, run [RUN], environment staging
      main: [DATABASE] (system [ID])

    done           [DURATION]  Imported rows by run → import_run [RUN], customers 81, orders 400, items 800
    done           [DURATION]  Nothing is orphaned → 2 rows
    done           [DURATION]  Every order has items → 0 rows
    done           [DURATION]  More than 90 % of the customers can be written to → customers 101, complete 0.98019801980198019802
    skipped               No imported data detected - database is clean → `when: steps.runs.row_count == 0` is false
      ┃ [RUN]
      ┃ 81 customers, 400 orders, 800 items
    done           [DURATION]  One of the runs [0] → told console
    done                  One of the runs → 1 instances

    done after [DURATION]: 5 done, 1 skipped
      runbook show [RUN]  every step, who confirmed what
    ");

    let run = format!("run={}", run_of(&done));
    let waiting = shop.run("playbooks/order-import-rollback.yaml", &["--yes", "--param", &run]).exits(5);
    assert!(waiting.stdout.contains("Delete 81 customers, 400 orders and 800 items of run"), "{waiting}");
    shop.env.runbook(["approve", &run_of(&waiting), "sure", "--text", &run_of(&done)]).run().exits(0);
    let back = shop.env.runbook(["resume", &run_of(&waiting)]).run().exits(0);
    insta::assert_snapshot!(stable(&back.stdout), @"
    order-import-rollback  6 steps, run [RUN], environment staging
      main: [DATABASE] (system [ID])
      goes on: 2 of 6 steps settled, what is done stays done

    done           [DURATION]  Really? → confirmed by [USER]
    done           [DURATION]  Delete them → 1281 rows affected
    done           [DURATION]  No imported data are left of that run → 0
      ┃ No imported data of [RUN] detected - database is clean
      ┃ 1281 rows were deleted.
    done           [DURATION]  told → told console

    done after [DURATION]: 6 done
      runbook show [RUN]  every step, who confirmed what
    ");
    assert_eq!(shop.counts(), "20|20|20");

    let status = shop.run("playbooks/order-import-status.yaml", &[]).exits(0);
    assert!(status.stdout.contains("No imported data detected - database is clean"), "{status}");
}

#[test]
fn a_rollback_stops_where_the_shop_has_gone_on_with_the_import() {
    let shop = Shop::new(&[]);
    let done = shop.import(&[]).exits(0);
    shop.database
        .psql("INSERT INTO orders (order_no, customer_id, placed_on, status, total) VALUES ('S-999999', 1001, '2026-06-01', 'open', 1)");
    let run = format!("run={}", run_of(&done));
    let stopped = shop.run("playbooks/order-import-rollback.yaml", &["--param", &run]).exits(3);
    assert!(stopped.stdout.contains("S-999999"), "{stopped}");
    assert_eq!(shop.counts(), "101|421|820");

    let unknown = shop.run("playbooks/order-import-rollback.yaml", &["--param", "run=20200101-000000-aaaa"]).exits(3);
    assert!(said_of(&unknown, "What that run has brought").starts_with("FAILED"), "{unknown}");
}

#[test]
fn bad_files_are_loaded_confirmed_or_refused_by_how_bad_they_are() {
    let three = Shop::new(&["--bad", "3"]);
    let done = three.import(&[]).exits(0);
    insta::assert_snapshot!(said_of(&done, "Load the orders"), @"done           [DURATION]  Load the orders → 388 rows imported, 12 of 400 records rejected (3%)");
    insta::assert_snapshot!(three.env.read("orders/rejects/orders.csv"), @r#"
    line,column,reason,raw
    51,total,less than 0,"I-000046,1047,2026-11-19,shipped,-141.00,"
    81,,7 fields instead of 6,"I-000073,1074,2026-02-18,paid,72.00,,one field too many"
    110,placed_on,not a date such as 2026-05-01,"I-000100,1020,31.02.2026,open,3.00,""rings """"twice"""",
    then waits"""
    161,total,less than 0,"I-000146,1066,2026-03-07,shipped,-141.00,"
    191,,7 fields instead of 6,"I-000173,1012,2026-06-06,paid,72.00,,one field too many"
    220,placed_on,not a date such as 2026-05-01,"I-000200,1039,31.02.2026,open,3.00,""rings """"twice"""",
    then waits"""
    271,total,less than 0,"I-000246,1004,2026-07-23,shipped,-141.00,"
    301,,7 fields instead of 6,"I-000273,1031,2026-10-22,paid,72.00,,one field too many"
    330,placed_on,not a date such as 2026-05-01,"I-000300,1058,31.02.2026,open,3.00,""rings """"twice"""",
    then waits"""
    381,total,less than 0,"I-000346,1023,2026-11-11,shipped,-141.00,"
    411,,7 fields instead of 6,"I-000373,1050,2026-02-10,paid,72.00,,one field too many"
    440,placed_on,not a date such as 2026-05-01,"I-000400,1077,31.02.2026,open,3.00,""rings """"twice"""",
    then waits"""
    "#);

    let seven = Shop::new(&["--bad", "7"]);
    let waiting = seven.import(&[]).exits(5);
    assert!(said_of(&waiting, "Load the orders").starts_with("WAITING"), "{waiting}");
    seven.import(&["--yes"]).exits(0);

    let twenty = Shop::new(&["--bad", "20"]);
    let failed = twenty.import(&["--yes"]).exits(3);
    assert!(said_of(&failed, "Check the orders").starts_with("FAILED"), "{failed}");
    assert!(said_of(&failed, "No imported data are left of this run").starts_with("done"), "{failed}");
    assert_eq!(twenty.counts(), "20|20|20");
}

#[test]
fn what_goes_wrong_after_something_was_loaded_takes_everything_back() {
    let shop = Shop::new(&["--orphans", "20"]);
    let failed = shop.import(&["--yes"]).exits(3);
    insta::assert_snapshot!(stable(&failed.stdout), @"
    order-import  17 steps, run [RUN], environment staging
      main: [DATABASE] (system [ID])

    done           [DURATION]  Nothing is orphaned already → 2 rows
    done           [DURATION]  How much there is before → 3 rows
    done           [DURATION]  Check the customers → 81 rows checked, nothing loaded, 0 of 81 records rejected (0%)
    done           [DURATION]  Check the orders → 400 rows checked, nothing loaded, 0 of 400 records rejected (0%)
    done           [DURATION]  Check the order items → 800 rows checked, nothing loaded, 0 of 800 records rejected (0%)
    done           [DURATION]  Dump the three tables → [SIZE], 3 tables with 60 rows, sha256 [SUM]
    done           [DURATION]  Load the customers → 81 rows imported, 0 of 81 records rejected (0%)
    done           [DURATION]  Load the orders → 400 rows imported, 0 of 400 records rejected (0%)
    FAILED         [DURATION]  Load the order items → 160 of 800 records (20%) were rejected
      160 of 800 records (20%) were rejected, more than 10%; nothing was loaded
      step         load_items
      where        playbooks/order-import.yaml:[PLACE]
                   [LINE] |       table: order_items
      all of them  [DIR]/orders/rejects/order_items.csv
      rows         line | column   | reason                               | raw
                   -----+----------+--------------------------------------+----------------------------
                     10 | order_no | there is no orders.order_no X-000005 | X-000005,1,ART-0005,1,6.00
                     11 | order_no | there is no orders.order_no X-000005 | X-000005,2,ART-0035,2,6.00
                     20 | order_no | there is no orders.order_no X-000010 | X-000010,1,ART-0010,1,11.00
                     21 | order_no | there is no orders.order_no X-000010 | X-000010,2,ART-0070,2,11.00
                     30 | order_no | there is no orders.order_no X-000015 | X-000015,1,ART-0015,1,16.00
                     31 | order_no | there is no orders.order_no X-000015 | X-000015,2,ART-0105,2,16.00
                     44 | order_no | there is no orders.order_no X-000022 | X-000022,1,ART-0022,1,23.00
                     45 | order_no | there is no orders.order_no X-000022 | X-000022,2,ART-0154,2,23.00
                     54 | order_no | there is no orders.order_no X-000027 | X-000027,1,ART-0027,1,28.00
                     55 | order_no | there is no orders.order_no X-000027 | X-000027,2,ART-0189,2,28.00
                     64 | order_no | there is no orders.order_no X-000032 | X-000032,1,ART-0032,1,33.00
                     65 | order_no | there is no orders.order_no X-000032 | X-000032,2,ART-0224,2,33.00
                     74 | order_no | there is no orders.order_no X-000037 | X-000037,1,ART-0037,1,38.00
                     75 | order_no | there is no orders.order_no X-000037 | X-000037,2,ART-0259,2,38.00
                     88 | order_no | there is no orders.order_no X-000044 | X-000044,1,ART-0044,1,45.00
                     89 | order_no | there is no orders.order_no X-000044 | X-000044,2,ART-0308,2,45.00
                     98 | order_no | there is no orders.order_no X-000049 | X-000049,1,ART-0049,1,50.00
                     99 | order_no | there is no orders.order_no X-000049 | X-000049,2,ART-0343,2,50.00
                    108 | order_no | there is no orders.order_no X-000054 | X-000054,1,ART-0054,1,5.00
                    109 | order_no | there is no orders.order_no X-000054 | X-000054,2,ART-0378,2,5.00
                   (20 of 160 rows)
      state        this step changed nothing, or what it changed was rolled back
      hint         correct the file, or the rules in `columns`, and run again
      next         runbook show [RUN] load_items  its attempts and output
                   runbook resume [RUN]  tries again from here; what is done stays done
    done           [DURATION]  Take this run's rows back → 481 rows affected
    done           [DURATION]  No imported data are left of this run → 0

    failed after [DURATION]: 10 done, 1 failed, 5 not run
      runbook resume [RUN]  tries again; what is done stays done
    ");
    assert_eq!(shop.counts(), "20|20|20");

    // The rows of the done steps are gone: going on with this run must not pass for an import.
    shop.generate(&[]);
    let resumed = shop.env.runbook(["resume", &run_of(&failed), "--yes"]).run().exits(3);
    assert_eq!(shop.counts(), "20|20|20", "{resumed}");
}

#[test]
fn files_for_another_environment_are_refused() {
    let shop = Shop::new(&[]);
    let database = format!("database={}", shop.database.name());
    let arguments = ["run", "playbooks/order-import.yaml", "--param", "env=production", "--param", &database];
    let refused = shop.env.runbook(arguments).run().exits(6);
    assert!(refused.stderr.contains("expected `production`, found `staging`"), "{refused}");
    assert_eq!(shop.counts(), "20|20|20");
}
