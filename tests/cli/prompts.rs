//! Questions at a real terminal: every answer, every way to give none.

use nix::sys::signal::Signal;

use crate::environment::TestEnv;
use crate::terminal::key;

const CONFIRM: &str = "
version: 1
name: gates
steps:
  - id: go
    name: Go or no-go
    confirm: Deploy 4.2 to production?
  - id: ship
    shell: {run: echo shipped > shipped}
";

fn with(playbook: &str) -> TestEnv {
    let env = TestEnv::new();
    env.write("playbook.yaml", playbook);
    env
}

fn shipped(env: &TestEnv) -> bool {
    env.path("shipped").exists()
}

#[test]
fn a_confirmation_asks_until_it_has_an_answer() {
    let env = with(CONFIRM);
    let mut terminal = env.runbook(["run", "playbook.yaml"]).terminal();
    terminal.wait_for("Go on? [y/n]").send(key::ENTER).wait_for("Enter alone is no answer");
    terminal.send("perhaps").send(key::ENTER).wait_for("`perhaps` is no answer");
    terminal.send("yx").send(key::BACKSPACE).send(key::ENTER);
    assert_eq!(terminal.wait().code(), Some(0), "{}", terminal.screen());
    assert!(shipped(&env) && terminal.is_sane() && terminal.shows_cursor());
}

#[test]
fn no_stops_the_run() {
    let env = with(CONFIRM);
    let mut terminal = env.runbook(["run", "playbook.yaml"]).terminal();
    terminal.wait_for("Go on? [y/n]").send("n").send(key::ENTER);
    assert_eq!(terminal.wait().code(), Some(3));
    assert!(terminal.screen().contains("declined by"), "{}", terminal.screen());
    assert!(!shipped(&env));
}

#[test]
fn keys_pressed_before_the_question_do_not_answer_it() {
    let env = with(
        &CONFIRM.replace("steps:\n", "steps:\n  - id: first\n    shell: {run: 'echo first; until [ -e typed ]; do sleep 0.02; done'}\n"),
    );
    let mut terminal = env.runbook(["run", "playbook.yaml"]).terminal();
    terminal.wait_for("│ first").send("y").send(key::ENTER);
    env.write("typed", "");
    terminal.wait_for("Go on? [y/n]").send("n").send(key::ENTER);
    assert_eq!(terminal.wait().code(), Some(3), "{}", terminal.screen());
    assert!(!shipped(&env));
}

#[test]
fn text_to_type_and_observations() {
    let env = with(
        "
version: 1
name: gates
steps:
  - id: go
    confirm: {message: Wipe the standby?, type_to_confirm: standby-2}
  - id: fence
    manual: {instruction: Fence the old primary, ask: What do you see on port 5432?, expect: refused}
",
    );
    let mut terminal = env.runbook(["run", "playbook.yaml"]).terminal();
    terminal.wait_for("type standby-2").send("y").send(key::ENTER).wait_for("that is not it");
    terminal.send("standby-2").send(key::ENTER);
    terminal.wait_for("What do you see on port 5432?").send(key::ENTER).wait_for("an answer is needed");
    terminal.send("Refused").send(key::ENTER);
    assert_eq!(terminal.wait().code(), Some(0), "{}", terminal.screen());
    let run = last_run(&env);
    let shown = env.runbook(["show", &run]).run().exits(0).stdout;
    assert!(shown.contains("answered `standby-2`") && shown.contains("answered `Refused`"), "{shown}");
}

#[test]
fn an_interrupt_at_a_question_pauses_the_run() {
    for typed in ["", "ye"] {
        let env = with(CONFIRM);
        let mut terminal = env.runbook(["run", "playbook.yaml"]).terminal();
        terminal.wait_for("Go on? [y/n]").send(typed);
        if !typed.is_empty() {
            terminal.wait_for("Go on? [y/n] ye");
        }
        terminal.send(key::CTRL_C);
        assert_eq!(terminal.wait().code(), Some(130), "{}", terminal.screen());
        assert!(terminal.is_sane() && terminal.shows_cursor(), "{}", terminal.screen());
        assert!(terminal.screen().contains("runbook resume"), "{}", terminal.screen());
        assert!(!shipped(&env));
        let mut terminal = env.runbook(["resume"]).terminal();
        terminal.wait_for("Go on? [y/n]").send("y").send(key::ENTER);
        assert_eq!(terminal.wait().code(), Some(0), "{}", terminal.screen());
        assert!(shipped(&env));
    }
}

#[test]
fn a_signal_or_a_closed_window_at_a_question_leaves_a_run_that_resumes() {
    let env = with(CONFIRM);
    let mut terminal = env.runbook(["run", "playbook.yaml"]).terminal();
    terminal.wait_for("Go on? [y/n]").signal(Signal::SIGTERM);
    assert_eq!(terminal.wait().code(), Some(143), "{}", terminal.screen());
    assert!(terminal.is_sane() && terminal.shows_cursor());
    let mut terminal = env.runbook(["resume"]).terminal();
    terminal.wait_for("Go on? [y/n]");
    terminal.hang_up();
    assert_eq!(terminal.wait().code(), Some(143));
    assert!(!shipped(&env));
    env.runbook(["resume", "--yes"]).run().exits(0);
    assert!(shipped(&env));
}

#[test]
fn nobody_answers_in_time() {
    let env = with(&CONFIRM.replace("confirm: Deploy 4.2 to production?", "confirm: {message: Deploy?, timeout: 1s}"));
    let mut terminal = env.runbook(["run", "playbook.yaml"]).terminal();
    terminal.wait_for("Go on? [y/n]").wait_for("no longer asked");
    assert_eq!(terminal.wait().code(), Some(3), "{}", terminal.screen());
    assert!(terminal.is_sane() && terminal.shows_cursor());
    assert!(terminal.screen().contains("nobody answered in time"), "{}", terminal.screen());
}

#[test]
fn an_answer_from_elsewhere_takes_the_question_back() {
    let env = with(CONFIRM);
    let mut terminal = env.runbook(["run", "playbook.yaml"]).terminal();
    terminal.wait_for("Go on? [y/n]");
    env.runbook(["approve", &last_run(&env), "go", "--as", "bob"]).run().exits(0);
    terminal.wait_for("no longer asked");
    assert_eq!(terminal.wait().code(), Some(0), "{}", terminal.screen());
    assert!(terminal.screen().contains("confirmed by bob"), "{}", terminal.screen());
    assert!(shipped(&env));
}

/// A question that is put in the very moment in which another step ends is not lost.
#[test]
fn many_questions_among_many_ends_are_all_asked() {
    let mut playbook = "version: 1\nname: many\nmax_parallel: 64\nsteps:\n".to_owned();
    for number in 0..32 {
        playbook += &format!("  - {{id: check_{number}, needs: [], assert: {{that: '1 == 1'}}}}\n");
        playbook += &format!("  - {{id: gate_{number}, needs: [], confirm: Go on?}}\n");
    }
    let env = TestEnv::new();
    env.write("many.yaml", playbook);
    env.runbook(["run", "many.yaml", "--yes"]).run().exits(0);
}

#[test]
fn other_steps_end_while_a_question_stands() {
    let env = with(
        "
version: 1
name: gates
steps:
  - id: slow
    shell: {run: 'until [ -e asked ]; do sleep 0.02; done; echo slow > slow'}
  - id: go
    needs: []
    confirm: Go on with it?
",
    );
    let mut terminal = env.runbook(["run", "playbook.yaml"]).terminal();
    terminal.wait_for("Go on? [y/n]");
    env.write("asked", "");
    while !env.path("slow").exists() {
        std::thread::yield_now();
    }
    terminal.send("y").send(key::ENTER);
    assert_eq!(terminal.wait().code(), Some(0), "the end of a child is no Ctrl+C: {}", terminal.screen());
}

#[test]
fn step_by_step_asks_before_each_step() {
    let env = with(
        "
version: 1
name: steps
steps:
  - id: look
    name: Look
    assert: {that: 1 == 1}
  - id: skipped
    name: Skip me
    shell: {run: echo > skipped}
  - id: ship
    name: Ship
    shell: {run: echo shipped > shipped}
  - id: never
    name: Never
    shell: {run: echo > never}
",
    );
    let mut terminal = env.runbook(["run", "--step", "playbook.yaml"]).terminal();
    terminal.wait_for("? look: Look").send(key::ENTER);
    terminal.wait_for("? skipped: Skip me").send("s").send(key::ENTER).wait_for("Why is it left out?").send("not today").send(key::ENTER);
    terminal.wait_for("? ship: Ship").send(key::ENTER).wait_for("this step changes something").send("h").send(key::ENTER);
    terminal.wait_until("the description twice", |screen| screen.contents().matches("? ship: Ship").count() == 2);
    assert!(!shipped(&env));
    terminal.send("r").send(key::ENTER);
    terminal.wait_for("? never: Never").send("q").send(key::ENTER);
    assert_eq!(terminal.wait().code(), Some(130), "{}", terminal.screen());
    assert!(shipped(&env) && !env.path("skipped").exists() && !env.path("never").exists());
    let shown = env.runbook(["show", &last_run(&env)]).run().exits(0).stdout;
    assert!(shown.contains("not today, says"), "{shown}");
}

#[test]
fn step_by_step_needs_a_terminal() {
    let env = with(CONFIRM);
    let output = env.runbook(["run", "--step", "playbook.yaml"]).run().exits(64);
    assert!(output.stderr.contains("terminal"), "{output}");
}

#[test]
fn a_person_settles_an_unknown_end_with_a_reason() {
    let env = with(
        "
version: 1
name: unknown
steps:
  - id: ship
    name: Ship
    shell: {run: 'echo began; echo x >> ran; until [ -e go ]; do sleep 0.02; done'}
",
    );
    let running = env.runbook(["run", "playbook.yaml"]).spawn();
    running.wait_for("began");
    running.kill();
    env.write("go", "");
    let without = env.runbook(["resume"]).run().exits(4);
    assert!(without.stdout.contains("runbook resume"), "{without}");
    let mut terminal = env.runbook(["resume"]).terminal();
    terminal.wait_for("What is true?").send("d").send(key::ENTER).wait_for("How do you know");
    terminal.send("I saw it ship").send(key::ENTER);
    assert_eq!(terminal.wait().code(), Some(0), "{}", terminal.screen());
    assert_eq!(env.read("ran"), "x\n", "it did not run again");
    let shown = env.runbook(["show", &last_run(&env), "ship"]).run().exits(0).stdout;
    assert!(shown.contains("its effect is in place: I saw it ship, says"), "{shown}");
}

fn last_run(env: &TestEnv) -> String {
    let listed = env.runbook(["list", "--json"]).run().exits(0);
    let runs: serde_json::Value = serde_json::from_str(&listed.raw_stdout).unwrap();
    runs[0]["run"].as_str().unwrap().to_owned()
}
