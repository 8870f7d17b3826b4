//! Processes that steps start: they see what they are given and never outlive the run.

use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::environment::{PATIENCE, TestEnv};

/// A step with a process in the background, one in the foreground, and one that hides
/// from the marker in the environment; each writes its id where the test finds it.
const LONG: &str = r#"
version: 1
name: long
steps:
  - id: long
    shell:
      run: |
        sh -c 'echo $$ >background.pid; exec sleep 1000' &
        sh -c 'echo $$ >stubborn.pid; trap "" TERM HUP INT; while :; do sleep 1000; done' &
        env -i sh -c 'echo $$ >hidden.pid; exec /bin/sleep 1000' &
        while ! [ -s background.pid -a -s stubborn.pid -a -s hidden.pid ]; do :; done
        echo all started
        wait
"#;

const PIDS: [&str; 3] = ["background.pid", "stubborn.pid", "hidden.pid"];

/// Waits until none of them runs; a zombie does not.
fn gone(environment: &TestEnv) {
    let deadline = Instant::now() + PATIENCE;
    for file in PIDS {
        let pid: i32 = environment.read(file).trim().parse().unwrap();
        while runs(pid) {
            assert!(Instant::now() < deadline, "process {pid} of {file} still runs");
            std::thread::yield_now();
        }
    }
}

fn runs(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    kill(Pid::from_raw(pid), None).is_ok() && !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z")
}

#[test]
fn a_killed_run_leaves_no_children() {
    let environment = TestEnv::new();
    environment.write("long.yaml", LONG);
    let run = environment.runbook(["run", "long.yaml"]).spawn();
    run.wait_for("all started");
    run.kill();
    gone(&environment);
}

#[test]
fn a_cancelled_run_leaves_no_children() {
    let environment = TestEnv::new();
    environment.write("long.yaml", LONG.replace("trap \"\" TERM HUP INT; ", ""));
    let run = environment.runbook(["run", "long.yaml"]).spawn();
    run.wait_for("all started");
    run.signal(Signal::SIGINT).wait_for("Once more cancels");
    run.signal(Signal::SIGINT);
    let output = run.wait();
    assert_ne!(output.code(), Some(0), "nothing interrupted exits 0");
    gone(&environment);
}

#[test]
fn a_run_that_exits_at_once_leaves_no_children() {
    let environment = TestEnv::new();
    environment.write("long.yaml", LONG);
    let run = environment.runbook(["run", "long.yaml"]).spawn();
    run.wait_for("all started");
    run.signal(Signal::SIGINT).wait_for("Once more cancels");
    run.signal(Signal::SIGINT).wait_for("once more leaves at once");
    run.signal(Signal::SIGINT);
    let output = run.wait();
    assert_ne!(output.code(), Some(0), "nothing interrupted exits 0");
    gone(&environment);
}

#[test]
fn a_long_output_is_kept_with_head_and_tail() {
    let environment = TestEnv::new();
    environment.write("flood.yaml", "version: 1\nname: flood\nmax_output: 4096\nsteps:\n  - id: flood\n    shell: {run: seq 1 100000}\n");
    environment.runbook(["run", "flood.yaml"]).run().exits(0);
    let kept = std::fs::read_dir(environment.state("runbook/output")).unwrap().next().unwrap().unwrap().path().join("flood.1.log");
    let kept = std::fs::read_to_string(kept).unwrap();
    assert!(kept.starts_with("1\n2\n3\n") && kept.ends_with("\n99999\n100000\n") && kept.len() < 4300, "{kept}");
    assert!(kept.contains("bytes left out here: more output than max_output"));
}
