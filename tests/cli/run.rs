//! What a run does with the keys a step may have, and how it goes on after it stopped.
//!
//! Steps leave their ids in the file `log`, so that what ran, how often and in which
//! order is there to be read.

use crate::environment::{Output, TestEnv};

fn env(steps: &str) -> TestEnv {
    let env = TestEnv::new();
    write(&env, steps);
    env
}

fn write(env: &TestEnv, steps: &str) {
    env.write("playbook.yaml", format!("version: 1\nname: test\nparams:\n  n: {{type: integer, default: 1}}\n{steps}"));
}

fn run(env: &TestEnv, options: &[&str]) -> Output {
    env.runbook(["run", "playbook.yaml"].iter().chain(options)).run()
}

fn log(env: &TestEnv) -> String {
    if env.path("log").exists() { env.read("log").lines().collect::<Vec<_>>().join(" ") } else { String::new() }
}

#[test]
fn steps_run_top_to_bottom_and_needs_replace_that() {
    let env = env("
steps:
  - {id: a, shell: {run: echo a >> log}}
  - {id: b, needs: [c], shell: {run: echo b >> log}}
  - {id: c, needs: [a], shell: {run: echo c >> log}}
  - {id: d, needs: [b], shell: {run: echo d >> log}}
");
    run(&env, &[]).exits(0);
    assert_eq!(log(&env), "a c b d");
}

#[test]
fn independent_steps_run_side_by_side() {
    // Each waits until the other has begun: one after the other they would never end.
    let meet = |me: &str, other: &str| {
        format!("  - {{id: {me}, needs: [], timeout: 50s, shell: {{run: 'touch {me}; while [ ! -e {other} ]; do sleep 0.01; done'}}}}\n")
    };
    let env = env(&format!("steps:\n{}{}", meet("a", "b"), meet("b", "a")));
    run(&env, &[]).exits(0);
}

#[test]
fn when_skips_and_named_needs_pass_the_skip_on() {
    let env = env("
steps:
  - {id: a, when: params.n > 1, shell: {run: echo a >> log}}
  - {id: below, shell: {run: echo below >> log}}
  - {id: needs_a, needs: [a, below], shell: {run: echo needs_a >> log}}
  - {id: handles, needs: [a, below], when: \"steps.a.status == 'skipped'\", shell: {run: echo handles >> log}}
");
    run(&env, &[]).exits(0);
    assert_eq!(log(&env), "below handles");
    run(&env, &["-p", "n=2"]).exits(0);
    assert_eq!(log(&env), "below handles a below needs_a");
}

#[test]
fn for_each_gives_an_instance_an_item_and_collects_values() {
    let env = env("
steps:
  - {id: list, shell: {run: 'echo [1, 2, 3]'}}
  - id: each
    for_each: \"{{ steps.list.json }}\"
    as: number
    max_parallel: 1
    when: number != 2
    shell: {run: 'echo $N >> log', env: {N: \"{{ number * params.n }}\"}}
  - {id: none, for_each: [], shell: {run: echo never >> log}}
  - {id: check, assert: {that: \"steps.each.value | length == 3 and steps.none.status == 'done'\"}}
");
    run(&env, &["-p", "n=10"]).exits(0);
    assert_eq!(log(&env), "10 30");
}

#[test]
fn a_failed_attempt_is_repeated_as_often_as_asked() {
    let env = env("
steps:
  - id: flaky
    retry: {max: 2, delay: 1ms, on: [process]}
    shell: {run: 'echo try >> log; [ $(wc -l < log) -eq 3 ]'}
  - id: hopeless
    retry: {max: 1, delay: 1ms, on: [any]}
    shell: {run: 'echo no >> log; exit 1'}
");
    run(&env, &[]).exits(3);
    assert_eq!(log(&env), "try try try no no");
}

#[test]
fn a_step_that_takes_too_long_is_stopped_and_said_to_be_unknown() {
    let env = env("
steps:
  - {id: slow, timeout: 200ms, shell: {run: 'echo begun >> log; exec sleep 600'}}
");
    let output = run(&env, &[]).exits(4);
    assert!(output.stdout.contains("not done within its timeout of [DURATION]"), "{output}");
    assert_eq!(log(&env), "begun");
}

#[test]
fn warnings_and_continue_on_error_let_the_run_go_on() {
    let env = env("
steps:
  - {id: odd, severity: warning, assert: {that: 1 == 2}}
  - {id: bad, continue_on_error: true, shell: {run: exit 1}}
  - {id: after, needs: [bad], when: \"steps.bad.status == 'failed' and steps.odd.status == 'warning'\", shell: {run: echo after >> log}}
");
    run(&env, &[]).exits(0);
    assert_eq!(log(&env), "after");
}

#[test]
fn done_when_decides_before_and_after() {
    let env = env("
steps:
  - {id: made, done_when: {shell: {run: test -e made}}, shell: {run: 'touch made; echo made >> log'}}
  - {id: vain, done_when: {shell: {run: test -e nowhere}}, shell: {run: echo vain >> log}}
");
    let output = run(&env, &[]).exits(3);
    assert!(output.stdout.contains("`done_when` does not hold afterwards"), "{output}");
    let output = run(&env, &[]).exits(3);
    assert!(output.stdout.contains("already done"), "{output}");
    assert_eq!(log(&env), "made vain vain");
}

#[test]
fn outputs_are_read_by_later_steps_also_after_a_resume() {
    let env = env("
steps:
  - {id: a, shell: {run: 'echo 41'}, outputs: {next: \"(stdout | int) + 1\"}}
  - {id: gate, shell: {run: test -e go}}
  - {id: b, shell: {run: 'echo $N >> log', env: {N: \"{{ steps.a.outputs.next }}\"}}}
");
    run(&env, &[]).exits(3);
    env.write("go", "");
    env.runbook(["resume"]).run().exits(0);
    assert_eq!(log(&env), "42");
}

#[test]
fn closing_steps_run_at_every_end_and_fit_it() {
    let env = env("
steps:
  - {id: work, shell: {run: 'echo work >> log; test -e go'}}
on_failure:
  - {id: sorry, shell: {run: 'echo \"sorry:$S\" >> log', env: {S: \"{{ steps.work.status }}\"}}}
on_success:
  - {id: hooray, shell: {run: echo hooray >> log}}
always:
  - {id: tidy, shell: {run: echo tidy >> log}}
");
    run(&env, &[]).exits(3);
    assert_eq!(log(&env), "work sorry:failed tidy");
    env.runbook(["resume"]).run().exits(3);
    env.write("go", "");
    env.runbook(["resume"]).run().exits(0);
    assert_eq!(log(&env), "work sorry:failed tidy work sorry:failed tidy work hooray tidy");
}

#[test]
fn resume_never_repeats_what_is_done() {
    let env = env("
steps:
  - {id: a, shell: {run: echo a >> log}}
  - {id: b, shell: {run: 'echo b >> log; test -e go'}}
  - {id: c, shell: {run: echo c >> log}}
");
    run(&env, &[]).exits(3);
    env.write("go", "");
    env.runbook(["resume"]).run().exits(0);
    assert_eq!(log(&env), "a b b c");
    let output = env.runbook(["resume"]).run().exits(64);
    assert!(output.stderr.contains("no run can be resumed"), "{output}");
}

#[test]
fn an_edited_playbook_is_resumed_only_when_what_is_done_is_unchanged() {
    let playbook =
        |first: &str, last: &str| format!("steps:\n  - {{id: a, shell: {{run: {first}}}}}\n  - {{id: b, shell: {{run: {last}}}}}\n");
    let env = env(&playbook("echo a >> log", "exit 1"));
    run(&env, &[]).exits(3);
    write(&env, &playbook("echo other >> log", "exit 1"));
    let output = env.runbook(["resume", "--accept-edit"]).run().exits(6);
    assert!(output.stderr.contains("the playbook was edited: a changed"), "{output}");
    write(&env, &playbook("echo a >> log", "echo b >> log"));
    let output = env.runbook(["resume"]).run().exits(6);
    assert!(output.stderr.contains("--accept-edit"), "{output}");
    env.runbook(["resume", "--accept-edit"]).run().exits(0);
    assert_eq!(log(&env), "a b");
}

#[test]
fn only_skip_and_from_select_and_refuse_when_a_result_would_be_missing() {
    let steps = "
steps:
  - {id: a, tags: [first], shell: {run: echo a >> log}}
  - {id: b, shell: {run: 'echo b >> log; echo 1'}}
  - {id: c, shell: {run: 'echo c$N >> log', env: {N: \"{{ steps.b.stdout }}\"}}}
always:
  - {id: tidy, shell: {run: echo tidy >> log}}
";
    let env = env(steps);
    run(&env, &["--only", "first"]).exits(0);
    assert_eq!(log(&env), "a tidy");
    run(&env, &["--from", "b"]).exits(0);
    assert_eq!(log(&env), "a tidy b c1 tidy");
    run(&env, &["--skip", "c,tidy"]).exits(0);
    assert_eq!(log(&env), "a tidy b c1 tidy a b");
    let output = run(&env, &["--skip", "b"]).exits(65);
    assert!(output.stderr.contains("`c` reads the result of `b`, which is left out by --skip"), "{output}");
    let output = run(&env, &["--only", "frist"]).exits(65);
    assert!(output.stderr.contains("did you mean `first`?") || output.stderr.contains("no step and no tag is called `frist`"), "{output}");
}

#[test]
fn parameters_are_typed_and_their_errors_come_together() {
    let env = TestEnv::new();
    env.write(
        "playbook.yaml",
        "
version: 1
name: test
params:
  env: {type: enum, values: [staging, production], required: true, description: Where to run}
  count: {type: integer, min: 1, default: 5}
  since: {type: duration, default: 5m}
  tables: {type: list, default: [a, b]}
  home: {type: string, default: \"{{ env.HOME }}\"}
steps:
  - {id: a, shell: {run: 'echo $X', env: {X: \"{{ params.env }} {{ params.count + 1 }} {{ params.since }} {{ params.tables | length }} {{ params.home != '' }}\"}}}
",
    );
    let output = run(&env, &["-p", "count=0", "-p", "tabels=x", "-p", "since=5"]).exits(65);
    for wrong in ["parameter `env`: a value is required", "0 is less than 1", "did you mean `tables`?", "`5` is not a duration"] {
        assert!(output.stderr.contains(wrong), "{wrong}: {output}");
    }
    env.write("params.yaml", "env: staging\ntables: [x, y, z]\n");
    let output = run(&env, &["--params-file", "params.yaml", "-p", "count=7"]).exits(0);
    assert!(output.stdout.contains("staging 8 5m 3 true"), "{output}");
}

#[test]
fn results_of_an_included_playbook_are_read_also_after_a_resume() {
    let env = env("
steps:
  - {id: outer, playbook: {file: outer.yaml}}
  - {id: gate, shell: {run: test -e go}}
  - id: after
    shell: {run: 'echo $A $B $C >> log', env: {A: \"{{ steps.outer.a.stdout }}\", B: \"{{ steps.outer.inner.b.outputs.n }}\", C: \"{{ steps.outer.c.status }}\"}}
");
    env.write(
        "outer.yaml",
        "
version: 1
name: outer
steps:
  - {id: a, shell: {run: echo from-a}}
  - {id: inner, playbook: {file: inner.yaml}}
  - {id: c, when: steps.inner.b.outputs.n != 42, shell: {run: 'true'}}
",
    );
    env.write("inner.yaml", "version: 1\nname: inner\nsteps:\n  - {id: b, shell: {run: echo 41}, outputs: {n: (stdout | int) + 1}}\n");
    let refused = run(&env, &["--only", "after", "--only", "outer/c"]).exits(65);
    assert!(refused.stderr.contains("`after` reads the result of `outer/a`, which is not named by --only"), "{refused}");
    run(&env, &[]).exits(3);
    env.write("go", "");
    env.runbook(["resume"]).run().exits(0);
    assert_eq!(log(&env), "from-a 42 skipped");
}

#[test]
fn an_included_playbook_runs_in_place() {
    let env = env("
steps:
  - {id: before, shell: {run: echo before >> log}}
  - {id: inner, playbook: {file: inner.yaml, params: {word: \"{{ params.n }}-times\"}}}
  - {id: after, shell: {run: echo after >> log}}
  - {id: not, when: 1 == 2, playbook: {file: inner.yaml, params: {word: never}}}
");
    env.write(
        "inner.yaml",
        "
version: 1
name: inner
params: {word: {type: string, required: true}}
steps:
  - {id: a, shell: {run: 'echo $W >> log', env: {W: \"{{ params.word }}\"}}}
  - {id: b, shell: {run: 'echo b-after-$S >> log', env: {S: \"{{ steps.a.status }}\"}}}
",
    );
    let output = run(&env, &[]).exits(0);
    assert_eq!(log(&env), "before 1-times b-after-done after");
    assert!(output.stdout.contains("inner/b"), "{output}");
}

#[test]
fn the_wrong_environment_is_refused_before_anything_changes() {
    let mut env = TestEnv::new();
    let database = env.database();
    env.write(
        "playbook.yaml",
        "
version: 1
name: test
environment: production
connections: {main: {url: \"{{ env.DATABASE_URL }}\"}}
steps:
  - {id: a, sql: {exec: CREATE TABLE evidence (n int)}}
",
    );
    let output = run(&env, &[]).exits(6);
    assert!(output.stderr.contains("runbook stamp"), "{output}");
    env.runbook(["stamp", "staging"]).run().exits(0);
    let output = run(&env, &[]).exits(6);
    assert!(output.stderr.contains("production") && output.stderr.contains("staging"), "{output}");
    assert_eq!(database.psql("SELECT to_regclass('evidence') IS NULL").trim(), "t");
    env.runbook(["stamp", "production"]).run().exits(0);
    run(&env, &[]).exits(0);
}

#[test]
fn nothing_runs_without_a_journal() {
    let env = env("steps:\n  - {id: a, shell: {run: echo a >> log}}\n");
    env.write("blocked", "a file where a directory is needed");
    let output = env.runbook(["run", "playbook.yaml", "--journal", "blocked/journal.db"]).run().exits(1);
    assert!(output.stderr.contains("cannot use the journal"), "{output}");
    assert_eq!(log(&env), "");
}
