//! `notify`: a message to people, on the console and through webhooks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::exchange::{Redirects, accepted, client};
use super::{Class, Description, Inspection, Need, Perform, Prospect, StepContext};
use crate::outcome::{Aftermath, ErrorKind, StepError, StepResult};
use crate::secret::Secret;
use crate::source::Spanned;
use crate::template::{Message, Place, Template, TemplateError, Values};
use crate::units::Duration;

/// The channel that is always there.
const CONSOLE: &str = "console";
const TIMEOUT: Duration = Duration::from_secs(15);

/// Tells people something.
///
/// `console` shows the message where runbook runs; other channels are declared under
/// `channels:`. Every channel is tried; one that could not be reached fails the step
/// afterwards. After an interruption the message may be sent a second time.
///
/// ```yaml
/// notify: {to: [console, chat], severity: warning, title: Maintenance, message: "Starts at {{ params.at }}."}
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Notify {
    /// Names of channels.
    #[schemars(length(min = 1))]
    pub to: Vec<Spanned<String>>,
    /// How much it matters. Default: `info`.
    #[serde(default)]
    pub severity: NoticeSeverity,
    /// First line.
    #[serde(default)]
    pub title: Option<Message>,
    /// The text.
    pub message: Message,
}

/// How much a message matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NoticeSeverity {
    /// Good to know.
    #[default]
    Info,
    /// Somebody should look at it.
    Warning,
    /// Something failed.
    Error,
    /// Somebody must act now.
    Critical,
}

/// A way to reach people, declared under `channels:`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// Address that takes a POST with JSON: `text` (title and message, as Slack, Mattermost and Teams
    /// read it), `title`, `message`, `severity`, `run` and `step`.
    Webhook(Template),
}

/// A channel whose address is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResolvedChannel {
    /// The address, which is mostly the key as well.
    Webhook(Secret),
}

impl Channel {
    /// Names everything it refers to.
    pub fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        match self {
            Self::Webhook(url) => inspection.template(url, Place::Private),
        }
    }

    /// Its address.
    pub fn resolve(&self, values: &Values) -> Result<ResolvedChannel, TemplateError> {
        match self {
            Self::Webhook(url) => values.text(url).map(|url| ResolvedChannel::Webhook(Secret::new(url))),
        }
    }
}

impl Perform for Notify {
    fn class(&self) -> Class {
        Class::Read
    }

    fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        inspection.channels.extend(self.to.iter().filter(|name| name.value != CONSOLE));
        inspection.message(&self.message);
        if let Some(title) = &self.title {
            inspection.message(title);
        }
    }

    fn describe(&self, values: &Values) -> Description {
        let shown = |message: &Message| values.message(message).unwrap_or_else(|_| message.text.value.clone());
        let text = shown(&self.message);
        let first = self.title.as_ref().map_or_else(|| text.lines().next().unwrap_or_default().to_owned(), shown);
        let to: Vec<&str> = self.to.iter().map(|name| name.value.as_str()).collect();
        Description { summary: format!("tell {}: {first}", to.join(", ")), details: text.lines().map(ToOwned::to_owned).collect() }
    }

    async fn needs(&self, prospect: &Prospect<'_>) -> Vec<Need> {
        let channels = self.to.iter().filter(|name| name.value != CONSOLE);
        channels
            .map(|name| match prospect.channels.get(&name.value) {
                Some(ResolvedChannel::Webhook(url)) => Need::Endpoint { what: format!("channel {}", name.value), url: url.clone() },
                None => Need::Unknown { what: format!("channel {}", name.value), reason: "its address is not known".into() },
            })
            .collect()
    }

    async fn run(&self, context: &StepContext) -> Result<StepResult, StepError> {
        let redacted = |message: &Message| Ok::<_, TemplateError>(context.redactor.text(&context.values.message(message)?).into_owned());
        let title = self.title.as_ref().map(redacted).transpose()?;
        let message = redacted(&self.message)?;
        let mut reached = Vec::new();
        let mut failed = Vec::new();
        for channel in &self.to {
            let told = match channel.as_str() {
                CONSOLE => {
                    context.console(title.clone(), message.clone()).await;
                    Ok(())
                }
                name => self.send(name, title.as_deref(), &message, context).await,
            };
            match told {
                Ok(()) => reached.push(channel.value.as_str()),
                Err(reason) => failed.push((channel.value.clone(), reason)),
            }
        }
        if failed.is_empty() {
            return Ok(StepResult { summary: format!("told {}", reached.join(", ")), ..StepResult::default() });
        }
        Err(unreached(failed, &reached).at(context.sources.location(self.message.text.span)))
    }
}

impl Notify {
    async fn send(&self, name: &str, title: Option<&str>, message: &str, context: &StepContext) -> Result<(), StepError> {
        let Some(ResolvedChannel::Webhook(url)) = context.channels.get(name) else {
            return Err(StepError::new(ErrorKind::Http, "the playbook declares no such channel"));
        };
        let text = title.map_or_else(|| message.to_owned(), |title| format!("{title}\n{message}"));
        let payload = json!({
            "text": text, "title": title, "message": message, "severity": self.severity, "run": context.run, "step": context.step,
        });
        let request = client(Redirects::SameHost, TIMEOUT).map(|client| client.post(url.expose()).json(&payload));
        tokio::select! {
            answer = async { request?.send().await } => accepted(answer, TIMEOUT),
            () = context.cancel.cancelled() => Err(StepError::new(ErrorKind::Cancelled, "stopped while sending")),
        }
    }
}

fn unreached(failed: Vec<(String, StepError)>, reached: &[&str]) -> StepError {
    let names: Vec<&str> = failed.iter().map(|(name, _)| name.as_str()).collect();
    let cancelled = failed.iter().any(|(_, error)| error.kind == ErrorKind::Cancelled);
    let kind = if cancelled { ErrorKind::Cancelled } else { ErrorKind::Http };
    let mut error = StepError::new(kind, format!("the message did not reach {}", names.join(", ")));
    // Repeating tells those again who know already; that beats telling nobody.
    error.transient = failed.iter().all(|(_, error)| error.transient);
    if !reached.is_empty() {
        error = error.fact("reached", reached.join(", ")).aftermath(Aftermath::Partial);
    }
    for (name, reason) in failed {
        error = error.fact(name, reason.message);
        let new: Vec<String> = reason.hints.into_iter().filter(|hint| !error.hints.contains(hint)).collect();
        error.hints.extend(new);
    }
    error
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::Request;
    use super::super::testing::{World, action, serve};
    use super::*;

    fn world(webhook: &str) -> World {
        let mut world = World::new(&json!({"at": "22:00"}), &[("hook", webhook), ("pin", "90210")]);
        let channel: Channel = action("webhook: '{{ secrets.hook }}'");
        let resolved = channel.resolve(&world.context.values).unwrap();
        world.context.channels = Arc::new([("chat".to_owned(), resolved)].into());
        world
    }

    const NOTICE: &str = "{to: [console, chat], severity: warning, title: Maintenance, message: 'Starts at {{ params.at }}, PIN 90210'}";

    #[tokio::test]
    async fn everybody_is_told_and_no_secret() {
        let seen = Arc::new(Mutex::new(String::new()));
        let url = serve({
            let seen = seen.clone();
            move |request| {
                request.clone_into(&mut seen.lock().unwrap());
                "200 OK\n\nok".into()
            }
        })
        .await;
        let mut world = world(&url);
        let result = action::<Notify>(NOTICE).run(&world.context).await.unwrap();
        assert_eq!(result.summary, "told console, chat");
        let Ok(Request::Console { title, message, .. }) = world.requests.try_recv() else { panic!("no message on the console") };
        assert_eq!((title.as_deref(), message.as_str()), (Some("Maintenance"), "Starts at 22:00, PIN ***"));
        let request = seen.lock().unwrap().clone();
        let body: serde_json::Value = serde_json::from_str(request.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(
            body,
            json!({
                "text": "Maintenance\nStarts at 22:00, PIN ***", "title": "Maintenance", "message": "Starts at 22:00, PIN ***",
                "severity": "warning", "run": "run", "step": "step",
            })
        );
    }

    #[tokio::test]
    async fn a_channel_out_of_reach_is_told_after_the_others() {
        let mut world = world("http://127.0.0.1:1/hook/s3cret");
        let error = action::<Notify>(NOTICE).run(&world.context).await.unwrap_err();
        assert_eq!(error.message, "the message did not reach chat");
        assert_eq!(error.facts[0], ("reached".into(), "console".into()));
        assert!(error.transient && !format!("{error:?}").contains("hook"), "{error:?}");
        assert!(world.requests.try_recv().is_ok(), "the console was told");
        let refused = serve(|_| "403 Forbidden\n\n".into()).await;
        let error = action::<Notify>("{to: [chat], message: x}").run(&self::world(&refused).context).await.unwrap_err();
        assert_eq!((error.facts, error.transient), (vec![("chat".into(), "status 403".into())], false));
    }
}
