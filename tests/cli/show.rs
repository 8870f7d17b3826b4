//! What is recorded, as `list`, `show`, `approve` and `journal verify` tell it.

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Executor};

use crate::environment::TestEnv;

const PLAYBOOK: &str = "
version: 1
name: show
params:
  tables: {type: list, default: [racks, scans]}
steps:
  - id: count
    name: Count rows
    for_each: '{{ params.tables }}'
    max_parallel: 1
    shell: {run: 'echo $TABLE; printf \"\\033[2Jtail\\n\"', env: {TABLE: '{{ item }}'}}
  - id: flaky
    retry: {max: 1, delay: 1ms, on: [any]}
    shell: {run: 'test -e tried || { touch tried; exit 9; }'}
  - id: go
    name: Go or no-go
    confirm: {message: Deploy 4.2?, approvers: 2}
  - id: host
    name: Name the host
    confirm: {message: Which host?, type_to_confirm: db1}
  - id: fence
    manual: {instruction: Fence the old primary, ask: What do you see?}
";

/// A run that waits for its first gate, and its id.
fn waiting() -> (TestEnv, String) {
    let mut env = TestEnv::new();
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::current()).unwrap().unwrap().name;
    let host = gethostname::gethostname().into_string().unwrap();
    env.replace(&format!("{user}@{host}"), "[ME]").replace(&format!("on {host}"), "on [HOST]");
    env.write("playbook.yaml", PLAYBOOK);
    env.runbook(["run", "playbook.yaml"]).run().exits(5);
    let listed = env.runbook(["list", "--json"]).run().exits(0);
    let runs: serde_json::Value = serde_json::from_str(&listed.raw_stdout).unwrap();
    let run = runs[0]["run"].as_str().unwrap().to_owned();
    (env, run)
}

#[test]
fn a_fresh_journal_has_no_runs() {
    let env = TestEnv::new();
    assert_eq!(env.runbook(["list"]).run().exits(0).stdout, "no runs yet\n");
    assert_eq!(env.runbook(["list", "--json"]).run().exits(0).stdout, "[]\n");
    let output = env.runbook(["show", "nope"]).run().exits(64);
    assert!(output.stderr.contains("there is no run `nope`"), "{output}");
}

#[test]
fn a_run_and_its_gates() {
    let (env, run) = waiting();
    insta::assert_snapshot!(env.runbook(["list"]).run().exits(0).stdout, @"
    RUN                   PLAYBOOK  STATUS   STARTED              TIME   SETTLED       BY
    [RUN]  show      waiting  [TIMESTAMP]  [DURATION]  2 of 5 steps  [ME]
    ");
    insta::assert_snapshot!(env.runbook(["show", &run]).run().exits(0).stdout, @r#"
    show  run [RUN]
      status      waiting: 2 done, 1 waiting, 2 not run
      file        [DIR]/playbook.yaml
      started     [TIMESTAMP] by [ME] (pid [PID])
      last event  [TIMESTAMP], [DURATION] after the start
      params      tables = ["racks","scans"]
      engine      0.1.0

    done                  count  Count rows → 2 instances
    done           [DURATION]  count[0]  Count rows [racks] → ␛[2Jtail
    done           [DURATION]  count[1]  Count rows [scans] → ␛[2Jtail
    done           [DURATION]  flaky → exit code 0  (2 attempts)
    WAITING               go  Go or no-go
    not run               host  Name the host
    not run               fence

    WAITING               Go or no-go
      question   Deploy 4.2?
      approvals  0 of 2: nobody so far
      answer     runbook approve [RUN] go
                 runbook approve [RUN] go --decline  to say no
      next       runbook resume [RUN]  goes on after the answer
    "#);
    let short = &run[run.len() - 4..];
    assert!(env.runbook(["show", short]).run().exits(0).stdout.contains("Go or no-go"), "the end of an id is enough");
}

#[test]
fn one_step_with_its_output() {
    let (env, run) = waiting();
    insta::assert_snapshot!(env.runbook(["show", &run, "count[1]"]).run().exits(0).stdout, @"
    done  count[1]  Count rows [scans]
      run        [RUN] of show
      class      not previewable
      history    [TIMESTAMP]  attempt 1 begins
                 [TIMESTAMP]  done after [DURATION] (attempt 1): ␛[2Jtail
      observed   ␛[2Jtail
      exit code  0

    output of attempt 1  [ROOT]/state/runbook/output/[RUN]/count[1].1.log
    scans
    ␛[2Jtail
    ");
    insta::assert_snapshot!(env.runbook(["show", &run, "flaky"]).run().exits(0).stdout, @"
    done  flaky
      run        [RUN] of show
      class      not previewable
      history    [TIMESTAMP]  attempt 1 begins
                 [TIMESTAMP]  attempt 1 failed, again in [DURATION]: exit code 9, expected 0
                 [TIMESTAMP]  attempt 2 begins
                 [TIMESTAMP]  done after [DURATION] (attempt 2): exit code 0
      observed   exit code 0
      exit code  0
    ");
    insta::assert_snapshot!(env.runbook(["show", &run, "flakey"]).run().exits(64).stderr, @"
    error: run [RUN] has no step `flakey`
      did you mean `flaky`?
    ");
    let shown = env.runbook(["show", &run, "count[0]", "--json"]).run().exits(0);
    let value: serde_json::Value = serde_json::from_str(&shown.raw_stdout).unwrap();
    assert_eq!((&value["status"], &value["attempts"]), (&"done".into(), &1.into()), "{shown}");
    let file = value["output"][0]["file"].as_str().unwrap();
    assert_eq!(std::fs::read_to_string(file).unwrap(), "racks\n\x1b[2Jtail\n", "the file has it as it was");
    let whole = env.runbook(["show", &run, "--json"]).run().exits(0);
    let value: serde_json::Value = serde_json::from_str(&whole.raw_stdout).unwrap();
    assert_eq!(value["steps_by_id"]["go"]["waiting"]["approvers"], 2, "{whole}");
}

#[test]
fn gates_are_answered_from_elsewhere() {
    let (env, run) = waiting();
    let approve = |arguments: &[&str]| env.runbook(["approve", &run].iter().chain(arguments)).run();
    insta::assert_snapshot!(approve(&["ship"]).exits(6).stderr, @"
    error: `ship` does not wait for an answer
      these do: go
    ");
    insta::assert_snapshot!(approve(&["go", "--text", "x"]).exits(64).stderr, @"error: this gate wants a plain yes or no; leave --text out");
    insta::assert_snapshot!(approve(&["go", "--as", "ada"]).exits(0).stdout, @"
    ada approved `go` of run [RUN]
      1 of 2 approvals; another person must approve too
    ");
    insta::assert_snapshot!(approve(&["go", "--as", "ada"]).exits(6).stderr, @"
    error: ada has answered `go` already
      another person must answer; --as NAME where several share one account
    ");
    insta::assert_snapshot!(approve(&["go", "--as", "bob"]).exits(0).stdout, @"
    bob approved `go` of run [RUN]
      runbook resume [RUN]  goes on
    ");
    insta::assert_snapshot!(approve(&["go", "--as", "eve"]).exits(6).stderr, @"
    error: `go` has all its answers
      `runbook resume` goes on
    ");
    env.runbook(["resume", &run]).run().exits(5);
    insta::assert_snapshot!(approve(&["host"]).exits(64).stderr, @"
    error: this gate wants `db1` typed
      give it with --text
    ");
    insta::assert_snapshot!(approve(&["host", "--text", "db2"]).exits(6).stderr, @"error: the text must be exactly `db1`");
    approve(&["host", "--text", "db1", "--as", "ada"]).exits(0);
    env.runbook(["resume", &run]).run().exits(5);
    approve(&["fence"]).exits(64);
    approve(&["fence", "--decline", "--text", "port still open", "--as", "ada"]).exits(0);
    env.runbook(["resume", &run]).run().exits(3);
    insta::assert_snapshot!(env.runbook(["show", &run]).run().exits(0).stdout, @r#"
    show  run [RUN]
      status      failed: 4 done, 1 failed
      file        [DIR]/playbook.yaml
      started     [TIMESTAMP] by [ME] (pid [PID])
      resumed     [TIMESTAMP] by [ME] (pid [PID])
      resumed     [TIMESTAMP] by [ME] (pid [PID])
      resumed     [TIMESTAMP] by [ME] (pid [PID])
      last event  [TIMESTAMP], [DURATION] after the start
      params      tables = ["racks","scans"]
      engine      0.1.0

    done                  count  Count rows → 2 instances
    done           [DURATION]  count[0]  Count rows [racks] → ␛[2Jtail
    done           [DURATION]  count[1]  Count rows [scans] → ␛[2Jtail
    done           [DURATION]  flaky → exit code 0  (2 attempts)
    done           [DURATION]  go  Go or no-go → confirmed by ada, bob
                          [TIMESTAMP] ada on [HOST] said yes
                          [TIMESTAMP] bob on [HOST] said yes
    done           [DURATION]  host  Name the host → confirmed by ada
                          [TIMESTAMP] ada on [HOST] answered `db1`
    FAILED         [DURATION]  fence → declined by ada: port still open
                          [TIMESTAMP] ada on [HOST] said no: port still open

    runbook resume [RUN]  tries again; what is done stays done
    "#);
}

#[test]
fn a_changed_history_is_noticed() {
    let (env, run) = waiting();
    insta::assert_snapshot!(env.runbook(["journal", "verify"]).run().exits(0).stdout, @"1 run: every history is as it was written");
    let path = env.state("runbook/journal.db");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut journal = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
        let changed = journal.execute("UPDATE event SET body = replace(body, 'scans', 'users') WHERE sequence = 1").await.unwrap();
        assert_eq!(changed.rows_affected(), 1);
    });
    insta::assert_snapshot!(env.runbook(["journal", "verify"]).run().exits(1), @"
    exit status: 1
    --- stdout
    run [RUN]: damaged at event 1: it is not what was written
    --- stderr
    error: the journal is damaged (1 run)
      what is recorded before the damage can still be trusted
    ");
    let listed = env.runbook(["list"]).run().exits(0);
    assert!(listed.stdout.contains("damaged"), "{listed}");
    env.runbook(["show", &run]).run().exits(1);
    env.runbook(["resume", &run]).run().exits(1);
}
