//! The report for programs: one JSON object a line.
//!
//! Every line has `version` and `event`. Events of the journal keep their own form
//! (`sequence`, `at`, `event` and their fields); besides them there are `begin`, `output`,
//! `progress`, `message`, `notice` and `end`, which are not journaled.

use std::io::Write;

use serde_json::{Map, Value, json};

use crate::engine::{Ending, Observer};
use crate::journal::{Event, RunState};
use crate::plan::Plan;
use crate::text::{Line, Style, draw};

/// Version of the lines' form; a field that is added does not change it.
const VERSION: u32 = 1;

/// One JSON event a line.
pub struct Json {
    run: String,
    out: Box<dyn Write + Send>,
    urgent: Box<dyn Write + Send>,
}

impl Json {
    /// Events go to `out`; notices also, as text, to `urgent`.
    pub fn new(out: Box<dyn Write + Send>, urgent: Box<dyn Write + Send>) -> Self {
        Self { run: String::new(), out, urgent }
    }

    fn say(&mut self, fields: Value) {
        let mut line = Map::new();
        line.insert("version".into(), VERSION.into());
        line.insert("run".into(), self.run.as_str().into());
        if let Value::Object(fields) = fields {
            line.extend(fields);
        }
        let _ = self.out.write_all((Value::Object(line).to_string() + "\n").as_bytes());
        let _ = self.out.flush();
    }
}

impl Observer for Json {
    fn begin(&mut self, run: &str, _plan: &Plan, state: &RunState) {
        run.clone_into(&mut self.run);
        let header = serde_json::to_value(&state.header).unwrap_or_default();
        self.say(json!({ "event": "begin", "resumed": state.next_sequence > 1, "started_at": state.started_at, "header": header }));
    }

    fn started(&mut self, step: &str, attempt: u32) {
        self.say(json!({ "event": "started", "step": step, "attempt": attempt }));
    }

    fn event(&mut self, _plan: &Plan, _state: &RunState, event: &Event) {
        self.say(serde_json::to_value(event).unwrap_or_default());
    }

    fn output(&mut self, step: &str, line: &str) {
        self.say(json!({ "event": "output", "step": step, "line": line }));
    }

    fn progress(&mut self, step: &str, text: &str, fraction: Option<f64>) {
        self.say(json!({ "event": "progress", "step": step, "text": text, "fraction": fraction }));
    }

    fn message(&mut self, step: &str, title: Option<&str>, message: &str) {
        self.say(json!({ "event": "message", "step": step, "title": title, "message": message }));
    }

    fn notice(&mut self, text: &str) {
        self.say(json!({ "event": "notice", "text": text }));
        let _ = self.urgent.write_all(draw(&[Line::plain(format!("runbook: {text}"))], Style::PLAIN).as_bytes());
        let _ = self.urgent.flush();
    }

    fn suspend(&mut self, _suspended: bool) {}

    fn end(&mut self, _run: &str, ending: Option<Ending>) {
        let ending = match ending {
            Some(Ending::Done) => "done",
            Some(Ending::Failed) => "failed",
            Some(Ending::Unknown) => "unknown",
            Some(Ending::Waiting) => "waiting",
            Some(Ending::Interrupted(_)) => "interrupted",
            Some(Ending::Quit) => "quit",
            None => "engine_error",
        };
        self.say(json!({ "event": "end", "ending": ending }));
    }

    fn tick(&mut self) {}
}
