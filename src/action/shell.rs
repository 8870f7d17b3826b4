//! `shell`: a script or a program on the operator's machine.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Deserialize;

use super::written::{Codes, Pattern, short, shown, unmet};
use super::{Class, Description, Inspection, Need, Perform, Prospect, StepContext};
use crate::diagnostic::Diagnostic;
use crate::outcome::{Aftermath, ErrorKind, StepError, StepResult};
use crate::output::printable;
use crate::process::{Command, Ended, Exit, GRACE, ProcessError, Program};
use crate::secret::Secret;
use crate::source::{Span, Spanned};
use crate::template::{Expression, Place, Template, Values};
use crate::text::shell_word;

/// Runs a script or a program.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Shell {
    work: Work,
    env: IndexMap<Spanned<String>, Template>,
    dir: Option<Template>,
    expect: ShellExpectation,
}

#[derive(Debug)]
enum Work {
    Script(ShellKind, Spanned<String>),
    Argv(Spanned<Vec<Template>>),
}

/// Runs a script (`run`) or a program with arguments (`argv`).
///
/// A script's text is not templated: values and secrets reach it through `env`. In `argv`
/// each element is exactly one argument, and no secret may stand there, because every user
/// of the machine can read command lines. A script stops at its first failing command
/// (`sh -e`, `bash -e -o pipefail`). Input is empty. What a step leaves running in the
/// background is stopped with it; start services through a service manager.
///
/// ```yaml
/// shell:
///   run: vercel deploy --prod --token "$TOKEN"
///   env: {TOKEN: "{{ secrets.vercel }}"}
///   expect: {stdout_matches: Ready}
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Shell", extend("oneOf" = [{"required": ["run"]}, {"required": ["argv"]}]))]
struct Fields {
    /// A script, given to the shell as it stands here.
    #[serde(default)]
    run: Option<Spanned<String>>,
    /// A program and its arguments, without a shell.
    #[serde(default)]
    #[schemars(length(min = 1))]
    argv: Option<Spanned<Vec<Template>>>,
    /// Environment variables, added to those runbook was started with.
    #[serde(default)]
    env: IndexMap<Spanned<String>, Template>,
    /// Working directory, relative to where runbook is run. Default: there.
    #[serde(default)]
    dir: Option<Template>,
    /// The shell that runs the script. Default: `sh`.
    #[serde(default)]
    shell: Option<ShellKind>,
    /// What must be true afterwards.
    #[serde(default)]
    expect: ShellExpectation,
}

impl TryFrom<Fields> for Shell {
    type Error = &'static str;
    fn try_from(Fields { run, argv, env, dir, shell, expect }: Fields) -> Result<Self, Self::Error> {
        let work = match (run, argv, shell) {
            (Some(script), None, shell) => Work::Script(shell.unwrap_or(ShellKind::Sh), script),
            (None, Some(argv), None) if !argv.is_empty() => Work::Argv(argv),
            (None, Some(_), None) => return Err("`argv` needs at least the program"),
            (None, Some(_), Some(_)) => return Err("`argv` runs without a shell: remove `shell`, or write a script under `run`"),
            (Some(_), Some(_), _) => return Err("`run` and `argv` exclude each other"),
            (None, None, _) => return Err("`shell` needs `run` (a script) or `argv` (a program and its arguments)"),
        };
        Ok(Self { work, env, dir, expect })
    }
}

impl JsonSchema for Shell {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        Fields::schema_name()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        Fields::json_schema(generator)
    }
}

/// The shells that run a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShellKind {
    /// `sh -e`
    Sh,
    /// `bash -e -o pipefail`
    Bash,
}

/// What must be true of a command's end and output.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ShellExpectation {
    /// Exit codes that are fine. Default: 0.
    pub exit_code: Option<Codes>,
    /// Must occur in standard output (its last 64 KiB).
    pub stdout_matches: Option<Pattern>,
    /// Must occur in standard error (its last 64 KiB).
    pub stderr_matches: Option<Pattern>,
    /// Must hold of standard output read as JSON; its keys are names, the whole is `json`.
    pub json: Option<Expression>,
}

impl Perform for Shell {
    fn class(&self) -> Class {
        Class::NotPreviewable
    }

    fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        match &self.work {
            Work::Script(_, script) => inspection.diagnostics.extend(template_in_script(script)),
            Work::Argv(argv) => argv.iter().for_each(|argument| inspection.template(argument, Place::Argument)),
        }
        for (name, value) in &self.env {
            if !is_variable(name) {
                inspection.diagnostics.push(
                    Diagnostic::error("variable-name", name.span, format!("`{}` is not a name of an environment variable", name.value))
                        .help("use letters, digits and `_`, not beginning with a digit"),
                );
            }
            inspection.template(value, Place::Private);
        }
        if let Some(directory) = &self.dir {
            inspection.template(directory, Place::Decision);
        }
        if let Some(condition) = &self.expect.json {
            inspection.decision(condition, None);
        }
    }

    fn describe(&self, values: &Values) -> Description {
        let mut details = Vec::new();
        let summary = match &self.work {
            Work::Script(_, script) => {
                let mut lines = script.trim_end().lines();
                if lines.clone().nth(1).is_some() {
                    details.extend(lines.clone().map(ToOwned::to_owned));
                }
                lines.find(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')).unwrap_or_default().trim().to_owned()
            }
            Work::Argv(argv) => argv.iter().map(|argument| shell_word(&shown(argument, values)).into_owned()).collect::<Vec<_>>().join(" "),
        };
        if let Some(directory) = &self.dir {
            details.push(format!("in {}", shown(directory, values)));
        }
        details.extend(self.env.iter().map(|(name, value)| format!("{}={}", name.value, shown(value, values))));
        details.extend(self.expect.describe());
        Description { summary, details }
    }

    async fn needs(&self, prospect: &Prospect<'_>) -> Vec<Need> {
        self.needed(prospect).unwrap_or_else(|unknown| vec![unknown])
    }

    async fn run(&self, context: &StepContext) -> Result<StepResult, StepError> {
        let location = context.sources.location(self.span());
        let command = self.command(context)?;
        let ended = context
            .processes
            .run(command, &context.output, &context.cancel)
            .await
            .map_err(|error| not_followed(&error).at(location.clone()))?;
        let result = self.result(&ended);
        match self.refusal(&ended, &result, &context.values) {
            None => Ok(result),
            Some(error) => Err(with_output(error, &result).with_result(result).at(location)),
        }
    }
}

impl Shell {
    fn span(&self) -> Span {
        match &self.work {
            Work::Script(_, script) => script.span,
            Work::Argv(argv) => argv.span,
        }
    }

    fn needed(&self, prospect: &Prospect<'_>) -> Result<Vec<Need>, Need> {
        let directory = match &self.dir {
            Some(directory) => prospect.path("directory", directory)?,
            None => prospect.directory.clone(),
        };
        let path = self.env.iter().find(|(name, _)| name.value == "PATH").map(|(_, path)| prospect.text("program", path)).transpose()?;
        let (name, runs_script) = match &self.work {
            Work::Script(ShellKind::Sh, _) => ("sh".to_owned(), true),
            Work::Script(ShellKind::Bash, _) => ("bash".to_owned(), true),
            Work::Argv(argv) => (argv.first().map_or(Ok(String::new()), |program| prospect.text("program", program))?, false),
        };
        let mut needs = Vec::new();
        if self.dir.is_some() {
            needs.push(Need::Directory(directory.clone()));
        }
        needs.push(Need::Program { name, directory, path, runs_script });
        Ok(needs)
    }

    fn command(&self, context: &StepContext) -> Result<Command, StepError> {
        let values = &context.values;
        let program = match &self.work {
            Work::Script(shell, script) => Program::Script((*shell).into(), script.value.clone()),
            Work::Argv(argv) => Program::Argv(argv.iter().map(|argument| values.text(argument)).collect::<Result<_, _>>()?),
        };
        let environment = self
            .env
            .iter()
            .map(|(name, value)| Ok((name.value.clone(), Secret::new(values.text(value)?))))
            .collect::<Result<_, StepError>>()?;
        let directory = match &self.dir {
            Some(directory) => context.directory.join(values.text(directory)?),
            None => context.directory.clone(),
        };
        Ok(Command { program, environment, without: Vec::new(), directory: not_empty(directory), grace: GRACE })
    }

    fn result(&self, ended: &Ended) -> StepResult {
        let mut result = StepResult {
            exit_code: ended.exit.code(),
            stdout: Some(ended.captured.stdout.clone()),
            stderr: Some(ended.captured.stderr.clone()),
            summary: summary(ended),
            ..StepResult::default()
        };
        let may_be_json = self.expect.json.is_some() || ended.captured.stdout.trim_start().starts_with(['{', '[']);
        if may_be_json && ended.captured.stdout_complete {
            result.json = serde_json::from_str(&ended.captured.stdout).ok();
        }
        if ended.left_behind {
            result.findings.push("processes it left running in the background were stopped with the step".into());
        }
        result
    }

    /// Why this end is not fine, if it is not.
    fn refusal(&self, ended: &Ended, result: &StepResult, values: &Values) -> Option<StepError> {
        let fine = self.expect.exit_code.clone().unwrap_or_else(|| Codes::one(0));
        let as_expected = ended.exit.code().is_some_and(|code| fine.contains(i64::from(code)));
        if ended.stopped && !as_expected {
            return Some(
                StepError::new(ErrorKind::Cancelled, format!("stopped before its end ({})", ended.exit)).aftermath(Aftermath::Unknown),
            );
        }
        if !as_expected {
            return Some(wrong_exit(ended.exit, &fine).aftermath(Aftermath::Partial));
        }
        self.expect.unmet(result, ended.captured.stdout_complete, values).map(|error| error.aftermath(Aftermath::Partial))
    }
}

impl ShellExpectation {
    fn describe(&self) -> Vec<String> {
        let codes = self.exit_code.iter().map(|codes| format!("expects exit code {codes}"));
        let stdout = self.stdout_matches.iter().map(|pattern| format!("expects `{pattern}` in standard output"));
        let stderr = self.stderr_matches.iter().map(|pattern| format!("expects `{pattern}` in standard error"));
        let json = self.json.iter().map(|condition| format!("expects of its JSON: {}", condition.text.value));
        codes.chain(stdout).chain(stderr).chain(json).collect()
    }

    fn unmet(&self, result: &StepResult, complete: bool, values: &Values) -> Option<StepError> {
        for (pattern, text, name) in
            [(&self.stdout_matches, &result.stdout, "standard output"), (&self.stderr_matches, &result.stderr, "standard error")]
        {
            if let Some(pattern) = pattern
                && !pattern.occurs_in(text.as_deref().unwrap_or_default())
            {
                return Some(expectation(format!("`{pattern}` does not occur in {name}")));
            }
        }
        let condition = self.json.as_ref()?;
        match &result.json {
            Some(json) => {
                let (reason, found) = unmet(condition, json, values)?;
                Some(found.into_iter().fold(expectation(reason), |error, (name, value)| error.fact(name, value)))
            }
            None if complete => Some(expectation("standard output is not JSON")),
            None => Some(expectation("standard output is longer than the 64 KiB that are read as JSON")),
        }
    }
}

impl From<ShellKind> for crate::process::Shell {
    fn from(kind: ShellKind) -> Self {
        match kind {
            ShellKind::Sh => Self::Sh,
            ShellKind::Bash => Self::Bash,
        }
    }
}

fn expectation(message: impl Into<String>) -> StepError {
    StepError::new(ErrorKind::Expectation, message)
}

/// A code the author may have meant is a failed expectation; the codes with which a shell
/// says that it could not run something, and signals, are not an answer.
fn wrong_exit(exit: Exit, fine: &Codes) -> StepError {
    let error = |kind| StepError::new(kind, format!("{exit}, expected {fine}"));
    match exit {
        Exit::Code(127) => error(ErrorKind::Process).hint("127 is the shell's way to say that a command was not found"),
        Exit::Code(126) => error(ErrorKind::Process).hint("126 is the shell's way to say that a file could not be executed"),
        Exit::Code(_) => error(ErrorKind::Expectation),
        Exit::Signal(_) => error(ErrorKind::Process),
    }
}

/// The end of what it said, which mostly tells why.
fn with_output(error: StepError, result: &StepResult) -> StepError {
    let last = |text: &Option<String>| {
        let text = text.as_deref().unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().filter(|line| !line.trim().is_empty()).take(5).collect();
        lines.into_iter().rev().map(|line| short(&printable(line))).collect::<Vec<_>>().join("\n")
    };
    let (stdout, stderr) = (last(&result.stdout), last(&result.stderr));
    match (stderr.is_empty(), stdout.is_empty()) {
        (false, _) => error.fact("standard error", stderr),
        (true, false) => error.fact("standard output", stdout),
        (true, true) => error,
    }
}

pub(super) fn not_followed(error: &ProcessError) -> StepError {
    let aftermath = if matches!(error, ProcessError::Follow { .. }) { Aftermath::Unknown } else { Aftermath::Unchanged };
    StepError::new(ErrorKind::Process, error.to_string()).aftermath(aftermath)
}

fn not_empty(directory: PathBuf) -> PathBuf {
    if directory.as_os_str().is_empty() { Path::new(".").to_owned() } else { directory }
}

/// The last line it printed says most.
fn summary(ended: &Ended) -> String {
    const LONGEST: usize = 60;
    match ended.captured.stdout.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(line) if ended.exit == Exit::Code(0) && line.chars().count() <= LONGEST => printable(line.trim()).into_owned(),
        _ => ended.exit.to_string(),
    }
}

/// `{{ params.x }}` in a script would reach the shell as it stands. Other braces, as in
/// `docker --format '{{.Names}}'`, are the script's own.
fn template_in_script(script: &Spanned<String>) -> Option<Diagnostic> {
    const ROOTS: &[&str] = &["params", "secrets", "steps", "env", "run", "connections", "item"];
    let template = Template::parse(script.clone()).ok()?;
    let reference = template.references().find(|reference| ROOTS.contains(&reference.path[0].as_str()))?;
    let path = reference.path.join(".");
    let name = reference.path.last().map(|name| name.to_uppercase()).unwrap_or_default();
    Some(
        Diagnostic::error("template-in-script", script.span, format!("`{{{{ {path} }}}}` stands in a script, whose text is not templated"))
            .help(format!(
                "give the value through the environment, `env: {{{name}: \"{{{{ {path} }}}}\"}}`, and write \"${name}\" in the script"
            )),
    )
}

fn is_variable(name: &str) -> bool {
    !name.starts_with(|letter: char| letter.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{World, action, problems, try_action};
    use super::*;

    async fn run(world: &World, yaml: &str) -> Result<StepResult, StepError> {
        action::<Shell>(yaml).run(&world.context).await
    }

    fn world() -> World {
        World::new(&json!({"name": "a b; exit 9", "n": 3}), &[("token", "s3cret-token")])
    }

    #[tokio::test]
    async fn the_result_holds_what_later_steps_read() {
        let result = run(&world(), "run: |\n  echo working >&2\n  echo '{\"rows\": 12}'").await.unwrap();
        assert_eq!((result.exit_code, result.stderr.as_deref()), (Some(0), Some("working")));
        assert_eq!(result.json, Some(json!({"rows": 12})));
        assert_eq!(result.summary, "{\"rows\": 12}");
    }

    #[tokio::test]
    async fn values_reach_a_script_by_env_and_a_program_as_one_argument() {
        let world = world();
        let script = run(&world, "{run: 'printf %s \"$NAME\"', env: {NAME: '{{ params.name }}'}}").await.unwrap();
        assert_eq!(script.stdout.as_deref(), Some("a b; exit 9"));
        let program = run(&world, "argv: [printf, '<%s>', '{{ params.name }}', '{{ params.n }}']").await.unwrap();
        assert_eq!(program.stdout.as_deref(), Some("<a b; exit 9><3>"));
    }

    #[tokio::test]
    async fn a_secret_reaches_the_program_but_no_output() {
        let world = world();
        let yaml = "{run: 'echo \"$TOKEN\"; test \"$TOKEN\" = s3cret\"-token\"', env: {TOKEN: '{{ secrets.token }}'}}";
        let result = run(&world, yaml).await.unwrap();
        assert_eq!(result.stdout.as_deref(), Some("***"));
        assert_eq!(world.log(), "***\n");
    }

    #[tokio::test]
    async fn an_unexpected_exit_code_is_a_failed_expectation_with_its_last_words() {
        let error = run(&world(), "run: echo no space left >&2; exit 4").await.unwrap_err();
        assert_eq!((error.kind, error.aftermath), (ErrorKind::Expectation, Aftermath::Partial));
        assert_eq!(error.message, "exit code 4, expected 0");
        assert_eq!(error.facts, [("standard error".into(), "no space left".into())]);
        assert_eq!(error.result.unwrap().exit_code, Some(4));
        assert!(run(&world(), "{run: exit 4, expect: {exit_code: [0, 4]}}").await.is_ok());
    }

    #[tokio::test]
    async fn what_could_not_run_is_not_an_answer() {
        for yaml in ["run: no-such-command", "run: /etc/passwd", "run: kill -9 $$", "argv: [no-such-command]"] {
            assert_eq!(run(&world(), yaml).await.unwrap_err().kind, ErrorKind::Process, "{yaml}");
        }
    }

    #[tokio::test]
    async fn expectations_say_what_was_missing() {
        let world = world();
        let message = async |yaml: &str| run(&world, yaml).await.unwrap_err().message;
        insta::assert_snapshot!(message("{run: echo Failed, expect: {stdout_matches: '^Ready'}}").await, @"`^Ready` does not occur in standard output");
        insta::assert_snapshot!(message("{run: echo Ready, expect: {json: 'x == 1'}}").await, @"standard output is not JSON");
        insta::assert_snapshot!(message("{run: 'echo [1]', expect: {json: 'json[0] == 2'}}").await, @"`json[0] == 2` does not hold");
        assert!(run(&world, "{run: 'echo [1]', expect: {json: 'json[0] == 1', stdout_matches: '1'}}").await.is_ok());
    }

    #[tokio::test]
    async fn a_stopped_script_has_an_unknown_end_unless_it_finished() {
        let world = world();
        world.context.cancel.cancel();
        let error = run(&world, "run: sleep 1000").await.unwrap_err();
        assert_eq!((error.kind, error.aftermath), (ErrorKind::Cancelled, Aftermath::Unknown));
    }

    #[test]
    fn mistakes_are_found_before_anything_runs() {
        let refused = |yaml: &str| try_action::<Shell>(yaml).unwrap_err();
        insta::assert_snapshot!(refused("{dir: .}"), @"`shell` needs `run` (a script) or `argv` (a program and its arguments)");
        insta::assert_snapshot!(refused("{run: x, argv: [x]}"), @"`run` and `argv` exclude each other");
        insta::assert_snapshot!(refused("{argv: []}"), @"`argv` needs at least the program");
        insta::assert_snapshot!(refused("{argv: [x], shell: bash}"), @"`argv` runs without a shell: remove `shell`, or write a script under `run`");
        insta::assert_snapshot!(refused("{run: x, expect: {stdout_matches: '('}}"), @"`(` is not a regular expression: unclosed group");
        let found = |yaml: &str| problems(&action::<Shell>(yaml)).join("; ");
        insta::assert_snapshot!(found("run: 'deploy {{ params.version }}'"), @"`{{ params.version }}` stands in a script, whose text is not templated");
        insta::assert_snapshot!(found("{run: x, env: {'A B': y}}"), @"`A B` is not a name of an environment variable");
        assert_eq!(found("run: docker ps --format '{{.Names}} {{ json .ID }}'"), "");
    }

    #[test]
    fn the_plan_shows_the_command_and_no_secret() {
        let world = world();
        let shown = |yaml: &str| {
            let description = action::<Shell>(yaml).describe(&world.context.values);
            [vec![description.summary], description.details].concat().join("\n")
        };
        insta::assert_snapshot!(shown("{argv: [deploy, '{{ params.name }}', '{{ steps.x.value }}'], dir: app}"), @r"
        deploy 'a b; exit 9' '{{ steps.x.value }}'
        in app
        ");
        insta::assert_snapshot!(shown("run: |\n  # ship it\n  deploy --prod\n  check\nenv: {TOKEN: '{{ secrets.token }}'}\nexpect: {stdout_matches: Ready, exit_code: [0, 2]}"), @r"
        deploy --prod
        # ship it
        deploy --prod
        check
        TOKEN={{ secrets.token }}
        expects exit code 0 or 2
        expects `Ready` in standard output
        ");
    }
}
