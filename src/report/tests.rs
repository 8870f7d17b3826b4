//! Whole reports, as they stand on a terminal, in a pipe, and for programs.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use indicatif::ProgressDrawTarget;
use jiff::Timestamp;
use serde_json::json;

use super::screen::Screen;
use super::*;
use crate::action::{Answer, Class, Prompt, PromptKind, Recovery};
use crate::engine::{Ending, Observer};
use crate::journal::event::FORMAT;
use crate::journal::{
    Event, EventKind, Operator, Outcome, Pause, Phase, Resolution, RunHeader, RunState, RunStatus, Selection, SkipCause, StepRecord,
};
use crate::outcome::{Aftermath, ErrorKind, Sample, StepError, StepResult};
use crate::plan::Plan;
use crate::secret::Redactor;
use crate::source::{Location, SourceFile, Sources};

/// A sink that is read afterwards.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader that has gone away.
struct Gone;

impl Write for Gone {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

/// A run whose events go to an observer.
struct Story<'a> {
    plan: Plan,
    state: RunState,
    observer: &'a mut dyn Observer,
}

const RUN: &str = "20260102-030405-k3x9";

impl<'a> Story<'a> {
    fn new(observer: &'a mut dyn Observer) -> Self {
        let steps = [
            ("sessions", Some("No active session")),
            ("count", Some("Count rows")),
            ("no_orphans", Some("No orphaned racks, no orphaned scans")),
            ("ship", Some("Deploy")),
            ("go", None),
        ];
        let record = |(id, name): (&str, Option<&str>)| StepRecord {
            id: id.into(),
            name: name.map(Into::into),
            digest: String::new(),
            phase: Phase::Steps,
            class: Class::Read,
            recovery: Recovery::Repeat,
            tolerated: false,
        };
        let header = RunHeader {
            format: FORMAT,
            engine: "0.1.0".into(),
            playbook: "pre-deploy".into(),
            file: "/srv/pre-deploy.yaml".into(),
            directory: "/srv".into(),
            digest: "d".into(),
            params: serde_json::Map::new(),
            selection: Selection::default(),
            steps: steps.map(record).to_vec(),
            targets: [("main".to_owned(), "stock_audit on db1 (system 7300)".to_owned())].into(),
            operator: Operator { user: "ada".into(), host: "db1".into(), pid: 42 },
            assume_yes: false,
        };
        let begin = Event { sequence: 0, at: Timestamp::UNIX_EPOCH, kind: EventKind::RunStarted(Box::new(header)) };
        let state = RunState::begin(&begin).unwrap();
        let plan = plan();
        observer.begin(RUN, &plan, &state);
        Self { plan, state, observer }
    }

    fn then(&mut self, kind: EventKind) -> &mut Self {
        let event = Event { sequence: self.state.next_sequence, at: Timestamp::UNIX_EPOCH, kind };
        self.state.apply(&event).unwrap();
        self.observer.event(&self.plan, &self.state, &event);
        self
    }

    fn starts(&mut self, step: &str) -> &mut Self {
        self.observer.started(step, 1);
        self
    }

    fn finishes(&mut self, step: &str, outcome: Outcome) -> &mut Self {
        self.then(EventKind::StepFinished { step: step.into(), attempt: 1, outcome, duration_ms: 120 })
    }

    fn done(&mut self, step: &str, summary: &str) -> &mut Self {
        self.starts(step).finishes(step, Outcome::Done { result: result(summary) })
    }

    fn pauses(&mut self, reason: Pause, ending: Ending) {
        self.then(EventKind::RunPaused { reason });
        self.observer.end(RUN, Some(ending));
    }
}

fn plan() -> Plan {
    let mut sources = Sources::default();
    sources.add(SourceFile::new("pre-deploy.yaml", "steps:\n  - id: no_orphans\n    sql:\n      expect: {each_row: \"n == 0\"}\n"));
    Plan {
        name: "pre-deploy".into(),
        description: None,
        file: PathBuf::from("pre-deploy.yaml"),
        digest: "d".into(),
        environment: Some("production".into()),
        params: serde_json::Map::new(),
        steps: Vec::new(),
        max_parallel: 4,
        max_output: 0,
        connections: Vec::new(),
        lock: "pre-deploy".into(),
        scopes: Vec::new(),
        redactor: Redactor::default(),
        secret_variables: Default::default(),
        secrets: Vec::new(),
        sources: Arc::new(sources),
        selection: Selection::default(),
    }
}

fn result(summary: &str) -> Box<StepResult> {
    Box::new(StepResult { summary: summary.into(), ..StepResult::default() })
}

fn broken_expectation() -> Box<StepError> {
    let location = Location { file: "pre-deploy.yaml".into(), line: 4, column: 15 };
    let mut error = StepError::new(ErrorKind::Expectation, "a row does not satisfy `n == 0`")
        .fact("expected", "n == 0")
        .fact("found", "n = 2")
        .hint("delete the orphans with playbooks/fix-orphans.yaml")
        .at(location)
        .with_result(*result("racks 2, scans 0"));
    let rows = vec![vec![json!("racks"), json!(2)]];
    error.sample = Some(Sample { columns: vec!["what".into(), "n".into()], rows, total: 2 });
    Box::new(error)
}

fn options() -> Options {
    Options { color: false, quiet: false, verbose: false, command: "runbook".into(), asks: true }
}

fn plain(options: Options) -> (Plain, Sink, Sink) {
    let (out, urgent) = (Sink::default(), Sink::default());
    let mut report = Plain::new(options, Box::new(out.clone()), Box::new(urgent.clone()));
    report.clock = Stopwatch(Arc::new(|| Duration::from_millis(12_300)));
    (report, out, urgent)
}

/// A terminal of 80 columns, a clock that moves when told, and what is on the screen.
struct Watched {
    report: Terminal,
    out: Sink,
    millis: Arc<AtomicU64>,
}

impl Watched {
    fn new(options: Options) -> Self {
        let (out, millis) = (Sink::default(), Arc::new(AtomicU64::new(0)));
        let screen = Screen::new(Box::new(out.clone()), Arc::new(|| (80, 40)));
        let now = Arc::clone(&millis);
        let clock = Stopwatch(Arc::new(move || Duration::from_millis(now.load(Ordering::Relaxed))));
        let report = Terminal::with_clock(options, screen, clock, |screen| ProgressDrawTarget::term_like(Box::new(screen.clone())));
        Self { report, out, millis }
    }

    fn screen(&self) -> String {
        screen(&self.out)
    }
}

fn screen(out: &Sink) -> String {
    let mut parser = vt100::Parser::new(40.try_into().unwrap(), 80.try_into().unwrap(), 0);
    parser.process(out.text().replace('\n', "\r\n").as_bytes());
    let lines: Vec<String> = parser.screen().rows(0, 80).map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n").trim_end().to_owned()
}

/// A run with a little of everything that ends with a failure.
fn failing_run(observer: &mut dyn Observer) {
    let mut story = Story::new(observer);
    story.done("sessions", "0 rows");
    story.then(EventKind::StepExpanded { step: "count".into(), items: vec![json!("racks"), json!("scans")] });
    story.starts("count[0]");
    story.observer.output("count[0]", "NOTICE: \u{241b}[31m counting");
    story.finishes("count[0]", Outcome::Done { result: result("1000") });
    let mut found = *result("2000");
    found.findings = vec!["more than last week".into()];
    story.finishes("count[1]", Outcome::Warned { result: Box::new(found), error: broken_expectation() });
    story.then(EventKind::StepFinished {
        step: "count".into(),
        attempt: 0,
        outcome: Outcome::Done { result: Box::new(StepResult { findings: vec!["more than last week".into()], ..*result("2 instances") }) },
        duration_ms: 0,
    });
    story.observer.message("count", Some("Maintenance"), "Scanning stops at 22:00.\nPlease log out.");
    let timeout = StepError::new(ErrorKind::Sql, "canceling statement due to lock timeout");
    story.then(EventKind::StepStarted { step: "no_orphans".into(), attempt: 1 });
    story.starts("no_orphans");
    story.then(EventKind::StepRetrying { step: "no_orphans".into(), attempt: 1, error: Box::new(timeout), delay_ms: 1500 });
    story.then(EventKind::StepFinished {
        step: "no_orphans".into(),
        attempt: 2,
        outcome: Outcome::Failed { error: broken_expectation() },
        duration_ms: 2340,
    });
    let reason = "it needs `no_orphans`, which was skipped".into();
    story.then(EventKind::StepFinished {
        step: "ship".into(),
        attempt: 0,
        outcome: Outcome::Skipped { cause: SkipCause::Need, reason, by: None },
        duration_ms: 0,
    });
    story.pauses(Pause::Failed, Ending::Failed);
}

#[test]
fn a_failing_run_in_a_pipe() {
    let (mut report, out, urgent) = plain(options());
    failing_run(&mut report);
    insta::assert_snapshot!(out.text(), @r#"
    pre-deploy  5 steps, run 20260102-030405-k3x9, environment production
      main: stock_audit on db1 (system 7300)

    done           0.12s  No active session → 0 rows
      count[0] │ NOTICE: ␛[31m counting
    done           0.12s  Count rows [racks] → 1000
    WARNING        0.12s  Count rows [scans] → 2000
      a row does not satisfy `n == 0`
      expected  n == 0
      found     n = 2
      rows      what  | n
                ------+--
                racks | 2
                (1 of 2 rows)
      hint      delete the orphans with playbooks/fix-orphans.yaml
    done                  Count rows → 2 instances
      ┃ Maintenance
      ┃ Scanning stops at 22:00.
      ┃ Please log out.
    retrying              No orphaned racks, no orphaned scans → canceling statement due to lock timeout; attempt 2 in 1.50s
    FAILED         2.34s  No orphaned racks, no orphaned scans → racks 2, scans 0
      a row does not satisfy `n == 0`
      step      no_orphans
      where     pre-deploy.yaml:4:15
                4 |       expect: {each_row: "n == 0"}
      expected  n == 0
      found     n = 2
      rows      what  | n
                ------+--
                racks | 2
                (1 of 2 rows)
      state     this step changed nothing, or what it changed was rolled back
      hint      delete the orphans with playbooks/fix-orphans.yaml
      next      runbook show 20260102-030405-k3x9 no_orphans  its attempts and output
                runbook resume 20260102-030405-k3x9  tries again from here; what is done stays done
    skipped               Deploy → it needs `no_orphans`, which was skipped

    failed after 0.00s: 2 done, 1 failed, 1 skipped, 1 not run
      1 finding:
        Count rows: more than last week
      runbook resume 20260102-030405-k3x9  tries again; what is done stays done
    "#);
    assert_eq!(urgent.text(), "");
    assert!(!out.text().contains('\x1b'));
}

#[test]
fn a_failing_run_quietly_and_verbosely() {
    let (mut report, out, _) = plain(Options { quiet: true, command: "runbook --journal /srv/j.db".into(), ..options() });
    failing_run(&mut report);
    insta::assert_snapshot!(out.text(), @r#"
    FAILED         2.34s  No orphaned racks, no orphaned scans → racks 2, scans 0
      a row does not satisfy `n == 0`
      step      no_orphans
      where     pre-deploy.yaml:4:15
                4 |       expect: {each_row: "n == 0"}
      expected  n == 0
      found     n = 2
      rows      what  | n
                ------+--
                racks | 2
                (1 of 2 rows)
      state     this step changed nothing, or what it changed was rolled back
      hint      delete the orphans with playbooks/fix-orphans.yaml
      next      runbook --journal /srv/j.db show 20260102-030405-k3x9 no_orphans  its attempts and output
                runbook --journal /srv/j.db resume 20260102-030405-k3x9  tries again from here; what is done stays done
    failed after 0.00s: 2 done, 1 failed, 1 skipped, 1 not run (pre-deploy, run 20260102-030405-k3x9)
      runbook --journal /srv/j.db resume 20260102-030405-k3x9  tries again; what is done stays done
    "#);
    let (mut report, out, _) = plain(Options { verbose: true, ..options() });
    failing_run(&mut report);
    let additional: Vec<String> =
        out.text().lines().filter(|line| line.starts_with("begins") || line.starts_with("expands")).map(Into::into).collect();
    insta::assert_snapshot!(additional.join("\n"), @"
    begins                No active session
    expands               Count rows → 2 instances
    begins                Count rows [racks]
    begins                No orphaned racks, no orphaned scans
    ");
}

#[test]
fn a_failing_run_on_a_terminal() {
    let mut watched = Watched::new(options());
    failing_run(&mut watched.report);
    insta::assert_snapshot!(watched.screen(), @r#"
    done           0.12s  Count rows [racks] → 1000
    WARNING        0.12s  Count rows [scans] → 2000
      a row does not satisfy `n == 0`
      expected  n == 0
      found     n = 2
      rows      what  | n
                ------+--
                racks | 2
                (1 of 2 rows)
      hint      delete the orphans with playbooks/fix-orphans.yaml
    done                  Count rows → 2 instances
      ┃ Maintenance
      ┃ Scanning stops at 22:00.
      ┃ Please log out.
    retrying              No orphaned racks, no orphaned scans → canceling statement
     due to lock timeout; attempt 2 in 1.50s
    FAILED         2.34s  No orphaned racks, no orphaned scans → racks 2, scans 0
      a row does not satisfy `n == 0`
      step      no_orphans
      where     pre-deploy.yaml:4:15
                4 |       expect: {each_row: "n == 0"}
      expected  n == 0
      found     n = 2
      rows      what  | n
                ------+--
                racks | 2
                (1 of 2 rows)
      state     this step changed nothing, or what it changed was rolled back
      hint      delete the orphans with playbooks/fix-orphans.yaml
      next      runbook show 20260102-030405-k3x9 no_orphans  its attempts and outpu
    t
                runbook resume 20260102-030405-k3x9  tries again from here; what is
    done stays done
    skipped               Deploy → it needs `no_orphans`, which was skipped

    failed after 0.00s: 2 done, 1 failed, 1 skipped, 1 not run
      1 finding:
        Count rows: more than last week
      runbook resume 20260102-030405-k3x9  tries again; what is done stays done
    "#);
}

#[test]
fn colours_only_where_wanted() {
    let mut watched = Watched::new(Options { color: true, ..options() });
    Story::new(&mut watched.report).done("sessions", "0 rows");
    insta::assert_snapshot!(watched.out.text().lines().last().unwrap_or_default().replace('\x1b', "ESC"), @"ESC[32mdone        ESC[0mESC[2m   0.12s  ESC[0mNo active sessionESC[2m → ESC[0m0 rows");
}

#[test]
fn what_runs_is_seen_below_the_report() {
    let mut watched = Watched::new(options());
    let millis = Arc::clone(&watched.millis);
    let out = watched.out.clone();
    let mut story = Story::new(&mut watched.report);
    story.starts("sessions").starts("ship").starts("no_orphans");
    story.observer.output("ship", "uploading");
    story.observer.progress("no_orphans", "17 of 40 tables", Some(0.425));
    millis.store(250, Ordering::Relaxed);
    story.observer.tick();
    assert!(!out.text().contains("running"), "too short to be worth showing");
    story.done("sessions", "0 rows");
    millis.store(61_500, Ordering::Relaxed);
    story.starts("go");
    millis.store(63_000, Ordering::Relaxed);
    story.observer.tick();
    insta::assert_snapshot!(screen(&out), @"
    pre-deploy  5 steps, run 20260102-030405-k3x9, environment production
      main: stock_audit on db1 (system 7300)

      ship │ uploading
    done           0.12s  No active session → 0 rows
    ⠁ SLOW        1m 03s  Deploy  uploading
    ⠉ SLOW        1m 03s  No orphaned racks, …  ========>            42% 17 of 40 ta
    ⠁ running      1.50s  go
    ");
    story.observer.suspend(true);
    story.observer.output("ship", "said while a question stands");
    assert!(!screen(&out).contains("SLOW"), "the live area made room");
    assert!(!screen(&out).contains("said while"));
    story.observer.notice("SIGINT: nothing new is started");
    assert!(screen(&out).contains("SIGINT"), "seen at once");
    story.observer.suspend(false);
    story.observer.tick();
    insta::assert_snapshot!(screen(&out), @"
    pre-deploy  5 steps, run 20260102-030405-k3x9, environment production
      main: stock_audit on db1 (system 7300)

      ship │ uploading
    done           0.12s  No active session → 0 rows

    runbook: SIGINT: nothing new is started
      ship │ said while a question stands
    ⠉ SLOW        1m 03s  Deploy  said while a question stands
    ⠚ SLOW        1m 03s  No orphaned racks, …  ========>            42% 17 of 40 ta
    ⠉ running      1.50s  go
    ");
    story.finishes("ship", Outcome::AlreadyDone { result: result("version 4.2 is live") });
    story.finishes("no_orphans", Outcome::Done { result: result("") });
    story.finishes("go", Outcome::Skipped { cause: SkipCause::Operator, reason: "not today".into(), by: Some("ada".into()) });
    story.then(EventKind::RunFinished { status: RunStatus::Done });
    story.observer.end(RUN, Some(Ending::Done));
    insta::assert_snapshot!(screen(&out), @"
    pre-deploy  5 steps, run 20260102-030405-k3x9, environment production
      main: stock_audit on db1 (system 7300)

      ship │ uploading
    done           0.12s  No active session → 0 rows

    runbook: SIGINT: nothing new is started
      ship │ said while a question stands
    already done   0.12s  Deploy → version 4.2 is live
    done           0.12s  No orphaned racks, no orphaned scans
    skipped               go → not today, says ada

    done after 1m 03s: 2 done, 1 already done, 1 skipped, 1 not run
      runbook show 20260102-030405-k3x9  every step, who confirmed what
    ");
}

#[test]
fn a_long_line_is_cut_on_a_terminal_and_whole_in_a_pipe() {
    let value = "a value that goes on ".repeat(6);
    let mut watched = Watched::new(options());
    Story::new(&mut watched.report).done("sessions", &value);
    let screen = watched.screen();
    assert!(screen.lines().last().unwrap_or_default().ends_with('…'), "{screen}");
    let (mut report, out, _) = plain(options());
    Story::new(&mut report).done("sessions", &value);
    assert!(out.text().contains(value.trim()));
}

#[test]
fn a_waiting_run_says_how_to_answer() {
    let (mut report, out, _) = plain(Options { asks: false, ..options() });
    let mut story = Story::new(&mut report);
    let prompt = |kind, approvers| {
        let facts = vec![("backup".to_owned(), "12 minutes old".to_owned())];
        Box::new(Prompt { message: "Deploy 4.2?\nSee the change ticket.".into(), facts, kind, timeout_seconds: None, approvers })
    };
    story.then(EventKind::GateWaiting { step: "go".into(), prompt: prompt(PromptKind::Confirm, 2) });
    let answer = Answer { accepted: true, text: None, by: "bob".into() };
    story.then(EventKind::GateAnswered { step: "go".into(), answer, host: "db1".into() });
    story.then(EventKind::GateWaiting { step: "ship".into(), prompt: prompt(PromptKind::Type("stock_audit".into()), 0) });
    let question = "What do you see on port 5432?".into();
    story.then(EventKind::GateWaiting { step: "sessions".into(), prompt: prompt(PromptKind::Observe { question }, 0) });
    story.pauses(Pause::Waiting, Ending::Waiting);
    insta::assert_snapshot!(out.text(), @"
    pre-deploy  5 steps, run 20260102-030405-k3x9, environment production
      main: stock_audit on db1 (system 7300)

    WAITING               go → Deploy 4.2?
    WAITING               Deploy → Deploy 4.2?
    WAITING               No active session → Deploy 4.2?

    WAITING               No active session
      question  Deploy 4.2?
                See the change ticket.
      report    What do you see on port 5432?
      backup    12 minutes old
      answer    runbook approve 20260102-030405-k3x9 sessions --text TEXT  TEXT being what you see
                runbook approve 20260102-030405-k3x9 sessions --decline  to say no
      next      runbook resume 20260102-030405-k3x9  goes on after the answer

    WAITING               Deploy
      question  Deploy 4.2?
                See the change ticket.
      backup    12 minutes old
      answer    runbook approve 20260102-030405-k3x9 ship --text TEXT  TEXT being exactly stock_audit
                runbook approve 20260102-030405-k3x9 ship --decline  to say no
      next      runbook resume 20260102-030405-k3x9  goes on after the answer

    WAITING               go
      question   Deploy 4.2?
                 See the change ticket.
      backup     12 minutes old
      approvals  1 of 2: so far bob
      answer     runbook approve 20260102-030405-k3x9 go
                 runbook approve 20260102-030405-k3x9 go --decline  to say no
      next       runbook resume 20260102-030405-k3x9  goes on after the answer

    waiting after 0.00s: 3 waiting, 2 not run
    ");
}

#[test]
fn an_unknown_end_says_how_to_settle_it() {
    let (mut report, out, _) = plain(options());
    let mut story = Story::new(&mut report);
    story.then(EventKind::StepStarted { step: "ship".into(), attempt: 1 });
    let error = StepError::new(ErrorKind::Process, "the process was killed").fact("signal", "SIGKILL").aftermath(Aftermath::Unknown);
    story.then(EventKind::StepLost { step: "ship".into(), attempt: 1, error: Box::new(error) });
    story.pauses(Pause::Unknown, Ending::Unknown);
    insta::assert_snapshot!(out.text(), @"
    pre-deploy  5 steps, run 20260102-030405-k3x9, environment production
      main: stock_audit on db1 (system 7300)

    UNKNOWN               Deploy → the process was killed
      signal    SIGKILL

    unknown after 0.00s: 1 unknown, 4 not run
      runbook show 20260102-030405-k3x9 ship
      runbook resume 20260102-030405-k3x9  asks what is true of it: look again, mark as done, run again, leave
    ");
}

#[test]
fn a_resumed_run_says_where_it_goes_on() {
    let (mut first, _, _) = plain(options());
    let mut story = Story::new(&mut first);
    story.done("sessions", "0 rows").then(EventKind::StepStarted { step: "ship".into(), attempt: 1 });
    let (plan, mut state) = (plan(), story.state.clone());
    let operator = Operator { user: "bob".into(), host: "db1".into(), pid: 43 };
    let resumed =
        Event { sequence: state.next_sequence, at: Timestamp::UNIX_EPOCH, kind: EventKind::RunResumed { operator, digest: None } };
    state.apply(&resumed).unwrap();
    let (mut report, out, _) = plain(options());
    report.begin(RUN, &plan, &state);
    let mut story = Story { plan, state, observer: &mut report };
    let reason = "the dashboard shows no deployment".into();
    story.then(EventKind::StepResolved { step: "ship".into(), resolution: Resolution::RunAgain, reason, by: Some("bob".into()) });
    story.pauses(Pause::Interrupted, Ending::Quit);
    insta::assert_snapshot!(out.text(), @"
    pre-deploy  5 steps, run 20260102-030405-k3x9, environment production
      main: stock_audit on db1 (system 7300)
      goes on: 1 of 5 steps settled, what is done stays done

    settled               Deploy → it is run again: the dashboard shows no deployment, says bob

    interrupted after 0.00s: 1 done, 4 not run
      runbook resume 20260102-030405-k3x9  goes on where it stopped
    ");
}

#[test]
fn programs_get_one_versioned_event_a_line() {
    let (out, urgent) = (Sink::default(), Sink::default());
    let mut report = Json::new(Box::new(out.clone()), Box::new(urgent.clone()));
    let mut story = Story::new(&mut report);
    story.done("sessions", "0 rows");
    story.observer.output("ship", "uploading");
    story.observer.progress("ship", "half", Some(0.5));
    story.observer.message("ship", None, "Hello");
    story.observer.notice("SIGINT: stopping");
    story.pauses(Pause::Interrupted, Ending::Quit);
    let lines: Vec<serde_json::Value> = out.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().all(|line| line["version"] == 1 && line["run"] == RUN && line["event"].is_string()));
    assert_eq!(lines[0]["header"]["playbook"], "pre-deploy");
    insta::assert_snapshot!(out.text().lines().skip(1).collect::<Vec<_>>().join("\n"), @r#"
    {"version":1,"run":"20260102-030405-k3x9","event":"started","step":"sessions","attempt":1}
    {"version":1,"run":"20260102-030405-k3x9","sequence":1,"at":"1970-01-01T00:00:00Z","event":"step_finished","step":"sessions","attempt":1,"outcome":{"status":"done","result":{"summary":"0 rows"}},"duration_ms":120}
    {"version":1,"run":"20260102-030405-k3x9","event":"output","step":"ship","line":"uploading"}
    {"version":1,"run":"20260102-030405-k3x9","event":"progress","step":"ship","text":"half","fraction":0.5}
    {"version":1,"run":"20260102-030405-k3x9","event":"message","step":"ship","title":null,"message":"Hello"}
    {"version":1,"run":"20260102-030405-k3x9","event":"notice","text":"SIGINT: stopping"}
    {"version":1,"run":"20260102-030405-k3x9","sequence":2,"at":"1970-01-01T00:00:00Z","event":"run_paused","reason":"interrupted"}
    {"version":1,"run":"20260102-030405-k3x9","event":"end","ending":"quit"}
    "#);
    assert_eq!(urgent.text(), "runbook: SIGINT: stopping\n");
}

#[test]
fn a_reader_that_goes_away_stops_nothing() {
    let mut reports: Vec<Box<dyn Observer>> = vec![
        Box::new(Plain::new(options(), Box::new(Gone), Box::new(Gone))),
        Box::new(Json::new(Box::new(Gone), Box::new(Gone))),
        Box::new(Terminal::new(options(), Screen::new(Box::new(Gone), Arc::new(|| (80, 40))))),
    ];
    for report in &mut reports {
        failing_run(report.as_mut());
        report.notice("bye");
        report.tick();
    }
}

#[test]
fn plain_lines_tell_from_time_to_time_how_far_a_long_step_is() {
    let (mut report, out, _) = plain(options());
    let millis = Arc::new(AtomicU64::new(0));
    let now = Arc::clone(&millis);
    report.clock = Stopwatch(Arc::new(move || Duration::from_millis(now.load(Ordering::Relaxed))));
    report.started("no_orphans", 1);
    for second in 0..=61_u64 {
        millis.store(second * 1000, Ordering::Relaxed);
        if second < 45 {
            report.progress("no_orphans", &format!("{} of 40 tables", second / 2), Some(second as f64 / 80.0));
        }
        report.tick();
        report.tick();
    }
    insta::assert_snapshot!(out.text(), @"
    running        10.0s  no_orphans → 12 %: 5 of 40 tables
    running        20.0s  no_orphans → 25 %: 10 of 40 tables
    running        30.0s  no_orphans → 37 %: 15 of 40 tables
    running        40.0s  no_orphans → 50 %: 20 of 40 tables
    running        50.0s  no_orphans → 55 %: 22 of 40 tables
    SLOW          1m 00s  no_orphans → still running
    ");
}
