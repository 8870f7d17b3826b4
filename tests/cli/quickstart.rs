//! examples/quickstart.yaml: the first thing anybody runs, with no server.

use nix::sys::signal::Signal;

use crate::environment::TestEnv;
use crate::stock_audit::{run_of, said_of};
use crate::terminal::key;

fn env() -> TestEnv {
    let env = TestEnv::new();
    env.copy_from_project("examples");
    env
}

fn sqlite(env: &TestEnv, file: &str, query: &str) -> String {
    env.command("sqlite3", [file, query]).run().exits(0).stdout.trim_end().to_owned()
}

const BARCODES: &str = "SELECT count(*), count(barcode), count(DISTINCT barcode) FROM racks";

/// All the backups there are, oldest first.
fn backups(env: &TestEnv) -> Vec<String> {
    let files = std::fs::read_dir(env.path("")).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut backups: Vec<String> = files.filter(|name| name.ends_with(".backup")).collect();
    backups.sort();
    backups
}

#[test]
fn it_runs_again_and_again() {
    let env = env();
    let output = env.runbook(["run", "examples/quickstart.yaml", "--yes"]).run().exits(0);
    insta::assert_snapshot!(output.stdout, @"
    quickstart  12 steps, run [RUN]
      main: quickstart.db

    done           [DURATION]  Make a warehouse with 240 racks → 248 rows affected
    done           [DURATION]  Count the racks → 240
    done           [DURATION]  Every rack stands in an aisle → 0 rows
    done           [DURATION]  No barcode would stand for two racks → 0 rows
    done           [DURATION]  Back up the database → [SIZE], 2 tables with 248 rows, sha256 [SUM]
    done           [DURATION]  The backup holds every rack → restored in [DURATION], 2 tables with 248 rows, [AGE] old
    done           [DURATION]  Cut the work into batches → 4 rows
    done           [DURATION]  Go or no-go → confirmed by [USER] (--yes)
    done           [DURATION]  Give the racks of a batch their barcodes [0] → 60 rows affected
    done           [DURATION]  Give the racks of a batch their barcodes [1] → 60 rows affected
    done           [DURATION]  Give the racks of a batch their barcodes [2] → 60 rows affected
    done           [DURATION]  Give the racks of a batch their barcodes [3] → 60 rows affected
    done                  Give the racks of a batch their barcodes → 4 instances
    done           [DURATION]  Every rack has a barcode of its own → racks 240, with_barcode 240, barcodes 240
    done           [DURATION]  No rack is lost → steps.barcodes.rows[0].racks == steps.racks_before.value
      ┃ Barcodes assigned
      ┃ 240 racks have barcodes. Look at them: sqlite3 quickstart.db 'SELECT * FROM racks LIMIT 5'
    done           [DURATION]  Done → told console

    done after [DURATION]: 12 done
      runbook show [RUN]  every step, who confirmed what
    ");
    assert_eq!(output.stderr, "");
    env.runbook(["run", "examples/quickstart.yaml", "--yes"]).run().exits(0);
    assert_eq!(sqlite(&env, "quickstart.db", BARCODES), "240|240|240");
    let backups = backups(&env);
    assert_eq!(backups.len(), 2, "{backups:?}");
    for backup in backups {
        assert_eq!(sqlite(&env, &backup, BARCODES), "240|0|0", "a backup is of before the change");
    }
}

#[test]
fn it_asks_at_a_terminal() {
    let env = env();
    let mut terminal = env.runbook(["run", "examples/quickstart.yaml"]).terminal();
    terminal.wait_for("Go on? [y/n]");
    insta::assert_snapshot!(terminal.screen(), @"
    quickstart  12 steps, run [RUN]
      main: quickstart.db

    done           [DURATION]  Make a warehouse with 240 racks → 248 rows affected
    done           [DURATION]  Count the racks → 240
    done           [DURATION]  Every rack stands in an aisle → 0 rows
    done           [DURATION]  No barcode would stand for two racks → 0 rows
    done           [DURATION]  Back up the database → [SIZE], 2 tables with 248 rows, sha256 [SUM]
    done           [DURATION]  The backup holds every rack → restored in [DURATION], 2 tables with 248 rows, [AGE] old
    done           [DURATION]  Cut the work into batches → 4 rows

    ? Go or no-go
      Write barcodes WH1-… to 240 racks, in 4 batches?
      The state before it is in [DIR]/quickstart.db.[RUN].backup.
      y  yes        goes on
      n  no         stops here; the step counts as failed
      Go on? [y/n]
    ");
    assert_eq!(sqlite(&env, "quickstart.db", BARCODES), "240|0|0");
    terminal.send("y").send(key::ENTER);
    assert_eq!(terminal.wait().code(), Some(0), "{}", terminal.screen());
    insta::assert_snapshot!(terminal.screen(), @"
    quickstart  12 steps, run [RUN]
      main: quickstart.db

    done           [DURATION]  Make a warehouse with 240 racks → 248 rows affected
    done           [DURATION]  Count the racks → 240
    done           [DURATION]  Every rack stands in an aisle → 0 rows
    done           [DURATION]  No barcode would stand for two racks → 0 rows
    done           [DURATION]  Back up the database → [SIZE], 2 tables with 248 rows, sha256 [SUM]
    done           [DURATION]  The backup holds every rack → restored in [DURATION], 2 tables with 248 rows, [AGE] old
    done           [DURATION]  Cut the work into batches → 4 rows

    ? Go or no-go
      Write barcodes WH1-… to 240 racks, in 4 batches?
      The state before it is in [DIR]/quickstart.db.[RUN].backup.
      y  yes        goes on
      n  no         stops here; the step counts as failed
      Go on? [y/n] y
    done           [DURATION]  Go or no-go → confirmed by [USER]
    done           [DURATION]  Give the racks of a batch their barcodes [0] → 60 rows affected
    done           [DURATION]  Give the racks of a batch their barcodes [1] → 60 rows affected
    done           [DURATION]  Give the racks of a batch their barcodes [2] → 60 rows affected
    done           [DURATION]  Give the racks of a batch their barcodes [3] → 60 rows affected
    done                  Give the racks of a batch their barcodes → 4 instances
    done           [DURATION]  Every rack has a barcode of its own → racks 240, with_barcode 240, barcodes 2…
    done           [DURATION]  No rack is lost → steps.barcodes.rows[0].racks == steps.racks_before.value
      ┃ Barcodes assigned
      ┃ 240 racks have barcodes. Look at them: sqlite3 quickstart.db 'SELECT * FROM racks LIMIT 5'
    done           [DURATION]  Done → told console

    done after [DURATION]: 12 done
      runbook show [RUN]  every step, who confirmed what
    ");
    assert_eq!(sqlite(&env, "quickstart.db", BARCODES), "240|240|240");
}

#[test]
fn without_a_terminal_it_waits_for_an_answer_from_elsewhere() {
    let env = env();
    let waiting = env.runbook(["run", "examples/quickstart.yaml"]).run().exits(5);
    let run = run_of(&waiting);
    env.runbook(["approve", &run, "go", "--as", "ada"]).run().exits(0);
    let done = env.runbook(["resume", &run]).run().exits(0);
    assert!(said_of(&done, "Go or no-go").contains("confirmed by ada"), "{done}");
    assert_eq!(sqlite(&env, "quickstart.db", BARCODES), "240|240|240");
}

#[test]
fn killed_at_the_question_it_goes_on_where_it_was() {
    let env = env();
    let mut terminal = env.runbook(["run", "examples/quickstart.yaml"]).terminal();
    terminal.wait_for("Go on? [y/n]").signal(Signal::SIGKILL);
    terminal.wait();
    let saved = backups(&env);
    let resumed = env.runbook(["resume", "--yes"]).run().exits(0);
    insta::assert_snapshot!(resumed.stdout, @"
    quickstart  12 steps, run [RUN]
      main: quickstart.db
      goes on: 7 of 11 steps settled, what is done stays done

    done           [DURATION]  Go or no-go → confirmed by [USER] (--yes)
    done           [DURATION]  Give the racks of a batch their barcodes [0] → 60 rows affected
    done           [DURATION]  Give the racks of a batch their barcodes [1] → 60 rows affected
    done           [DURATION]  Give the racks of a batch their barcodes [2] → 60 rows affected
    done           [DURATION]  Give the racks of a batch their barcodes [3] → 60 rows affected
    done                  Give the racks of a batch their barcodes → 4 instances
    done           [DURATION]  Every rack has a barcode of its own → racks 240, with_barcode 240, barcodes 240
    done           [DURATION]  No rack is lost → steps.barcodes.rows[0].racks == steps.racks_before.value
      ┃ Barcodes assigned
      ┃ 240 racks have barcodes. Look at them: sqlite3 quickstart.db 'SELECT * FROM racks LIMIT 5'
    done           [DURATION]  Done → told console

    done after [DURATION]: 12 done
      runbook show [RUN]  every step, who confirmed what
    ");
    assert_eq!(sqlite(&env, "quickstart.db", BARCODES), "240|240|240");
    assert_eq!(backups(&env), saved, "what is done is not done again");
}

#[test]
fn killed_in_the_middle_of_a_batch_it_does_the_batch_once() {
    let env = env();
    let mut terminal = env.runbook(["run", "examples/quickstart.yaml"]).terminal();
    terminal.wait_for("Go on? [y/n]");
    // Somebody else writes, so that the batch has begun and cannot end.
    let wait = ".shell echo writing; until [ -e killed ]; do sleep 0.01; done";
    let writer = env.command("sqlite3", ["quickstart.db", "BEGIN IMMEDIATE", wait]).spawn();
    writer.wait_for("writing");
    terminal.send("y").send(key::ENTER).wait_for("Give the racks of a batch their barcodes [0]").signal(Signal::SIGKILL);
    terminal.wait();
    env.write("killed", "");
    writer.wait().exits(0);
    assert_eq!(sqlite(&env, "quickstart.db", BARCODES), "240|0|0");
    let resumed = env.runbook(["resume"]).run().exits(0);
    insta::assert_snapshot!(resumed.stdout, @"
    quickstart  12 steps, run [RUN]
      main: quickstart.db
      goes on: 8 of 11 steps settled, what is done stays done

    settled               Give the racks of a batch their barcodes [0] → it is run again: the ledger in the target decides
    done           [DURATION]  Give the racks of a batch their barcodes [0] → 60 rows affected
    done           [DURATION]  Give the racks of a batch their barcodes [1] → 60 rows affected
    done           [DURATION]  Give the racks of a batch their barcodes [2] → 60 rows affected
    done           [DURATION]  Give the racks of a batch their barcodes [3] → 60 rows affected
    done                  Give the racks of a batch their barcodes → 4 instances
    done           [DURATION]  Every rack has a barcode of its own → racks 240, with_barcode 240, barcodes 240
    done           [DURATION]  No rack is lost → steps.barcodes.rows[0].racks == steps.racks_before.value
      ┃ Barcodes assigned
      ┃ 240 racks have barcodes. Look at them: sqlite3 quickstart.db 'SELECT * FROM racks LIMIT 5'
    done           [DURATION]  Done → told console

    done after [DURATION]: 12 done
      runbook show [RUN]  every step, who confirmed what
    ");
    assert_eq!(sqlite(&env, "quickstart.db", BARCODES), "240|240|240");
}
