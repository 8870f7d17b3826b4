//! What expressions refer to: is it declared, may it stand there, is it known by then.

use super::super::{ParameterType, Playbook, Step, Undo};
use super::declarations::ROOTS;
use super::graph::Graph;
use super::{Names, Part, Position, Written};
use crate::action::{Action, Inspection, Perform, Use};
use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::template::{Place, Setting, Template};

/// What is known of the run itself.
const RUN: [&str; 6] = ["id", "started_at", "playbook", "environment", "user", "host"];
/// What is known of a step that ended.
const RESULT: [&str; 15] = [
    "status",
    "value",
    "rows",
    "columns",
    "row_count",
    "rows_affected",
    "stdout",
    "stderr",
    "exit_code",
    "json",
    "http_status",
    "answer",
    "file",
    "outputs",
    "findings",
];

pub(super) fn check(playbook: &Playbook, names: &Names<'_>, graphs: &[Graph; 4], written: &Written<'_>, diagnostics: &mut Vec<Diagnostic>) {
    let mut checker = Checker { playbook, names, graphs, written, diagnostics, unconnected: false };
    checker.top();
    for part in Part::ALL {
        for (index, step) in part.steps(playbook).iter().enumerate() {
            checker.step(step, Position { part, index });
        }
    }
}

struct Checker<'a, 'd> {
    playbook: &'a Playbook,
    names: &'a Names<'a>,
    graphs: &'a [Graph; 4],
    written: &'a Written<'a>,
    diagnostics: &'d mut Vec<Diagnostic>,
    /// It was said that there is no connection at all.
    unconnected: bool,
}

/// Where an expression stands.
#[derive(Clone, Copy)]
enum Reader<'a> {
    /// At the top, where only these names are known, for this reason.
    Top {
        known: &'a [&'a str],
        reason: &'a str,
    },
    Step {
        step: &'a Step,
        position: Position,
    },
}

impl<'a> Checker<'a, '_> {
    fn top(&mut self) {
        let settings = &self.playbook.settings;
        for parameter in settings.params.values() {
            self.setting(parameter.default.as_ref(), &["env"], "a default is needed before anything else is known; it may read `env.NAME`");
        }
        if let Some(environment) = &settings.environment {
            self.template(environment, Place::Message, &["params"], "`environment` may read `params`");
        }
        for connection in settings.connections.values() {
            self.template(
                &connection.url,
                Place::Private,
                &["params", "secrets", "env"],
                "a connection may read `params`, `secrets` and `env`",
            );
            for expected in [&connection.expect.database, &connection.expect.user, &connection.expect.system_identifier] {
                self.setting(expected.as_ref(), &["params", "env"], "what is expected of a connection may read `params` and `env`");
            }
        }
        for channel in settings.channels.values() {
            let mut inspection = Inspection::default();
            channel.inspect(&mut inspection);
            let reader = Reader::Top { known: &["params", "secrets"], reason: "a channel may read `params` and `secrets`" };
            for used in &inspection.uses {
                self.used(used, reader);
            }
        }
    }

    fn setting<T>(&mut self, setting: Option<&'a Setting<T>>, known: &[&str], reason: &str) {
        if let Some(template) = setting.and_then(Setting::template) {
            self.template(template, Place::Decision, known, reason);
        }
    }

    fn template(&mut self, template: &'a Template, place: Place, known: &[&str], reason: &str) {
        for reference in template.references() {
            let used = Use { reference, span: template.text.span, place, local: Some(&[]) };
            self.used(&used, Reader::Top { known, reason });
        }
    }

    fn step(&mut self, step: &'a Step, position: Position) {
        let mut inspection = Inspection::default();
        step.inspect(&mut inspection);
        let mut after = Inspection::default();
        if let Some(Undo::Action(action)) = &step.settings.undo {
            action.inspect(&mut after);
        }
        let own = step.settings.id.value.as_str();
        for used in &inspection.uses {
            let path = &used.reference.path;
            // An undo runs after its step, and so may read its result.
            let is_own = path[0] == "steps" && path.get(1).is_some_and(|id| id == own);
            if !(is_own && after.uses.iter().any(|later| std::ptr::eq(later.reference, used.reference))) {
                self.used(used, Reader::Step { step, position });
            }
        }
        self.included(step);
        self.compared(step);
        self.connections(step, &inspection);
        self.channels(&inspection);
        self.diagnostics.append(&mut inspection.diagnostics);
    }

    /// The parameters of an included playbook shape the plan.
    fn included(&mut self, step: &'a Step) {
        let Action::Playbook(included) = &step.action.value else { return };
        let mut inspection = Inspection::default();
        included.inspect(&mut inspection);
        for used in inspection.uses.iter().filter(|used| matches!(used.reference.path[0].as_str(), "steps" | "run")) {
            let message = format!("`{}` is not known before the run", used.reference.path.join("."));
            let problem = Diagnostic::error("known-too-late", self.written.place(used.span, &used.reference.range), message)
                .help("the parameters of an included playbook decide what is planned; they may read `params` and `connections`");
            self.diagnostics.push(problem);
        }
    }

    /// A snapshot is compared with another one, of the same rows.
    fn compared(&mut self, step: &Step) {
        let Action::Snapshot(snapshot) = &step.action.value else { return };
        let Some(named) = snapshot.compared_with() else { return };
        let Some(Some(position)) = self.names.steps.get(named.value) else { return };
        let earlier = &position.part.steps(self.playbook)[position.index];
        let problem = match &earlier.action.value {
            _ if std::ptr::eq(earlier, step) => return,
            Action::Snapshot(_) if earlier.settings.for_each.is_some() => "has an instance per item, and so no snapshot of its own",
            Action::Snapshot(earlier) => {
                self.diagnostics.extend(snapshot.differs_from(earlier, named.value));
                return;
            }
            _ => "takes no snapshot",
        };
        let problem = Diagnostic::error("no-snapshot", named.span, format!("`{}` {problem}", named.value))
            .related(earlier.settings.id.span, format!("`{}` is here", named.value))
            .help("name a step with the action `snapshot`");
        self.diagnostics.push(problem);
    }

    fn connections(&mut self, step: &Step, inspection: &Inspection<'_>) {
        let known = &self.names.connections;
        if self.written.included && known.is_empty() {
            return;
        }
        for named in &inspection.connections {
            match named {
                Some(name) if !known.contains(&name.value.as_str()) => {
                    let problem = Diagnostic::error("unknown-connection", name.span, format!("no connection is called `{}`", name.value));
                    self.diagnostics.push(self.names.suggest(problem, name, "connection", known.iter().copied()));
                }
                None if known.is_empty() && !self.unconnected => {
                    self.unconnected = true;
                    let problem = Diagnostic::error(
                        "unknown-connection",
                        step.action.span,
                        "a database is needed here, but no connection is declared",
                    );
                    self.diagnostics.push(problem.help("declare one: `connections: {main: {url: \"{{ env.DATABASE_URL }}\"}}`"));
                }
                None if known.len() > 1 && !known.contains(&"main") => {
                    let problem = Diagnostic::error("unknown-connection", step.action.span, "it is not said on which connection");
                    self.diagnostics.push(problem.help(format!("add `connection:` ({}), or call one `main`", known.join(", "))));
                }
                _ => {}
            }
        }
    }

    fn channels(&mut self, inspection: &Inspection<'_>) {
        let known = &self.names.channels;
        for name in &inspection.channels {
            if name.value != "console" && !known.contains(&name.value.as_str()) && !self.written.included {
                let problem = Diagnostic::error("unknown-channel", name.span, format!("no channel is called `{}`", name.value));
                self.diagnostics
                    .push(self.names.suggest(problem, name, "channel", known.iter().copied()).help("`console` is always there"));
            }
        }
    }

    fn used(&mut self, used: &Use<'_>, reader: Reader<'_>) {
        let problems = [self.problem(used, reader), self.result_field(used)];
        for problem in problems.into_iter().flatten() {
            let span = self.written.place(used.span, &used.reference.range);
            self.diagnostics.push(Diagnostic { span, ..problem });
        }
    }

    fn problem(&self, used: &Use<'_>, reader: Reader<'_>) -> Option<Diagnostic> {
        let path = &used.reference.path;
        let root = path[0].as_str();
        let is_local = used.local.is_none_or(|names| names.contains(&root));
        if is_local && !(path.len() > 1 && ROOTS.contains(&root)) {
            return None;
        }
        if let Reader::Step { step, .. } = reader
            && step.settings.for_each.is_some()
            && (root == "index" || root == step.settings.item_name.as_ref().map_or("item", |name| name.value.as_str()))
        {
            return None;
        }
        if !ROOTS.contains(&root) {
            return Some(self.unknown_name(used, reader));
        }
        if let Reader::Top { known, reason } = reader
            && !known.contains(&root)
        {
            let message = format!("`{}` can't be read here", used.reference.path.join("."));
            return Some(Diagnostic::error("not-known-here", used.span, message).help(reason));
        }
        match root {
            "params" => self.declared(used, "parameter", &self.names.params).or_else(|| enum_value(self.playbook, used)),
            "secrets" => exposed(used).or_else(|| self.declared(used, "secret", &self.names.secrets)),
            "connections" if self.written.included && self.names.connections.is_empty() => None,
            "connections" => self.declared(used, "connection", &self.names.connections),
            "run" => field(used, 1, "the run", &RUN),
            "steps" => self.result(used, reader),
            _ if matches!(reader, Reader::Step { .. }) => Some(
                Diagnostic::error("env-here", used.span, "the environment can't be read here")
                    .help("every input is declared at the top: a param with `default: \"{{ env.NAME }}\"`, or a secret with `env: NAME`"),
            ),
            _ => None,
        }
    }

    fn unknown_name(&self, used: &Use<'_>, reader: Reader<'_>) -> Diagnostic {
        let name = used.reference.path[0].as_str();
        let problem = Diagnostic::error("unknown-name", used.span, format!("`{name}` is not known here"));
        if self.names.params.contains(&name) {
            return problem.help(format!("a parameter is read as `params.{name}`"));
        }
        if self.names.secrets.contains(&name) {
            return problem.help(format!("a secret is read as `secrets.{name}`"));
        }
        if let Some(known) = self.names.steps.get(name) {
            let step = known.map(|known| &known.part.steps(self.playbook)[known.index].action.value);
            if matches!(step, Some(Action::Playbook(_))) {
                return problem.help(format!("the results of an included playbook's steps are read as `steps.{name}.STEP.value`"));
            }
            return problem.help(format!("a step's result is read as `steps.{name}.value`"));
        }
        if name == "item" || name == "index" {
            return problem.help("it is known in a step with `for_each`");
        }
        let mut known: Vec<&str> = ROOTS.into_iter().filter(|root| *root != "env").collect();
        if let Reader::Top { known: here, .. } = reader {
            known = here.to_vec();
        }
        known.extend(used.local.into_iter().flatten());
        let problem = match did_you_mean(name, known.iter().copied()) {
            Some(similar) => problem.help(format!("did you mean `{similar}`?")),
            None => problem,
        };
        problem.help(format!("known: {}; text stands in quotes", known.join(", ")))
    }

    fn declared(&self, used: &Use<'_>, what: &str, known: &[&str]) -> Option<Diagnostic> {
        let name = used.reference.path.get(1)?;
        if known.contains(&name.as_str()) {
            return None;
        }
        let problem = Diagnostic::error("undeclared", used.span, format!("no {what} is called `{name}`"));
        Some(self.names.suggest(problem, name, what, known.iter().copied()))
    }

    fn result(&self, used: &Use<'_>, reader: Reader<'_>) -> Option<Diagnostic> {
        let Reader::Step { step, position } = reader else { return None };
        let id = used.reference.path.get(1)?.as_str();
        let Some(known) = self.names.steps.get(id) else { return Some(self.unknown_step(used, id)) };
        let target = (*known)?;
        self.too_early(used, step, position, &target.part.steps(self.playbook)[target.index], target)
    }

    /// A part of a step's result that there never is.
    fn result_field(&self, used: &Use<'_>) -> Option<Diagnostic> {
        let path = &used.reference.path;
        if path[0] != "steps" {
            return None;
        }
        let target = self.names.steps.get(path.get(1)?.as_str()).copied().flatten()?;
        let read = &target.part.steps(self.playbook)[target.index];
        // What may be read of an included playbook is checked once that is read.
        if matches!(read.action.value, Action::Playbook(_)) { None } else { part_of_result(self.names, used, 2, read) }
    }

    fn unknown_step(&self, used: &Use<'_>, id: &str) -> Diagnostic {
        let problem = Diagnostic::error("unknown-step", used.span, format!("no step has the id `{id}`"));
        // `steps.pre-check.value` is a subtraction.
        let longer = |known: &&str| known.strip_prefix(id).is_some_and(|rest| rest.starts_with('-'));
        if let Some((including, inner)) = id.split_once('/')
            && self.names.steps.contains_key(including)
        {
            return problem.help(format!("a step of an included playbook is read as `steps.{including}.{}`", inner.replace('/', ".")));
        }
        match self.names.steps.keys().copied().filter(longer).min() {
            Some(meant) => problem.help(format!("an id with `-` is read as `steps['{meant}'].value`")),
            None => self.names.suggest(problem, id, "step", self.names.steps.keys().copied()),
        }
    }

    /// Whether a result may not be there yet when it is read.
    fn too_early(&self, used: &Use<'_>, step: &Step, position: Position, read: &Step, target: Position) -> Option<Diagnostic> {
        let (own, other) = (&step.settings.id, &read.settings.id);
        let problem = |message: String| {
            Some(Diagnostic::error("not-upstream", used.span, message).related(other.span, format!("`{}` is here", other.value)))
        };
        match (position.part, target.part) {
            (here, there) if here == there => {
                if position.index == target.index {
                    let problem = Diagnostic::error(
                        "not-upstream",
                        used.span,
                        format!("`{}` reads its own result, which is not there yet", own.value),
                    );
                    return Some(problem.help("`outputs` and `expect` name parts of the result directly, such as `value`"));
                }
                if !self.written.complete || self.graphs[here as usize].waits_for(position.index, target.index) {
                    return None;
                }
                problem(format!("`{}` does not wait for `{}`, so its result may not be there", own.value, other.value))
                    .map(|problem| problem.help(format!("add `{}` to the `needs` of `{}`", other.value, own.value)))
            }
            (_, Part::Steps) | (Part::Always, Part::OnFailure | Part::OnSuccess) => None,
            (_, there) => problem(format!("`{}` belongs to `{}`, which has not run by then", other.value, there.key())),
        }
    }
}

/// What stands at `depth` of the path and is no part of the step's result.
pub(super) fn part_of_result(names: &Names<'_>, used: &Use<'_>, depth: usize, read: &Step) -> Option<Diagnostic> {
    let (path, settings) = (&used.reference.path, &read.settings);
    if settings.for_each.is_some() {
        return None;
    }
    let (Some("outputs"), Some(name)) = (path.get(depth).map(String::as_str), path.get(depth + 1)) else {
        return field(used, depth, &format!("`{}`", settings.id.value), &RESULT);
    };
    if settings.outputs.contains_key(name.as_str()) {
        return None;
    }
    let problem = Diagnostic::error("undeclared", used.span, format!("`{}` has no output `{name}`", settings.id.value));
    Some(names.suggest(problem, name, "output", settings.outputs.keys().map(|name| name.value.as_str())))
}

fn exposed(used: &Use<'_>) -> Option<Diagnostic> {
    let name = used.reference.path.get(1).map_or_else(|| "all secrets".to_owned(), |name| format!("the secret `{name}`"));
    let problem = |message: String| Some(Diagnostic::error("secret-exposed", used.span, message));
    match used.place {
        Place::Argument => problem(format!("{name} would be visible to every user of the machine, in the list of processes"))
            .map(|problem| problem.help("pass it as a variable: `env: {TOKEN: \"{{ secrets.NAME }}\"}`")),
        Place::Message => problem(format!("{name} would be shown to people")).map(|problem| problem.help("leave it out of the text")),
        Place::Decision | Place::Bind | Place::Private => None,
    }
}

/// A comparison with a value an enum never has is never true; here only its shape is known.
fn enum_value(playbook: &Playbook, used: &Use<'_>) -> Option<Diagnostic> {
    let parameter = playbook.settings.params.get(used.reference.path.get(1)?.as_str())?;
    let deeper = used.reference.path.get(2)?;
    (parameter.kind != ParameterType::List && !matches!(used.place, Place::Message))
        .then(|| Diagnostic::error("undeclared", used.span, format!("a parameter has one value; `{deeper}` is no part of it")))
}

fn field(used: &Use<'_>, depth: usize, whose: &str, known: &[&str]) -> Option<Diagnostic> {
    let name = used.reference.path.get(depth)?;
    if known.contains(&name.as_str()) {
        return None;
    }
    let problem = Diagnostic::error("unknown-field", used.span, format!("`{name}` is nothing that is known of {whose}"));
    let problem = match did_you_mean(name, known.iter().copied()) {
        Some(similar) => problem.help(format!("did you mean `{similar}`?")),
        None => problem,
    };
    Some(problem.help(format!("known: {}", known.join(", "))))
}
