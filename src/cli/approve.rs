//! `runbook approve`: answers a gate that waits, from anywhere the journal can be reached.

use std::io::Write;

use super::journal_file::find_run;
use super::list::load;
use super::session::Settings;
use super::{Exit, Failure};
use crate::action::{Answer, Prompt, PromptKind};
use crate::clock::Clock;
use crate::journal::{EventKind, JournalError, RunPhase, RunState, StepProgress, StepState};
use crate::report::{login_name, waiting_steps};
use crate::secret::Redactor;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The run's id, or a unique part of it
    #[arg(value_name = "RUN")]
    run: String,
    /// The step that waits
    #[arg(value_name = "STEP")]
    step: String,
    /// Say no: the step counts as failed
    #[arg(long)]
    decline: bool,
    /// What is to be typed or was observed; with --decline, why
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// Your name, where several people share one account
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
}

/// How often an answer is tried again that another process was faster than.
const TRIES: u32 = 10;

pub(super) async fn run(args: &Args, settings: &Settings) -> Result<Exit, Failure> {
    let mut journal = settings.open_journal(&Clock::real()).await?;
    let run = find_run(&mut journal, &args.run).await?;
    let by = args.name.clone().unwrap_or_else(login_name);
    let host = gethostname::gethostname().to_string_lossy().into_owned();
    let mut tries = 0;
    let (state, prompt, at_work) = loop {
        let history = load(&mut journal, &run).await?;
        let at_work = history.state.phase == RunPhase::Running && !history.crashed;
        let mut state = history.state;
        let (prompt, answer) = answer(&state, args, &by)?;
        let event = EventKind::GateAnswered { step: args.step.clone(), answer, host: host.clone() };
        match journal.append(&run, &mut state, vec![event], &Redactor::default()).await {
            Err(JournalError::Conflict { .. }) if tries < TRIES => tries += 1,
            appended => {
                appended?;
                break (state, prompt, at_work);
            }
        }
    };
    let going_on = if at_work { "the run goes on by itself".to_owned() } else { format!("{} resume {run}  goes on", settings.command()) };
    let text = confirmation(args, &by, &run, &state, &prompt, going_on);
    let _ = write!(std::io::stdout(), "{text}");
    Ok(Exit::Done)
}

/// The answer, if the gate waits for one like it.
fn answer(state: &RunState, args: &Args, by: &str) -> Result<(Prompt, Answer), Failure> {
    let progress = waiting(state, &args.step)?;
    let Some(prompt) = progress.waiting.clone() else { return Err(not_waiting(state, &args.step)) };
    if let Some(decline) = progress.answers.iter().find(|answer| !answer.accepted) {
        return Err(refused(format!("`{}` was declined by {} already", args.step, decline.by)));
    }
    if progress.answers.iter().any(|answer| answer.by == by) {
        return Err(refused(format!("{by} has answered `{}` already", args.step))
            .hint("another person must answer; --as NAME where several share one account"));
    }
    if progress.answers.len() >= prompt.approvers.max(1) as usize {
        return Err(refused(format!("`{}` has all its answers", args.step)).hint("`runbook resume` goes on"));
    }
    let answer = Answer { accepted: !args.decline, text: args.text.clone(), by: by.to_owned() };
    if !args.decline {
        check_text(&prompt.kind, args.text.as_deref())?;
    }
    Ok((prompt, answer))
}

fn check_text(kind: &PromptKind, text: Option<&str>) -> Result<(), Failure> {
    match (kind, text) {
        (PromptKind::Confirm, None) => Ok(()),
        (PromptKind::Confirm, Some(_)) => Err(Failure::usage("this gate wants a plain yes or no; leave --text out")),
        (PromptKind::Type(expected), Some(text)) if text == expected => Ok(()),
        (PromptKind::Type(expected), Some(_)) => Err(refused(format!("the text must be exactly `{expected}`"))),
        (PromptKind::Type(expected), None) => {
            Err(Failure::usage(format!("this gate wants `{expected}` typed")).hint("give it with --text"))
        }
        (PromptKind::Observe { .. }, Some(text)) if !text.trim().is_empty() => Ok(()),
        (PromptKind::Observe { question }, _) => {
            Err(Failure::usage(format!("this gate wants an answer to: {question}")).hint("give it with --text"))
        }
    }
}

fn waiting<'a>(state: &'a RunState, step: &str) -> Result<&'a StepProgress, Failure> {
    let open = !matches!(state.phase, RunPhase::Finished(_));
    let progress =
        state.progress(step).filter(|progress| open && progress.waiting.is_some() && !matches!(progress.state, StepState::Finished(_)));
    progress.ok_or_else(|| not_waiting(state, step))
}

fn not_waiting(state: &RunState, step: &str) -> Failure {
    let failure = refused(format!("`{step}` does not wait for an answer"));
    match waiting_steps(state).as_slice() {
        [] => failure.hint("no step of this run does"),
        steps => failure.hint(format!("these do: {}", steps.join(", "))),
    }
}

fn refused(message: String) -> Failure {
    Failure::Message { exit: Exit::Refused, message, hints: Vec::new() }
}

fn confirmation(args: &Args, by: &str, run: &str, state: &RunState, prompt: &Prompt, going_on: String) -> String {
    let said = if args.decline { "declined" } else { "approved" };
    let given = state.progress(&args.step).map_or(0, |progress| progress.answers.len());
    let wanted = prompt.approvers.max(1) as usize;
    let next =
        if args.decline || given >= wanted { going_on } else { format!("{given} of {wanted} approvals; another person must approve too") };
    format!("{by} {said} `{}` of run {run}\n  {next}\n", args.step)
}
