//! What a run says: in a pipe, on a terminal, to programs.

use crate::environment::TestEnv;

const PLAYBOOK: &str = "
version: 1
name: report
steps:
  - id: look
    name: Look around
    shell: {run: 'echo hello; printf \"\\033[31mred\\n\"'}
  - id: each
    name: Side by side
    for_each: [a, b]
    max_parallel: 1
    shell: {run: 'echo $ITEM', env: {ITEM: '{{ item }}'}}
  - id: tell
    notify: {to: [console], title: Maintenance, message: Scanning stops at 22:00.}
  - id: never
    name: Only on Sundays
    when: 1 == 2
    shell: {run: 'true'}
  - id: check
    name: One and one
    severity: warning
    assert: {that: 1 + 1 == 3, message: the sum is wrong}
  - id: ship
    name: Deploy
    shell: {run: 'echo quota exceeded >&2; exit 3'}
  - id: after
    shell: {run: echo after > after}
always:
  - id: tidy
    shell: {run: echo tidy > tidy}
";

fn env() -> TestEnv {
    let env = TestEnv::new();
    env.write("playbook.yaml", PLAYBOOK);
    env
}

#[test]
fn a_failing_run_in_a_pipe() {
    let output = env().runbook(["run", "playbook.yaml"]).run().exits(3);
    insta::assert_snapshot!(output.stdout, @"
    report  8 steps, run [RUN]

      look │ hello
      look │ ␛[31mred
    done           [DURATION]  Look around → ␛[31mred
      each[0] │ a
    done           [DURATION]  Side by side [a] → a
      each[1] │ b
    done           [DURATION]  Side by side [b] → b
    done                  Side by side → 2 instances
      ┃ Maintenance
      ┃ Scanning stops at 22:00.
    done           [DURATION]  tell → told console
    skipped               Only on Sundays → `when: 1 == 2` is false
    WARNING        [DURATION]  One and one → 1 + 1 == 3
      the sum is wrong
      condition  1 + 1 == 3
      ship │ quota exceeded
    FAILED         [DURATION]  Deploy → exit code 3
      exit code 3, expected 0
      step            ship
      where           playbook.yaml:25:18
                      25 |     shell: {run: 'echo quota exceeded >&2; exit 3'}
      standard error  quota exceeded
      state           part of this step's effect may be in place
      next            runbook show [RUN] ship  its attempts and output
                      runbook resume [RUN]  tries again from here; what is done stays done
    done           [DURATION]  tidy → exit code 0

    failed after [DURATION]: 4 done, 1 warning, 1 failed, 1 skipped, 1 not run
      1 finding:
        One and one: the sum is wrong
      runbook resume [RUN]  tries again; what is done stays done
    ");
    assert_eq!(output.stderr, "");
}

#[test]
fn quietly_only_what_failed_and_the_end() {
    let output = env().runbook(["run", "-q", "playbook.yaml"]).run().exits(3);
    insta::assert_snapshot!(output.stdout, @"
    FAILED         [DURATION]  Deploy → exit code 3
      exit code 3, expected 0
      step            ship
      where           playbook.yaml:25:18
                      25 |     shell: {run: 'echo quota exceeded >&2; exit 3'}
      standard error  quota exceeded
      state           part of this step's effect may be in place
      next            runbook show [RUN] ship  its attempts and output
                      runbook resume [RUN]  tries again from here; what is done stays done
    failed after [DURATION]: 4 done, 1 warning, 1 failed, 1 skipped, 1 not run (report, run [RUN])
      runbook resume [RUN]  tries again; what is done stays done
    ");
}

#[test]
fn the_next_commands_name_the_journal() {
    let env = env();
    let output = env.runbook(["run", "-q", "--journal", "my journal.db", "playbook.yaml"]).run().exits(3);
    assert!(output.stdout.contains("runbook --journal 'my journal.db' resume [RUN]"), "{output}");
    env.runbook(["--journal", "my journal.db", "list"]).run().exits(0);
}

#[test]
fn programs_get_one_event_a_line() {
    let output = env().runbook(["run", "--json", "playbook.yaml"]).run().exits(3);
    let lines = output.json_lines();
    assert!(lines.iter().all(|line| line["version"] == 1 && line["run"].is_string() && line["event"].is_string()), "{output}");
    let of = |event: &str| lines.iter().filter(|line| line["event"] == event).count();
    assert_eq!((of("begin"), of("step_expanded"), of("message"), of("end")), (1, 1, 1, 1), "{output}");
    assert_eq!(lines.last().unwrap()["ending"], "failed");
    assert!(lines.iter().any(|line| line["event"] == "output" && line["step"] == "look" && line["line"] == "hello"), "{output}");
    assert_eq!(output.stderr, "");
}

#[test]
fn a_reader_that_has_seen_enough_does_not_stop_the_run() {
    for options in ["", "--json", "-v"] {
        let env = env();
        let runbook = env!("CARGO_BIN_EXE_runbook");
        // Its end decides: the shell reports the exit code of the first program.
        let script = format!("set -o pipefail; {runbook} run {options} playbook.yaml | head -n 1 > head");
        let output = env.command("bash", ["-c", &script]).run().exits(3);
        assert_eq!(output.stderr, "");
        assert!(env.path("tidy").exists(), "the run went on to its end");
    }
}

#[test]
fn on_a_terminal_it_is_coloured_unless_unwanted() {
    let env = env();
    let run = |variables: &[(&str, &str)], arguments: &[&str]| {
        let mut invocation = env.runbook(["run", "playbook.yaml"].iter().chain(arguments));
        for (name, value) in variables {
            invocation = invocation.env(name, value);
        }
        let mut terminal = invocation.terminal();
        assert_eq!(terminal.wait().code(), Some(3));
        assert!(terminal.history().contains("␛[31mred"), "a step's escapes are shown, not obeyed: {}", terminal.history());
        terminal.raw().contains("\x1b[1;31mFAILED")
    };
    assert!(run(&[], &[]));
    assert!(!run(&[("NO_COLOR", "1")], &[]));
    assert!(run(&[("NO_COLOR", "1")], &["--color", "always"]));
    assert!(!run(&[("FORCE_COLOR", "1")], &["--color", "never"]));
    let forced = env.runbook(["run", "playbook.yaml"]).env("FORCE_COLOR", "1").run().exits(3);
    assert!(forced.raw_stdout.contains("\x1b[1;31mFAILED"));
}

#[test]
fn what_runs_is_shown_live_and_gone_at_the_end() {
    let env = TestEnv::new();
    env.write(
        "playbook.yaml",
        "
version: 1
name: live
steps:
  - id: load
    name: Load the orders
    shell: {run: 'echo 17 of 40; until [ -e seen ]; do sleep 0.02; done'}
",
    );
    let mut terminal = env.runbook(["run", "playbook.yaml"]).terminal();
    terminal.wait_until("the step and its last line", |screen| {
        screen.contents().lines().any(|line| line.contains("running") && line.contains("Load the orders") && line.contains("17 of 40"))
    });
    env.write("seen", "");
    assert_eq!(terminal.wait().code(), Some(0));
    insta::assert_snapshot!(terminal.screen(), @"
    live  1 step, run [RUN]

      │ 17 of 40
    done           [DURATION]  Load the orders → 17 of 40

    done after [DURATION]: 1 done
      runbook show [RUN]  every step, who confirmed what
    ");
    assert!(terminal.shows_cursor());
}
