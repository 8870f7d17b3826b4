//! The plan for people: every step in the order it can run, what exactly it would do,
//! how it is taken back. Steps that may run side by side are bracketed.

use std::io::{self, Write};

use crate::action::check::Check;
use crate::action::{Class, Perform};
use crate::journal::Phase;
use crate::plan::{Plan, PlannedStep, Previews};
use crate::playbook::{StepSeverity, Undo};
use crate::secret::Redactor;
use crate::template::{Setting, Values};
use crate::text::{Field, Ink, Line, Style, draw, fields, paragraph};

/// The widest class.
const CLASS: usize = 15;

/// Writes the whole plan, with what the databases say of it where they were asked.
pub fn terminal(plan: &Plan, previews: &Previews, style: Style, out: &mut dyn Write) -> io::Result<()> {
    let drawing = Drawing { plan, previews, style };
    out.write_all(draw(&drawing.header(), style).as_bytes())?;
    let levels = levels(plan);
    for phase in [Phase::Steps, Phase::OnFailure, Phase::OnSuccess, Phase::Always] {
        let mut order: Vec<usize> = (0..plan.steps.len()).filter(|step| plan.steps[*step].phase == phase).collect();
        order.sort_by_key(|step| (levels[*step], *step));
        if let Some(heading) = phase_heading(phase).filter(|_| !order.is_empty()) {
            out.write_all(draw(&[Line::new(), Line::new().then(Ink::Strong, heading)], style).as_bytes())?;
        }
        for (position, step) in order.iter().enumerate() {
            let level = levels[*step];
            let first = position == 0 || levels[order[position - 1]] != level;
            let last = order.get(position + 1).is_none_or(|next| levels[*next] != level);
            out.write_all(draw(&drawing.step(*step, level, first, last), style).as_bytes())?;
        }
    }
    Ok(())
}

fn phase_heading(phase: Phase) -> Option<&'static str> {
    match phase {
        Phase::Steps => None,
        Phase::OnFailure => Some("on_failure: if a step failed"),
        Phase::OnSuccess => Some("on_success: if every step succeeded"),
        Phase::Always => Some("always: at the end in any case"),
    }
}

/// How many steps must be over before a step, one after the other, within its phase.
/// Steps of one level may run side by side.
fn levels(plan: &Plan) -> Vec<usize> {
    let mut levels = vec![0; plan.steps.len()];
    let mut open: Vec<usize> =
        plan.steps.iter().map(|step| step.needs.iter().filter(|need| same_phase(plan, step, need.step)).count()).collect();
    let mut dependents: Vec<Vec<usize>> = vec![Vec::new(); plan.steps.len()];
    for (index, step) in plan.steps.iter().enumerate() {
        for need in step.needs.iter().filter(|need| same_phase(plan, step, need.step)) {
            dependents[need.step].push(index);
        }
    }
    let mut ready: Vec<usize> = (0..plan.steps.len()).filter(|index| open[*index] == 0).collect();
    while let Some(index) = ready.pop() {
        for dependent in &dependents[index] {
            levels[*dependent] = levels[*dependent].max(levels[index] + 1);
            open[*dependent] -= 1;
            if open[*dependent] == 0 {
                ready.push(*dependent);
            }
        }
    }
    levels
}

fn same_phase(plan: &Plan, step: &PlannedStep, other: usize) -> bool {
    plan.steps[other].phase == step.phase
}

struct Drawing<'a> {
    plan: &'a Plan,
    previews: &'a Previews,
    style: Style,
}

impl Drawing<'_> {
    fn header(&self) -> Vec<Line> {
        let plan = self.plan;
        let mut title = Line::new().then(Ink::Strong, &plan.name);
        if let Some(description) = &plan.description {
            title = title.then(Ink::Plain, format!("  {}", description.trim()));
        }
        let mut parts = vec![Field::text("file", &plan.file.display().to_string(), self.style)];
        if let Some(environment) = &plan.environment {
            parts.push(self.field("environment", environment));
        }
        let names: Vec<&str> = plan.connections.iter().map(|connection| connection.name.as_str()).collect();
        if !names.is_empty() {
            parts.push(self.field("connections", &names.join(", ")));
        }
        let params: Vec<Line> = plan.params.iter().map(|(name, value)| self.line(&format!("{name} = {value}"))).collect();
        if !params.is_empty() {
            parts.push(Field::new("params", params));
        }
        if !plan.secrets.is_empty() {
            parts.push(self.field("secrets", &plan.secrets.join(", ")));
        }
        parts.push(Field::new("steps", vec![self.classes()]));
        let mut lines = vec![title];
        lines.extend(fields(&parts));
        lines.push(Line::new());
        lines
    }

    fn classes(&self) -> Line {
        let mut line = Line::plain(format!("{}: ", self.plan.steps.len()));
        let classes = [Class::Read, Class::Change, Class::Gate, Class::NotPreviewable];
        let counted = classes.map(|class| (class, self.plan.steps.iter().filter(|step| step.class() == class).count()));
        for (position, (class, number)) in counted.into_iter().filter(|(_, number)| *number > 0).enumerate() {
            line.push(Ink::Plain, if position > 0 { ", " } else { "" });
            line.push(class_ink(class), class.to_string());
            line.push(Ink::Plain, format!(" {number}"));
        }
        line.then(Ink::Dim, format!("; at most {} side by side", self.plan.max_parallel))
    }

    fn step(&self, index: usize, level: usize, first: bool, last: bool) -> Vec<Line> {
        let step = &self.plan.steps[index];
        let bracket = match (first, last) {
            (true, true) => " ",
            (true, false) => "┌",
            (false, true) => "└",
            (false, false) => "│",
        };
        let beside = if last { " " } else { "│" };
        let mut lines = vec![self.title(step, level)];
        match &step.excluded {
            Some(reason) => lines.push(Line::new().then(Ink::Dim, format!("  {reason}"))),
            None => lines.extend(self.body(step, index)),
        }
        lines
            .into_iter()
            .enumerate()
            .map(|(position, line)| {
                let mut bracketed = Line::new().then(Ink::Dim, if position == 0 { bracket } else { beside });
                bracketed.append(if position == 0 { line } else { line.indented(5) });
                bracketed
            })
            .collect()
    }

    fn title(&self, step: &PlannedStep, level: usize) -> Line {
        let (ink, class) = match step.excluded {
            Some(_) => (Ink::Dim, "left out".to_owned()),
            None => (class_ink(step.class()), step.class().to_string()),
        };
        let line = Line::new().then(Ink::Dim, format!("{:>4}  ", level + 1)).then(ink, format!("{class:<CLASS$}  "));
        let line = line.then(if step.excluded.is_some() { Ink::Dim } else { Ink::Strong }, &step.id);
        match step.step.settings.name.as_deref() {
            Some(name) => line.then(Ink::Plain, format!("  {}", self.clean(name))),
            None => line,
        }
    }

    /// What it would do, and under which conditions.
    fn body(&self, step: &PlannedStep, index: usize) -> Vec<Line> {
        let description = self.plan.describe(step);
        let settings = &step.step.settings;
        let mut lines: Vec<Line> = Vec::new();
        if let Some(text) = &settings.description {
            lines.extend(paragraph(Ink::Dim, &self.clean(text), self.style, 8).into_iter().map(|line| line.indented(2)));
        }
        // The details hold the whole text where the summary is only its first line.
        let summary_within = description.details.iter().any(|line| line.contains(description.summary.trim_end_matches('…').trim_end()));
        let summary_shown = !description.summary.is_empty() && !summary_within;
        if summary_shown {
            lines.push(self.line(&description.summary).indented(2));
        }
        let indent = if summary_shown { 4 } else { 2 };
        // A message of one line is said in the summary already.
        let said = matches!(description.details.as_slice(), [only] if summary_shown && description.summary.ends_with(only));
        if !said {
            lines.extend(description.details.iter().flat_map(|text| text.lines()).map(|text| self.line(text).indented(indent)));
        }
        lines.extend(fields(&self.conditions(step, index)));
        lines
    }

    fn conditions(&self, step: &PlannedStep, index: usize) -> Vec<Field> {
        let settings = &step.step.settings;
        let values = &self.plan.scopes[step.scope].values;
        let mut parts = Vec::new();
        if let Some(lines) = self.previews.get(&step.id) {
            parts.push(Field::new("now", lines.iter().map(|line| self.line(line)).collect()));
        }
        if let Some(needs) = self.needs(step, index) {
            parts.push(needs);
        }
        parts.extend(step.outer_conditions.iter().map(|(_, condition)| self.field("when", condition.text.value.trim())));
        if let Some(when) = &settings.when {
            parts.push(self.field("when", when.text.value.trim()));
        }
        if let Some(items) = &settings.for_each {
            let text = match items {
                Setting::Literal(items) => items.iter().map(crate::text::table::plain_value).collect::<Vec<_>>().join(", "),
                Setting::Template(template) => template.text.value.trim().to_owned(),
            };
            parts.push(self.field("for each", &text));
        }
        if let Some(confirm) = &settings.confirm {
            let asked = confirm.describe(values);
            let lines = std::iter::once(&asked.summary).chain(&asked.details).map(|text| self.line(text)).collect();
            parts.push(Field::new("asks first", lines));
        }
        if let Some(check) = &settings.done_when {
            parts.push(self.field("done when", &check_summary(check, values)));
        }
        if settings.severity == StepSeverity::Warning {
            parts.push(self.field("severity", "warning: a failed expectation is recorded and stops nothing"));
        }
        if settings.continue_on_error {
            parts.push(self.field("on error", "goes on"));
        }
        if step.needs_intent() {
            parts.push(self.undo(settings.undo.as_ref(), values));
        }
        parts
    }

    /// Named needs, or a plain order that is not the one of writing.
    fn needs(&self, step: &PlannedStep, index: usize) -> Option<Field> {
        let named: Vec<&str> = step.needs.iter().filter(|need| need.named).map(|need| self.plan.steps[need.step].id.as_str()).collect();
        if !named.is_empty() {
            return Some(self.field("needs", &named.join(", ")));
        }
        let alone = step.needs.is_empty() && index > 0 && self.plan.steps[index - 1].phase == step.phase;
        alone.then(|| self.field("needs", "nothing: starts at once"))
    }

    fn undo(&self, undo: Option<&Undo>, values: &Values) -> Field {
        match undo {
            None => Field::new("undo", vec![Line::new().then(Ink::Warn, "NONE")]),
            Some(Undo::Irreversible(reason)) => {
                let reason = reason.as_ref().map_or_else(String::new, |reason| format!(": {}", self.clean(reason)));
                Field::new("undo", vec![Line::new().then(Ink::Warn, "IRREVERSIBLE").then(Ink::Plain, reason)])
            }
            Some(Undo::Action(action)) => {
                let description = action.describe(values);
                let text = if description.details.is_empty() { vec![description.summary] } else { description.details };
                Field::new("undo", text.iter().flat_map(|text| text.lines()).map(|text| self.line(text)).collect())
            }
        }
    }

    fn field(&self, label: &str, text: &str) -> Field {
        Field::text(label, &self.clean(text), self.style)
    }

    fn line(&self, text: &str) -> Line {
        Line::plain(self.clean(text))
    }

    /// Values that are known beforehand may be secret ones.
    fn clean<'t>(&self, text: &'t str) -> std::borrow::Cow<'t, str> {
        let redactor: &Redactor = &self.plan.redactor;
        redactor.text(text)
    }
}

fn class_ink(class: Class) -> Ink {
    match class {
        Class::Read => Ink::Good,
        Class::Change => Ink::Warn,
        Class::Gate => Ink::Accent,
        Class::NotPreviewable => Ink::Bad,
    }
}

fn check_summary(check: &Check, values: &Values) -> String {
    match check {
        Check::Sql(sql) => sql.describe(values).summary,
        Check::Http(http) => http.describe(values).summary,
        Check::Shell(shell) => shell.describe(values).summary,
        Check::IndexValid(name) => format!("index {} exists and is valid", values.text(name).unwrap_or_else(|_| name.text.value.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Selection;
    use crate::plan::{Inputs, build};
    use crate::playbook::load::load;
    use crate::target::Variables;

    const PLAYBOOK: &str = r#"
version: 1
name: deploy
description: Ships a version.
environment: production
params:
  version: {type: string, default: "4.2"}
secrets:
  token: {env: TOKEN}
connections:
  main: {url: "postgres://db1/stock"}
max_parallel: 3
steps:
  - id: orphans
    name: No orphaned scans
    description: A scan without a rack can't be counted.
    sql:
      query: |
        SELECT id
          FROM scans
         WHERE rack_id IS NULL
      expect: {empty: true}
  - id: index
    name: Index the scans
    needs: []
    severity: warning
    sql: {exec: "CREATE INDEX CONCURRENTLY idx_scans ON scans (rack_id)", transaction: none}
    done_when: {index_valid: idx_scans}
    undo: {sql: {exec: "DROP INDEX CONCURRENTLY idx_scans", transaction: none}}
  - id: ship
    needs: [orphans, index]
    when: params.version != '0'
    confirm: "Deploy {{ params.version }}?"
    for_each: [eu, us]
    as: region
    shell: {argv: [deploy, --region, "{{ region }}", "{{ params.version }}"], env: {TOKEN: "{{ secrets.token }}"}}
    undo: {irreversible: customers have seen it}
  - id: purge
    continue_on_error: true
    sql: {exec: "DELETE FROM sessions"}
on_failure:
  - id: tell
    notify: {to: [console], message: It failed}
always:
  - id: tidy
    shell: {run: rm -f lock}
"#;

    fn shown(selection: Selection, width: usize) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deploy.yaml");
        std::fs::write(&path, PLAYBOOK).unwrap();
        let loaded = load(&path).unwrap();
        let inputs = Inputs {
            params: serde_json::Map::new(),
            variables: Variables::new([("TOKEN".to_owned(), "hunter2".to_owned())]),
            resolve: true,
            selection,
            directory: directory.path().to_owned(),
        };
        let plan = build(&path, loaded, &inputs).unwrap_or_else(|(_, diagnostics)| panic!("{diagnostics:?}"));
        let mut drawn = Vec::new();
        terminal(&plan, &Previews::new(), Style { color: false, width: Some(width) }, &mut drawn).unwrap();
        String::from_utf8(drawn).unwrap().replace(&directory.path().display().to_string(), "[DIR]")
    }

    #[test]
    fn every_step_shows_what_it_does_and_how_it_is_taken_back() {
        insta::assert_snapshot!(shown(Selection::default(), 80), @r#"
        deploy  Ships a version.
          file         [DIR]/deploy.yaml
          environment  production
          connections  main
          params       version = "4.2"
          secrets      token
          steps        6: read 2, change 2, not previewable 2; at most 3 side by side

        ┌   1  read             orphans  No orphaned scans
        │       A scan without a rack can't be counted.
        │       SELECT scans
        │         SELECT id
        │           FROM scans
        │          WHERE rack_id IS NULL
        │         expects no rows
        └   1  change           index  Index the scans
                CREATE INDEX CONCURRENTLY scans
                  CREATE INDEX CONCURRENTLY idx_scans ON scans (rack_id)
                  without a transaction: each statement commits by itself
                needs      nothing: starts at once
                done when  index idx_scans exists and is valid
                severity   warning: a failed expectation is recorded and stops nothing
                undo       DROP INDEX CONCURRENTLY idx_scans
                           without a transaction: each statement commits by itself
            2  not previewable  ship
                deploy --region '{{ region }}' 4.2
                  TOKEN={{ secrets.token }}
                needs       orphans, index
                when        params.version != '0'
                for each    eu, us
                asks first  Deploy 4.2?
                undo        IRREVERSIBLE: customers have seen it
            3  change           purge
                DELETE sessions
                  DELETE FROM sessions
                on error  goes on
                undo      NONE

        on_failure: if a step failed
            1  read             tell
                tell console: It failed

        always: at the end in any case
            1  not previewable  tidy
                rm -f lock
                undo      NONE
        "#);
    }

    #[test]
    fn what_is_left_out_is_named() {
        let selection = Selection { skip: vec!["purge".into()], ..Selection::default() };
        let plan = shown(selection, 80);
        insta::assert_snapshot!(plan.lines().skip_while(|line| !line.contains("purge")).take(2).collect::<Vec<_>>().join("\n"), @"
        3  left out         purge
            left out by --skip
        ");
    }
}
