//! `env_check`: whether the environment variables are there, well-formed and unchanged.

mod rule;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value as Json, json};

use self::rule::problem_of;
pub use self::rule::{ValuePattern, VariableFormat, VariableRule};

use super::environment::baseline::{Baseline, Change, Origin, exposure};
use super::environment::{ProcessEnvironment, Source, is_variable};
use super::written::shown;
use super::{Class, Description, Inspection, Need, Perform, Prospect, Recovery, StepContext};
use crate::diagnostic::Diagnostic;
use crate::outcome::{ErrorKind, StepError, StepResult};
use crate::secret::Secret;
use crate::source::Spanned;
use crate::template::{Place, Template, TemplateError, Values};
use crate::text::count;

/// Checks environment variables: that they are there and well-formed, and that those marked
/// `fixed` are as they were when a baseline was recorded, e.g. before a deployment.
///
/// Everything that is wrong is said in one pass, by the variables' names and never with a
/// value. The list of variables is the declaration: what is not in it is not read. Variables
/// that `secrets:` are read from can be checked as well. A value that begins or ends with a
/// blank or a carriage return, or stands in quotes, is refused: it comes from a badly read file.
///
/// A baseline is written by `env_backup`, or by this action with `record: true`. It holds a
/// hash of each value (PBKDF2-HMAC-SHA512, 210,000 rounds, random salt), so that it gives no
/// value away; but whoever has the file can test guesses, so a short value is only as safe as
/// the file, which is of mode 0600. A dotenv file is taken literally: nothing in it is
/// expanded, and where programs would read a value differently the step has a finding.
///
/// ```yaml
/// env_check:
///   variables:
///     SUPABASE_URL: {format: https, fixed: true}
///     SUPABASE_SERVICE_ROLE_KEY: {secret: true, min_length: 20, fixed: true}
///     NODE_ENV: {one_of: [staging, production]}
///     CORS_ORIGIN: {pattern: "^https://"}
///     SENTRY_RELEASE: {required: false}
///   baseline: env-baseline.json
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvCheck {
    /// The variables by name, each with what must be true of it; `{}`: it must be there.
    #[schemars(with = "std::collections::BTreeMap<String, VariableRule>", extend("minProperties" = 1))]
    pub variables: Spanned<IndexMap<Spanned<String>, VariableRule>>,
    /// A dotenv file to check instead of the environment runbook was started with; relative
    /// to where runbook is run.
    #[serde(default)]
    pub file: Option<Template>,
    /// The recorded baseline that `fixed` variables are compared with; relative to where runbook is run.
    #[serde(default)]
    pub baseline: Option<Template>,
    /// Write the baseline instead of comparing with it, once everything else is as it must be.
    /// An existing file is never overwritten. Default: false.
    #[serde(default)]
    pub record: bool,
}

impl Perform for EnvCheck {
    fn class(&self) -> Class {
        if self.record { Class::Change } else { Class::Read }
    }

    /// A baseline is there as a whole or not at all, and says who wrote it.
    fn recovery(&self) -> Recovery {
        Recovery::Repeat
    }

    fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        for template in self.file.iter().chain(&self.baseline) {
            inspection.template(template, Place::Argument);
        }
        inspection.diagnostics.extend(self.mistakes());
        for (name, rule) in &self.variables.value {
            inspection.diagnostics.extend(rule.mistakes(name));
        }
    }

    fn describe(&self, values: &Values) -> Description {
        let from = self.file.as_ref().map_or_else(String::new, |file| format!(" of {}", shown(file, values)));
        let mut details: Vec<String> = self.variables.iter().map(|(name, rule)| format!("{}: {rule}", name.value)).collect();
        if let Some(baseline) = &self.baseline {
            let verb = if self.record { "writes the baseline" } else { "compares with the baseline" };
            details.push(format!("{verb} {}", shown(baseline, values)));
        }
        Description { summary: format!("check {}{from}", count(self.variables.len() as u64, "variable")), details }
    }

    async fn needs(&self, prospect: &Prospect<'_>) -> Vec<Need> {
        self.needed(prospect).await.unwrap_or_else(|unknown| vec![unknown])
    }

    async fn run(&self, context: &StepContext) -> Result<StepResult, StepError> {
        let location = context.sources.location(self.variables.span);
        let checked = async {
            let ground = Ground::of(context);
            let origin = || Origin { run: context.run.clone(), step: context.step.clone(), at: context.clock.now() };
            self.check(ground, self.record.then(origin)).await
        };
        checked.await.map_err(|error| error.at(location))
    }
}

/// What a check looks at, in a run or before one.
pub(super) struct Ground<'a> {
    pub(super) environment: Arc<ProcessEnvironment>,
    pub(super) directory: PathBuf,
    pub(super) values: &'a Values,
}

impl<'a> Ground<'a> {
    pub(super) fn of(context: &'a StepContext) -> Self {
        Self { environment: context.environment.clone(), directory: context.directory.clone(), values: &context.values }
    }

    pub(super) fn before(prospect: &'a Prospect<'a>) -> Self {
        Self { environment: prospect.environment.clone(), directory: prospect.directory.clone(), values: prospect.values }
    }

    pub(super) fn path(&self, template: &Template) -> Result<PathBuf, TemplateError> {
        Ok(self.directory.join(self.values.text(template)?))
    }

    /// The dotenv file, or the environment.
    pub(super) fn source(&self, file: Option<&Template>) -> Result<Source, StepError> {
        match file {
            Some(file) => Source::file(&self.path(file)?),
            None => Ok(Source::process(&self.environment.variables)),
        }
    }
}

impl EnvCheck {
    /// Looks as far as that can be done before a run.
    async fn needed(&self, prospect: &Prospect<'_>) -> Result<Vec<Need>, Need> {
        let file = self.file.as_ref().map(|file| Ok((file, prospect.path("dotenv file", file)?))).transpose()?;
        let baseline = self.baseline.as_ref().map(|baseline| Ok((baseline, prospect.path("baseline", baseline)?))).transpose()?;
        let ground = Ground::before(prospect);
        let seen = match (&file, &baseline) {
            (Some((file, path)), _) if !path.exists() => prospect.readable("dotenv file", file),
            (_, Some((_, path))) if !self.record && path.exists() => seen(self.check(ground, None).await),
            _ => seen(self.check_without_baseline(&ground)),
        };
        let needed = baseline.filter(|(_, path)| self.record || !path.exists()).map(|(baseline, _)| match self.record {
            true => prospect.writable("baseline", baseline, false),
            false => prospect.readable("baseline", baseline),
        });
        Ok([seen].into_iter().chain(needed).collect())
    }

    fn check_without_baseline(&self, ground: &Ground<'_>) -> Result<StepResult, StepError> {
        let source = ground.source(self.file.as_ref())?;
        let must_be = if self.variables.len() == 1 { "as it must be" } else { "as they must be" };
        let summary = format!("{} {must_be}", count(self.variables.len() as u64, "variable"));
        self.judge(&source, None).ended(&source, self, summary)
    }

    async fn check(&self, ground: Ground<'_>, record: Option<Origin>) -> Result<StepResult, StepError> {
        let Some(template) = &self.baseline else { return self.check_without_baseline(&ground) };
        let source = ground.source(self.file.as_ref())?;
        let all = count(self.variables.len() as u64, "variable");
        let path = ground.path(template)?;
        match record {
            Some(origin) => {
                let report = self.judge(&source, None);
                let result = report.ended(&source, self, String::new())?;
                self.record(&source, path, origin, result).await
            }
            None => {
                let baseline = Baseline::read(&path)?.ok_or_else(|| self.no_baseline(&path))?;
                let changes = self.changes(&source, &baseline).await?;
                let mut report = self.judge(&source, Some((&changes, &baseline.moment())));
                report.baseline = Some(json!({"compared": changes.len(), "recorded_at": baseline.recorded_at}));
                report.findings.extend(exposure(&path));
                let summary = format!("{all}, {} unchanged since {}", changes.len(), baseline.moment());
                report.ended(&source, self, summary)
            }
        }
    }

    async fn record(&self, source: &Source, path: PathBuf, origin: Origin, mut result: StepResult) -> Result<StepResult, StepError> {
        let fixed: BTreeMap<String, Option<Secret>> = self.fixed().map(|name| (name.to_owned(), source.text(name).cloned())).collect();
        result.summary = format!("{}, {} recorded", count(self.variables.len() as u64, "variable"), fixed.len());
        result.file = Some(path.display().to_string());
        blocking(move || Baseline::put(&path, &fixed, &origin)).await?;
        Ok(result)
    }

    /// What has become of each fixed variable. Hashing takes its time on purpose.
    async fn changes(&self, source: &Source, baseline: &Baseline) -> Result<BTreeMap<String, Change>, StepError> {
        let now: Vec<(String, Option<Secret>)> = self.fixed().map(|name| (name.to_owned(), source.text(name).cloned())).collect();
        let baseline = baseline.clone();
        blocking(move || {
            Ok(now
                .into_iter()
                .map(|(name, value)| {
                    let change = baseline.compare(&name, value.as_ref());
                    (name, change)
                })
                .collect())
        })
        .await
    }

    /// Everything that is wrong, with what changed since the moment of a baseline.
    fn judge(&self, source: &Source, changes: Option<(&BTreeMap<String, Change>, &str)>) -> Report {
        let mut report = Report::default();
        for (name, rule) in &self.variables.value {
            let change = changes.and_then(|(changes, moment)| Some((*changes.get(name.value.as_str())?, moment)));
            let changed = change.and_then(|(change, moment)| problem_of(change, moment, rule.required));
            let other = rule.same_as.as_ref().filter(|other| source.text(other) != source.text(name));
            let other = other.map(|other| format!("is not the same as {}", other.value));
            let problems: Vec<String> = rule.problems(source.get(name)).into_iter().chain(other).chain(changed).collect();
            let state = match (problems.is_empty(), source.text(name)) {
                (false, _) => "wrong",
                (true, _) if change.is_some() => "unchanged",
                (true, Some(_)) => "fine",
                (true, None) => "not set",
            };
            report.states.insert(name.value.clone(), json!(state));
            if !problems.is_empty() {
                report.problems.push((name.value.clone(), problems.join("; ")));
            }
        }
        let names: Vec<&str> = self.variables.keys().map(|name| name.value.as_str()).collect();
        report.findings.extend(source.doubts(names));
        if self.variables.values().any(|rule| rule.secret) {
            report.findings.extend(source.exposure());
        }
        report
    }

    fn fixed(&self) -> impl Iterator<Item = &str> {
        self.variables.iter().filter(|(_, rule)| rule.fixed).map(|(name, _)| name.value.as_str())
    }

    fn no_baseline(&self, path: &std::path::Path) -> StepError {
        StepError::new(ErrorKind::Io, format!("there is no baseline `{}`, so whether anything changed cannot be told", path.display()))
            .hint("record one beforehand: `env_check` with `record: true`, or `env_backup` with `baseline:`")
    }

    fn mistakes(&self) -> Vec<Diagnostic> {
        let mut mistakes = Vec::new();
        let mut wrong = |span, message: String, help: &str| mistakes.push(Diagnostic::error("env-check", span, message).help(help));
        if self.variables.is_empty() {
            wrong(self.variables.span, "no variable is named, so nothing is checked".into(), "name them: `variables: {DATABASE_URL: {}}`");
        }
        for name in self.variables.keys().filter(|name| !is_variable(name)) {
            wrong(
                name.span,
                format!("`{}` is not a name of an environment variable", name.value),
                "use letters, digits and `_`, not beginning with a digit",
            );
        }
        for other in self
            .variables
            .values()
            .filter_map(|rule| rule.same_as.as_ref())
            .filter(|other| !self.variables.contains_key(other.value.as_str()))
        {
            wrong(other.span, format!("`{}` is not in the list of variables", other.value), "what is read is declared: add it to the list");
        }
        let fixed = self.variables.iter().find(|(_, rule)| rule.fixed).map(|(name, _)| name);
        match (&self.baseline, fixed) {
            (None, Some(name)) => wrong(
                name.span,
                format!("`{}` is `fixed`, but there is no `baseline` to compare it with", name.value),
                "name the file: `baseline: env-baseline.json`",
            ),
            (Some(baseline), None) => {
                wrong(
                    baseline.text.span,
                    "there is a `baseline`, but no variable is `fixed`".into(),
                    "mark what must not change with `fixed: true`",
                );
            }
            (None, None) if self.record => {
                wrong(
                    self.variables.span,
                    "`record: true` needs a `baseline` to write".into(),
                    "name the file: `baseline: env-baseline.json`",
                );
            }
            _ => {}
        }
        mistakes
    }
}

/// What was found, variable by variable.
#[derive(Default)]
struct Report {
    states: serde_json::Map<String, Json>,
    problems: Vec<(String, String)>,
    findings: Vec<String>,
    baseline: Option<Json>,
}

impl Report {
    fn ended(self, source: &Source, check: &EnvCheck, summary: String) -> Result<StepResult, StepError> {
        let total = check.variables.len();
        let mut json = json!({"variables": self.states});
        if let Some(baseline) = self.baseline {
            json["baseline"] = baseline;
        }
        let mut result = StepResult { summary, json: Some(json), findings: self.findings, ..StepResult::default() };
        if self.problems.is_empty() {
            return Ok(result);
        }
        let number = self.problems.len();
        result.summary = format!("{number} of {} not as they must be", count(total as u64, "variable"));
        let not = if number == 1 { "is not as it must be" } else { "are not as they must be" };
        let message = format!("{number} of {} in {} {not}", count(total as u64, "variable"), source.name);
        let error = StepError::new(ErrorKind::Expectation, message);
        Err(self.problems.into_iter().fold(error, |error, (name, problem)| error.fact(name, problem)).with_result(result))
    }
}

fn seen(outcome: Result<StepResult, StepError>) -> Need {
    Need::Seen { what: "variables", outcome: outcome.map(Box::new).map_err(Box::new) }
}

/// Hashing and files must not hold up other steps.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, StepError> + Send + 'static) -> Result<T, StepError> {
    tokio::task::spawn_blocking(work).await.map_err(|lost| StepError::new(ErrorKind::Io, lost.to_string()))?
}
