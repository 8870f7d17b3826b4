//! The HTTP exchange itself: client, redirects, answers.

mod failure;

use std::sync::Once;
use std::time::{Duration as Time, Instant};

use reqwest::header::LOCATION;
use reqwest::redirect::Policy;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::outcome::{ErrorKind, StepError};
use crate::units::Duration;

pub(super) use failure::explained;

const MOST_REDIRECTS: usize = 10;
/// How much of a body is read; what a check looks at is smaller.
pub(super) const LONGEST_BODY: usize = 1 << 20;

/// What to do when the server points elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Redirects {
    /// Follow, but not to another host or from https to http.
    #[default]
    SameHost,
    /// Take the redirect as the answer.
    None,
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: u16,
    /// Where a redirect points that was not followed.
    pub(super) location: Option<String>,
    pub(super) body: Vec<u8>,
    /// The body is longer than what was read.
    pub(super) cut: bool,
    /// From the request to the end of the body.
    pub(super) time: Time,
}

/// Sends a request and reads the answer.
pub(super) async fn exchange(request: reqwest::RequestBuilder) -> Result<Answer, reqwest::Error> {
    let started = Instant::now();
    let mut response = request.send().await?;
    let mut body = Vec::new();
    while body.len() <= LONGEST_BODY
        && let Some(chunk) = response.chunk().await?
    {
        body.extend_from_slice(&chunk);
    }
    let cut = body.len() > LONGEST_BODY;
    body.truncate(LONGEST_BODY);
    let location = response.headers().get(LOCATION).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    Ok(Answer { status: response.status().as_u16(), location, body, cut, time: started.elapsed() })
}

/// A client that trusts what the operating system trusts.
pub(super) fn client(redirects: Redirects, timeout: Duration) -> Result<reqwest::Client, reqwest::Error> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // It fails if another part of the program installed one, which then serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let policy = match redirects {
        Redirects::None => Policy::none(),
        Redirects::SameHost => Policy::custom(|attempt| {
            let Some(from) = attempt.previous().last() else { return attempt.stop() };
            let same_host = from.host() == attempt.url().host();
            let downgrade = from.scheme() == "https" && attempt.url().scheme() != "https";
            if same_host && !downgrade && attempt.previous().len() <= MOST_REDIRECTS { attempt.follow() } else { attempt.stop() }
        }),
    };
    reqwest::Client::builder()
        .redirect(policy)
        .timeout(timeout.0)
        .referer(false)
        .user_agent(concat!("runbook/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// For people.
pub(super) fn milliseconds(time: Time) -> String {
    format!("{} ms", time.as_millis())
}

/// What a server says that can't answer just now.
pub(super) fn is_overload(status: u16) -> bool {
    matches!(status, 429 | 502 | 503 | 504)
}

/// What a webhook's answer means: anything but success is a failure.
pub(super) fn accepted(answer: Result<reqwest::Response, reqwest::Error>, timeout: Duration) -> Result<(), StepError> {
    let answer = answer.map_err(|error| {
        let failed = explained(&error, timeout);
        StepError { transient: failed.transient && error.is_connect(), ..failed }
    })?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let refused = StepError::new(ErrorKind::Http, format!("status {}", status.as_u16()));
    Err(StepError { transient: is_overload(status.as_u16()), ..refused })
}
