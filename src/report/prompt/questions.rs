//! What is asked, which answers there are, and what each does.

use super::login_name;
use super::reading::Keyboard;
use crate::action::{Answer, Prompt, PromptKind};
use crate::engine::{Question, Reply, StepDecision, UnknownDecision};
use crate::outcome::StepError;
use crate::text::{Field, Ink, Line, Style, draw, fields, paragraph};

/// Where lines go and answers come from.
pub(super) trait Lines {
    /// Shows text.
    fn show(&mut self, text: &str);
    /// Asks for a line; none when nobody will answer any more.
    fn line(&mut self, prompt: &str) -> Option<String>;
}

impl Lines for Keyboard<'_> {
    fn show(&mut self, text: &str) {
        Keyboard::show(self, text);
    }

    fn line(&mut self, prompt: &str) -> Option<String> {
        Keyboard::line(self, prompt)
    }
}

/// One question and its answer.
pub(super) struct Dialogue<'a> {
    lines: &'a mut dyn Lines,
    style: Style,
}

/// A key, its word, and what it does.
type Choice = (&'static str, &'static str, &'static str);

impl<'a> Dialogue<'a> {
    pub(super) fn new(lines: &'a mut dyn Lines, style: Style) -> Self {
        Self { lines, style }
    }

    pub(super) fn ask(&mut self, question: &Question) -> Option<Reply> {
        match question {
            Question::Gate { title, prompt, .. } => self.gate(title, prompt).map(Reply::Gate),
            Question::Unknown { step, description, error, can_recheck } => {
                self.unknown(step, description, error.as_deref(), *can_recheck).map(Reply::Unknown)
            }
            Question::Step { description, changes, .. } => self.step(description, *changes).map(Reply::Step),
            Question::Backend { step, description } => self.backend(step, description).map(Reply::Backend),
        }
    }

    fn gate(&mut self, title: &str, prompt: &Prompt) -> Option<Answer> {
        self.heading(title, prompt.message.as_str());
        let mut parts: Vec<Field> = prompt.facts.iter().map(|(label, text)| Field::text(label, text, self.style)).collect();
        if let Some(seconds) = prompt.timeout_seconds {
            let limit = humantime::format_duration(std::time::Duration::from_secs(seconds));
            parts.push(Field::text("time", &format!("without an answer within {limit} it counts as no"), self.style));
        }
        if prompt.approvers > 1 {
            parts.push(Field::text(
                "approvals",
                &format!("{} different people must agree; you answer as {}", prompt.approvers, login_name()),
                self.style,
            ));
        }
        self.say(&fields(&parts));
        match &prompt.kind {
            PromptKind::Confirm => self.confirm(),
            PromptKind::Type(expected) => self.typed(expected),
            PromptKind::Observe { question } => self.observed(question),
        }
    }

    fn confirm(&mut self) -> Option<Answer> {
        self.choices(&[("y", "yes", "goes on"), ("n", "no", "stops here; the step counts as failed")]);
        loop {
            match self.lines.line("  Go on? [y/n] ")?.to_lowercase().as_str() {
                "y" | "yes" => return Some(answer(true, None)),
                "n" | "no" => return Some(answer(false, None)),
                "" => self.again("Enter alone is no answer; type y or n"),
                other => self.again(&format!("`{other}` is no answer; type y or n")),
            }
        }
    }

    fn typed(&mut self, expected: &str) -> Option<Answer> {
        let mut line = Line::plain("  To go on, type ").then(Ink::Strong, expected);
        line.push(Ink::Plain, "  (no: stops here; the step counts as failed)");
        self.say(&[line]);
        loop {
            let text = self.lines.line("  > ")?;
            match text.as_str() {
                text if text == expected => return Some(answer(true, Some(text.to_owned()))),
                "" => self.again("Enter alone is no answer"),
                "n" | "no" => return Some(answer(false, None)),
                _ => self.again(&format!("that is not it; type exactly {expected}, or no")),
            }
        }
    }

    fn observed(&mut self, question: &str) -> Option<Answer> {
        let mut lines: Vec<Line> = paragraph(Ink::Strong, question, self.style, 2).into_iter().map(|line| line.indented(2)).collect();
        lines.push(Line::new().then(Ink::Dim, "  Type what you see; it is recorded with your name."));
        self.say(&lines);
        loop {
            match self.lines.line("  > ")? {
                text if text.is_empty() => self.again("an answer is needed: what do you see?"),
                text => return Some(answer(true, Some(text))),
            }
        }
    }

    fn step(&mut self, description: &[String], changes: bool) -> Option<StepDecision> {
        self.description(description);
        let run = if changes { "runs it; Enter alone does not" } else { "runs it; so does Enter: it only looks" };
        let choices: &[Choice] = &[
            ("r", "run", run),
            ("s", "skip", "leaves it out, with a reason"),
            ("h", "show", "shows again what it does"),
            ("q", "quit", "stops here; resume goes on"),
        ];
        self.choices(choices);
        loop {
            match self.lines.line("  Run it? [r/s/h/q] ")?.to_lowercase().as_str() {
                "r" | "run" => return Some(StepDecision::Run),
                "" if !changes => return Some(StepDecision::Run),
                "" => self.again("this step changes something: type r to run it"),
                "s" | "skip" => match self.reason("Why is it left out?")? {
                    Some(reason) => return Some(StepDecision::Skip(reason)),
                    None => self.choices(choices),
                },
                "h" | "show" => {
                    self.description(description);
                    self.choices(choices);
                }
                "q" | "quit" => return Some(StepDecision::Quit),
                other => self.again(&format!("`{other}` is no answer; type r, s, h or q")),
            }
        }
    }

    fn unknown(&mut self, step: &str, description: &[String], error: Option<&StepError>, can_recheck: bool) -> Option<UnknownDecision> {
        if description.is_empty() {
            self.heading(step, "");
        }
        self.description(description);
        self.say(&[Line::plain("  It was interrupted in the middle; whether its effect is in place is not known.")]);
        if let Some(error) = error {
            let mut parts = vec![Field::text("known", &error.message, self.style)];
            parts.extend(error.facts.iter().map(|(label, text)| Field::text(label, text, self.style)));
            parts.extend(error.hints.iter().map(|hint| Field::text("hint", hint, self.style)));
            self.say(&fields(&parts));
        }
        let mut choices: Vec<Choice> = Vec::new();
        if can_recheck {
            choices.push(("c", "check", "looks again whether its effect is in place (done_when)"));
        }
        choices.push(("d", "done", "its effect is in place: counts as done, with a reason"));
        choices.push(("r", "run", "its effect is not in place: runs it again, with a reason"));
        choices.push(("l", "leave", "leaves it unknown and stops"));
        self.choices(&choices);
        let keys = if can_recheck { "c/d/r/l" } else { "d/r/l" };
        loop {
            match self.lines.line(&format!("  What is true? [{keys}] "))?.to_lowercase().as_str() {
                "c" | "check" if can_recheck => return Some(UnknownDecision::Recheck),
                "d" | "done" => match self.reason("How do you know that its effect is in place?")? {
                    Some(reason) => return Some(UnknownDecision::Done(reason)),
                    None => self.choices(&choices),
                },
                "r" | "run" => match self.reason("How do you know that it may run again?")? {
                    Some(reason) => return Some(UnknownDecision::RunAgain(reason)),
                    None => self.choices(&choices),
                },
                "l" | "leave" => return Some(UnknownDecision::Leave),
                "" => self.again(&format!("Enter alone is no answer; type {}", keys.replace('/', ", "))),
                other => self.again(&format!("`{other}` is no answer; type {}", keys.replace('/', ", "))),
            }
        }
    }

    fn backend(&mut self, step: &str, description: &str) -> Option<bool> {
        self.heading(step, description);
        self.choices(&[
            ("w", "wait", "waits until it has ended on its own"),
            ("t", "terminate", "ends it on the server; what it has not committed is rolled back"),
        ]);
        loop {
            match self.lines.line("  Wait for it? [w/t] ")?.to_lowercase().as_str() {
                "w" | "wait" => return Some(false),
                "t" | "terminate" => return Some(true),
                "" => self.again("Enter alone is no answer; type w or t"),
                other => self.again(&format!("`{other}` is no answer; type w or t")),
            }
        }
    }

    /// The words a decision is recorded with; Enter alone goes back.
    fn reason(&mut self, question: &str) -> Option<Option<String>> {
        self.say(&[Line::plain(format!("  {question}")).then(Ink::Dim, " It is recorded with your name; Enter alone goes back.")]);
        self.lines.line("  > ").map(|reason| (!reason.is_empty()).then_some(reason))
    }

    fn heading(&mut self, step: &str, text: &str) {
        let mut lines = vec![Line::new(), Line::new().then(Ink::Warn, "? ").then(Ink::Strong, step)];
        lines.extend(paragraph(Ink::Plain, text, self.style, 2).into_iter().map(|line| line.indented(2)));
        self.say(&lines);
    }

    fn description(&mut self, description: &[String]) {
        let Some((first, rest)) = description.split_first() else { return };
        let mut lines = vec![Line::new(), Line::new().then(Ink::Warn, "? ").then(Ink::Strong, first)];
        lines.extend(rest.iter().flat_map(|text| text.lines()).map(|line| Line::plain(line).indented(4)));
        self.say(&lines);
    }

    fn choices(&mut self, choices: &[Choice]) {
        let lines: Vec<Line> = choices
            .iter()
            .map(|(key, word, effect)| {
                let word = if *key == *word { String::new() } else { (*word).to_owned() };
                Line::plain("  ").then(Ink::Accent, *key).then(Ink::Plain, format!("  {word:<11}")).then(Ink::Dim, *effect)
            })
            .collect();
        self.say(&lines);
    }

    fn again(&mut self, text: &str) {
        self.say(&[Line::new().then(Ink::Warn, format!("  {text}"))]);
    }

    fn say(&mut self, lines: &[Line]) {
        let text = draw(lines, self.style);
        self.lines.show(&text);
    }
}

fn answer(accepted: bool, text: Option<String>) -> Answer {
    Answer { accepted, text, by: login_name() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers from a script; remembers everything as it would stand on the screen.
    struct Script<'a> {
        answers: std::slice::Iter<'a, &'static str>,
        screen: String,
    }

    impl Lines for Script<'_> {
        fn show(&mut self, text: &str) {
            self.screen.push_str(text);
        }

        fn line(&mut self, prompt: &str) -> Option<String> {
            self.screen.push_str(prompt);
            let answer = self.answers.next()?;
            self.screen.push_str(&format!("{answer}\n"));
            Some((*answer).to_owned())
        }
    }

    fn ask(question: &Question, answers: &[&'static str]) -> (Option<Reply>, String) {
        let mut script = Script { answers: answers.iter(), screen: String::new() };
        let reply = Dialogue::new(&mut script, Style { color: false, width: Some(80) }).ask(question);
        (reply, script.screen.replace(&login_name(), "[ME]"))
    }

    fn gate(kind: PromptKind) -> Question {
        let facts = vec![("sessions".to_owned(), "0 active".to_owned()), ("backup".to_owned(), "12 minutes old, restored once".to_owned())];
        let prompt = Prompt { message: "Deploy 4.2 to production?".into(), facts, kind, timeout_seconds: Some(900), approvers: 2 };
        Question::Gate { step: "go".into(), title: "Go or no-go".into(), prompt }
    }

    fn given(accepted: bool, text: Option<&str>) -> Option<Reply> {
        Some(Reply::Gate(Answer { accepted, text: text.map(ToOwned::to_owned), by: login_name() }))
    }

    #[test]
    fn a_confirmation_needs_a_word() {
        let (reply, screen) = ask(&gate(PromptKind::Confirm), &["", "maybe", "Y"]);
        assert_eq!(reply, given(true, None));
        insta::assert_snapshot!(screen, @"
        ? Go or no-go
          Deploy 4.2 to production?
          sessions   0 active
          backup     12 minutes old, restored once
          time       without an answer within 15m it counts as no
          approvals  2 different people must agree; you answer as [ME]
          y  yes        goes on
          n  no         stops here; the step counts as failed
          Go on? [y/n] 
          Enter alone is no answer; type y or n
          Go on? [y/n] maybe
          `maybe` is no answer; type y or n
          Go on? [y/n] Y
        ");
        assert_eq!(ask(&gate(PromptKind::Confirm), &["no"]).0, given(false, None));
        assert_eq!(ask(&gate(PromptKind::Confirm), &[""]).0, None, "the terminal went away");
    }

    #[test]
    fn text_to_type_must_be_typed_exactly() {
        let question = gate(PromptKind::Type("stock_audit".into()));
        let (reply, screen) = ask(&question, &["y", "", "Stock_Audit", "stock_audit"]);
        assert_eq!(reply, given(true, Some("stock_audit")));
        insta::assert_snapshot!(screen, @"
        ? Go or no-go
          Deploy 4.2 to production?
          sessions   0 active
          backup     12 minutes old, restored once
          time       without an answer within 15m it counts as no
          approvals  2 different people must agree; you answer as [ME]
          To go on, type stock_audit  (no: stops here; the step counts as failed)
          > y
          that is not it; type exactly stock_audit, or no
          > 
          Enter alone is no answer
          > Stock_Audit
          that is not it; type exactly stock_audit, or no
          > stock_audit
        ");
        assert_eq!(ask(&question, &["no"]).0, given(false, None));
        assert_eq!(ask(&gate(PromptKind::Type("no".into())), &["no"]).0, given(true, Some("no")), "what is to be typed comes first");
    }

    #[test]
    fn an_observation_is_never_empty() {
        let (reply, screen) = ask(&gate(PromptKind::Observe { question: "What do you see on port 5432?".into() }), &["", "refused"]);
        assert_eq!(reply, given(true, Some("refused")));
        insta::assert_snapshot!(screen, @"
        ? Go or no-go
          Deploy 4.2 to production?
          sessions   0 active
          backup     12 minutes old, restored once
          time       without an answer within 15m it counts as no
          approvals  2 different people must agree; you answer as [ME]
          What do you see on port 5432?
          Type what you see; it is recorded with your name.
          > 
          an answer is needed: what do you see?
          > refused
        ");
    }

    #[test]
    fn enter_alone_runs_a_step_only_if_it_only_looks() {
        let description = vec!["purge: Remove old scans [change]".to_owned(), "DELETE FROM scans\n WHERE old".into(), "undo: none".into()];
        let question = |changes| Question::Step { step: "purge".into(), description: description.clone(), changes };
        let (reply, screen) = ask(&question(true), &["", "h", "x", "s", "", "s", "not today"]);
        assert_eq!(reply, Some(Reply::Step(StepDecision::Skip("not today".into()))));
        insta::assert_snapshot!(screen, @"
        ? purge: Remove old scans [change]
            DELETE FROM scans
             WHERE old
            undo: none
          r  run        runs it; Enter alone does not
          s  skip       leaves it out, with a reason
          h  show       shows again what it does
          q  quit       stops here; resume goes on
          Run it? [r/s/h/q] 
          this step changes something: type r to run it
          Run it? [r/s/h/q] h

        ? purge: Remove old scans [change]
            DELETE FROM scans
             WHERE old
            undo: none
          r  run        runs it; Enter alone does not
          s  skip       leaves it out, with a reason
          h  show       shows again what it does
          q  quit       stops here; resume goes on
          Run it? [r/s/h/q] x
          `x` is no answer; type r, s, h or q
          Run it? [r/s/h/q] s
          Why is it left out? It is recorded with your name; Enter alone goes back.
          > 
          r  run        runs it; Enter alone does not
          s  skip       leaves it out, with a reason
          h  show       shows again what it does
          q  quit       stops here; resume goes on
          Run it? [r/s/h/q] s
          Why is it left out? It is recorded with your name; Enter alone goes back.
          > not today
        ");
        assert_eq!(ask(&question(false), &[""]).0, Some(Reply::Step(StepDecision::Run)));
        assert_eq!(ask(&question(true), &["r"]).0, Some(Reply::Step(StepDecision::Run)));
        assert_eq!(ask(&question(true), &["", "q"]).0, Some(Reply::Step(StepDecision::Quit)));
    }

    #[test]
    fn an_unknown_end_is_settled_with_a_reason() {
        use crate::outcome::{Aftermath, ErrorKind};
        let error = StepError::new(ErrorKind::Process, "the process was killed").fact("signal", "SIGKILL").aftermath(Aftermath::Unknown);
        let question = |can_recheck| Question::Unknown {
            step: "ship".into(),
            description: vec!["ship: Deploy [not previewable]".into(), "vercel deploy --prod".into()],
            error: Some(Box::new(error.clone())),
            can_recheck,
        };
        let (reply, screen) = ask(&question(true), &["", "d", "", "r", "the dashboard shows no deployment"]);
        assert_eq!(reply, Some(Reply::Unknown(UnknownDecision::RunAgain("the dashboard shows no deployment".into()))));
        insta::assert_snapshot!(screen, @"
        ? ship: Deploy [not previewable]
            vercel deploy --prod
          It was interrupted in the middle; whether its effect is in place is not known.
          known     the process was killed
          signal    SIGKILL
          c  check      looks again whether its effect is in place (done_when)
          d  done       its effect is in place: counts as done, with a reason
          r  run        its effect is not in place: runs it again, with a reason
          l  leave      leaves it unknown and stops
          What is true? [c/d/r/l] 
          Enter alone is no answer; type c, d, r, l
          What is true? [c/d/r/l] d
          How do you know that its effect is in place? It is recorded with your name; Enter alone goes back.
          > 
          c  check      looks again whether its effect is in place (done_when)
          d  done       its effect is in place: counts as done, with a reason
          r  run        its effect is not in place: runs it again, with a reason
          l  leave      leaves it unknown and stops
          What is true? [c/d/r/l] r
          How do you know that it may run again? It is recorded with your name; Enter alone goes back.
          > the dashboard shows no deployment
        ");
        assert_eq!(ask(&question(true), &["c"]).0, Some(Reply::Unknown(UnknownDecision::Recheck)));
        assert_eq!(ask(&question(false), &["c", "l"]).0, Some(Reply::Unknown(UnknownDecision::Leave)), "nothing to check");
    }

    #[test]
    fn an_earlier_backend_is_ended_only_on_request() {
        let question =
            Question::Backend { step: "purge".into(), description: "pid 4711 still works on it, active for 12s: DELETE FROM scans".into() };
        let (reply, screen) = ask(&question, &["", "t"]);
        assert_eq!(reply, Some(Reply::Backend(true)));
        insta::assert_snapshot!(screen, @"
        ? purge
          pid 4711 still works on it, active for 12s: DELETE FROM scans
          w  wait       waits until it has ended on its own
          t  terminate  ends it on the server; what it has not committed is rolled back
          Wait for it? [w/t] 
          Enter alone is no answer; type w or t
          Wait for it? [w/t] t
        ");
        assert_eq!(ask(&question, &["w"]).0, Some(Reply::Backend(false)));
    }
}
