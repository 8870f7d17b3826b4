//! One step from its gate to its end: attempts, retries, timeout, `done_when`, outputs.
//!
//! Runs as a task of its own and speaks to the dispatcher by messages; it never
//! touches the journal.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::action::{Class, Perform, StepContext};
use crate::journal::Outcome;
use crate::outcome::{Aftermath, ErrorKind, StepError, StepResult};
use crate::playbook::{Retry, Step, StepSeverity};
use crate::template::Values;
use crate::units::Duration;

/// How long an action may take to wind up after it was cancelled.
const GRACE: std::time::Duration = std::time::Duration::from_secs(20);
const DEFAULT_DELAY: Duration = Duration::from_secs(1);
const DEFAULT_MAX_DELAY: Duration = Duration::from_secs(60);
const DEFAULT_BACKOFF: f64 = 2.0;

/// What a step tells the dispatcher on its way.
#[derive(Debug)]
pub(super) enum StepMessage {
    /// An attempt with effects is about to begin; answered when the intent is durable.
    Begin { step: String, attempt: u32, durable: oneshot::Sender<()> },
    /// An attempt failed and will be repeated.
    Retrying { step: String, attempt: u32, error: Box<StepError>, delay: std::time::Duration },
}

/// How a step ended.
#[derive(Debug)]
pub(super) enum StepEnd {
    /// With an outcome to record.
    Finished { attempt: u32, outcome: Outcome, duration: std::time::Duration },
    /// With its effect unknown.
    Lost { attempt: u32, error: Box<StepError> },
}

/// One step to run.
pub(super) struct StepTask {
    pub step: Arc<Step>,
    pub id: String,
    /// For the first attempt; its token is the step's own.
    pub context: StepContext,
    /// Fires when the run is cancelled; each attempt has a child of it.
    pub stop: CancellationToken,
    /// Number of the first attempt; higher than 1 after a resume.
    pub first: u32,
    pub class: Class,
    pub retry: Option<Retry>,
    pub timeout: Option<Duration>,
    /// The dispatcher has made the intent of the first attempt durable already.
    pub begun: bool,
    pub messages: mpsc::UnboundedSender<StepMessage>,
    /// Makes the context of a later attempt.
    pub next_output: Box<dyn Fn(u32) -> crate::output::Output + Send + Sync>,
}

impl StepTask {
    pub async fn run(mut self) -> StepEnd {
        let first = self.first;
        if let Some(end) = self.before().await {
            return end;
        }
        let most = first + self.retry.as_ref().and_then(|retry| retry.max).unwrap_or(0);
        for attempt in first.. {
            if attempt > first {
                self.context.attempt = attempt;
                self.context.cancel = self.stop.child_token();
                self.context.output = (self.next_output)(attempt);
            }
            if self.has_effects() && !(self.begun && attempt == first) && !self.begin(attempt).await {
                return std::future::pending().await;
            }
            let started = Instant::now();
            let outcome = self.attempt().await;
            let kept = self.context.output.finish();
            let duration = started.elapsed();
            match outcome {
                Ok(mut result) => {
                    result.findings.extend(kept.trouble);
                    return StepEnd::Finished { attempt, outcome: Outcome::Done { result: Box::new(result) }, duration };
                }
                Err(error) if attempt < most && self.worth_another(&error) => {
                    if !self.pause(attempt, error).await {
                        let error = StepError::new(ErrorKind::Cancelled, "interrupted while waiting for the next attempt");
                        return StepEnd::Finished { attempt, outcome: Outcome::Failed { error: Box::new(error) }, duration };
                    }
                }
                Err(error) => return self.failed(attempt, error, duration),
            }
        }
        std::future::pending().await
    }

    fn has_effects(&self) -> bool {
        !matches!(self.class, Class::Read | Class::Gate)
    }

    /// The gate and the look beforehand.
    async fn before(&mut self) -> Option<StepEnd> {
        let step = self.step.clone();
        let started = Instant::now();
        if let Some(confirm) = &step.settings.confirm
            && let Err(error) = confirm.run(&self.context).await
        {
            return Some(self.failed(0, error, started.elapsed()));
        }
        let check = step.settings.done_when.as_ref()?;
        match self.within_timeout(check.holds(&self.context)).await {
            Ok(true) => {
                let result = StepResult { summary: "the effect is in place".into(), ..StepResult::default() };
                Some(StepEnd::Finished {
                    attempt: 0,
                    outcome: Outcome::AlreadyDone { result: Box::new(result) },
                    duration: started.elapsed(),
                })
            }
            Ok(false) => None,
            Err(error) => {
                let error = StepError {
                    message: format!("done_when could not be checked: {}", error.message),
                    aftermath: Aftermath::Unchanged,
                    ..error
                };
                Some(self.failed(0, error, started.elapsed()))
            }
        }
    }

    async fn begin(&self, attempt: u32) -> bool {
        let (durable, confirmed) = oneshot::channel();
        self.messages.send(StepMessage::Begin { step: self.id.clone(), attempt, durable }).is_ok() && confirmed.await.is_ok()
    }

    /// One attempt with what belongs to it: the action, the look afterwards, the outputs.
    async fn attempt(&self) -> Result<StepResult, StepError> {
        let mut result = self.within_timeout(self.step.action.value.run(&self.context)).await?;
        if let Some(check) = &self.step.settings.done_when {
            match self.within_timeout(check.holds(&self.context)).await {
                Ok(true) => {}
                Ok(false) => {
                    return Err(StepError::new(ErrorKind::Expectation, "the step ran, but `done_when` does not hold afterwards")
                        .aftermath(Aftermath::Partial)
                        .with_result(result));
                }
                Err(error) => {
                    return Err(StepError {
                        message: format!("the step ran, but done_when could not be checked: {}", error.message),
                        ..error
                    }
                    .aftermath(Aftermath::Partial)
                    .with_result(result));
                }
            }
        }
        let outputs =
            outputs(&self.step, &self.context.values, &result).map_err(|error| error.aftermath(self.if_begun(Aftermath::Partial)))?;
        result.outputs = outputs;
        Ok(result)
    }

    /// Bounds a future by the step's timeout; what runs then is cancelled, not dropped,
    /// so that it can say what it leaves behind.
    async fn within_timeout<T>(&self, work: impl Future<Output = Result<T, StepError>>) -> Result<T, StepError> {
        let Some(limit) = self.timeout else {
            return self.until_stopped(work).await;
        };
        let work = self.until_stopped(work);
        tokio::pin!(work);
        tokio::select! {
            outcome = &mut work => outcome,
            () = tokio::time::sleep(limit.0) => {
                self.context.cancel.cancel();
                let ended = tokio::time::timeout(GRACE, &mut work).await;
                match ended {
                    // It finished while it was being stopped: that is what counts.
                    Ok(Ok(value)) => Ok(value),
                    Ok(Err(error)) => Err(timed_out(limit, error.aftermath, Some(error))),
                    Err(_) => Err(timed_out(limit, self.if_begun(Aftermath::Unknown), None)),
                }
            }
        }
    }

    /// Gives a cancelled action a bounded time to wind up.
    async fn until_stopped<T>(&self, work: impl Future<Output = Result<T, StepError>>) -> Result<T, StepError> {
        tokio::pin!(work);
        tokio::select! {
            outcome = &mut work => outcome,
            () = self.context.cancel.cancelled() => match tokio::time::timeout(GRACE, &mut work).await {
                Ok(outcome) => outcome,
                Err(_) => Err(StepError::new(ErrorKind::Cancelled, "it did not stop in time").aftermath(self.if_begun(Aftermath::Unknown))),
            }
        }
    }

    fn if_begun(&self, aftermath: Aftermath) -> Aftermath {
        if self.has_effects() { aftermath } else { Aftermath::Unchanged }
    }

    fn worth_another(&self, error: &StepError) -> bool {
        if matches!(error.kind, ErrorKind::Cancelled | ErrorKind::Declined | ErrorKind::Identity) || error.aftermath == Aftermath::Unknown {
            return false;
        }
        let classes = self.retry.as_ref().and_then(|retry| retry.on.as_ref());
        match classes {
            None => error.transient,
            Some(classes) => classes.iter().any(|class| matches_class(&class.value, error)),
        }
    }

    /// Waits before the next attempt; `false` when the run is being stopped.
    async fn pause(&self, attempt: u32, error: StepError) -> bool {
        let delay = delay(self.retry.as_ref(), attempt.saturating_sub(self.first), self.context.clock.random());
        let message = StepMessage::Retrying { step: self.id.clone(), attempt, error: Box::new(error), delay };
        if self.messages.send(message).is_err() {
            return false;
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => true,
            () = self.context.cancel.cancelled() => false,
        }
    }

    fn failed(&self, attempt: u32, error: StepError, duration: std::time::Duration) -> StepEnd {
        if error.aftermath == Aftermath::Unknown && self.has_effects() {
            return StepEnd::Lost { attempt, error: Box::new(error) };
        }
        let outcome = match self.step.settings.severity {
            StepSeverity::Warning if error.kind == ErrorKind::Expectation => {
                let mut result = error.result.as_deref().cloned().unwrap_or_default();
                result.findings.push(error.message.clone());
                Outcome::Warned { result: Box::new(result), error: Box::new(error) }
            }
            _ => Outcome::Failed { error: Box::new(error) },
        };
        StepEnd::Finished { attempt, outcome, duration }
    }
}

fn timed_out(limit: Duration, aftermath: Aftermath, cause: Option<StepError>) -> StepError {
    let mut error = StepError::new(ErrorKind::Timeout, format!("not done within its timeout of {limit}")).aftermath(aftermath);
    if let Some(cause) = cause {
        error = error.fact("when stopped", cause.message);
        error.facts.extend(cause.facts);
    }
    error
}

fn matches_class(class: &str, error: &StepError) -> bool {
    match class {
        "any" => true,
        "transient" => error.transient,
        "timeout" => error.kind == ErrorKind::Timeout,
        "connection" => error.kind == ErrorKind::Connection,
        // An unexpected exit code or status is a failed expectation, and still of its kind.
        "process" => error.kind == ErrorKind::Process || error.result.as_ref().is_some_and(|result| result.exit_code.is_some()),
        "http" => error.kind == ErrorKind::Http || error.result.as_ref().is_some_and(|result| result.http_status.is_some()),
        "expectation" => error.kind == ErrorKind::Expectation,
        code => error.code.as_deref().is_some_and(|actual| actual.starts_with(code)),
    }
}

/// Exponential backoff with "full jitter" between half and the whole of the delay, so
/// that several runs that failed together don't come back together.
fn delay(retry: Option<&Retry>, retries_before: u32, random: f64) -> std::time::Duration {
    let retry = retry.cloned().unwrap_or_default();
    let base = retry.delay.unwrap_or(DEFAULT_DELAY).0.as_secs_f64();
    let factor = retry.backoff.unwrap_or(DEFAULT_BACKOFF).max(1.0).powi(i32::try_from(retries_before).unwrap_or(i32::MAX).min(64));
    let most = retry.max_delay.unwrap_or(DEFAULT_MAX_DELAY).0.as_secs_f64();
    std::time::Duration::from_secs_f64((base * factor).min(most) * (0.5 + random / 2.0))
}

/// The author's `outputs`, over the result and the run's values.
fn outputs(step: &Step, values: &Values, result: &StepResult) -> Result<indexmap::IndexMap<String, serde_json::Value>, StepError> {
    if step.settings.outputs.is_empty() {
        return Ok(indexmap::IndexMap::new());
    }
    let values = crate::template::with_result(values, result);
    step.settings.outputs.iter().map(|(name, expression)| Ok((name.value.clone(), values.evaluate(expression)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_its_bound_and_is_jittered() {
        let retry = Retry { delay: Some(Duration::from_secs(2)), max_delay: Some(Duration::from_secs(10)), ..Retry::default() };
        assert_eq!(delay(Some(&retry), 0, 1.0).as_secs_f64(), 2.0);
        assert_eq!(delay(Some(&retry), 0, 0.0).as_secs_f64(), 1.0);
        assert_eq!(delay(Some(&retry), 1, 1.0).as_secs_f64(), 4.0);
        assert_eq!(delay(Some(&retry), 9, 1.0).as_secs_f64(), 10.0);
    }

    #[test]
    fn retry_classes_match_kinds_and_codes() {
        let mut error = StepError::new(ErrorKind::Sql, "x");
        error.code = Some("40P01".into());
        assert!(matches_class("40", &error) && matches_class("40P01", &error) && matches_class("any", &error));
        assert!(!matches_class("08", &error) && !matches_class("process", &error));
    }
}
