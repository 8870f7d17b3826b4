//! `http`: one request and what must be true of its answer.

use indexmap::IndexMap;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;

use super::exchange::{Answer, Redirects, client, exchange, is_certificate, is_overload, milliseconds, reason};
use super::json_template::JsonTemplate;
use super::written::{Codes, Pattern, short, shown, unmet};
use super::{Class, Description, Inspection, Perform, StepContext};
use crate::diagnostic::Diagnostic;
use crate::outcome::{Aftermath, ErrorKind, StepError, StepResult};
use crate::output::printable;
use crate::source::Spanned;
use crate::template::{Expression, Place, Template, Values};
use crate::units::Duration;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes a request and checks the answer.
///
/// `GET` and `HEAD` only look; other methods may change something. Redirects are followed
/// on the same host only, so that headers never travel to another one.
///
/// ```yaml
/// http: {url: "https://app.example.com/api/health", expect: {status: 200, json: "database == true", within: 800ms}}
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Where to; `http://` or `https://`.
    pub url: Template,
    /// Default: `GET`.
    #[serde(default)]
    pub method: Method,
    /// Request headers.
    #[serde(default)]
    pub headers: IndexMap<Spanned<String>, Template>,
    /// Request body as text.
    #[serde(default)]
    pub body: Option<Template>,
    /// Request body as JSON; texts in it may be templates.
    #[serde(default)]
    pub json: Option<Spanned<JsonTemplate>>,
    /// The longest the whole exchange may take. Default: 30s.
    #[serde(default)]
    pub timeout: Option<Duration>,
    /// What to do when the server points elsewhere. Default: `same_host`.
    #[serde(default)]
    pub redirects: Redirects,
    /// What must be true of the answer.
    #[serde(default)]
    pub expect: HttpExpectation,
}

/// HTTP methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "their names say it")]
pub enum Method {
    #[default]
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
}

/// What must be true of an answer.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HttpExpectation {
    /// Status codes that are fine. Default: 2xx.
    pub status: Option<Codes>,
    /// Must hold of the body read as JSON; its keys are names, the whole is `json`.
    pub json: Option<Expression>,
    /// Must occur in the body (its first MiB).
    pub body_matches: Option<Pattern>,
    /// The answer must be there, body included, in this time.
    pub within: Option<Duration>,
}

impl Perform for Http {
    fn class(&self) -> Class {
        if self.method.only_looks() { Class::Read } else { Class::NotPreviewable }
    }

    fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        inspection.template(&self.url, Place::Private);
        for (name, value) in &self.headers {
            if HeaderName::from_bytes(name.as_bytes()).is_err() {
                inspection.diagnostics.push(Diagnostic::error(
                    "header-name",
                    name.span,
                    format!("`{}` is not a header's name", name.value),
                ));
            }
            inspection.template(value, Place::Private);
        }
        if let Some(body) = &self.body {
            inspection.template(body, Place::Private);
        }
        if let Some(json) = &self.json {
            json.inspect(inspection);
            if let Some(body) = &self.body {
                inspection.diagnostics.push(
                    Diagnostic::error("body-and-json", json.span, "`body` and `json` exclude each other")
                        .related(body.text.span, "`body` stands here"),
                );
            }
        }
        if let Some(condition) = &self.expect.json {
            inspection.decision(condition, None);
        }
    }

    fn describe(&self, values: &Values) -> Description {
        let mut details: Vec<String> =
            self.headers.iter().map(|(name, value)| format!("{}: {}", name.value, shown(value, values))).collect();
        if let Some(body) = &self.body {
            details.extend(shown(body, values).lines().map(ToOwned::to_owned));
        }
        if let Some(json) = &self.json {
            details.push(json.shown(values).to_string());
        }
        details.extend(self.expect.describe());
        Description { summary: format!("{} {}", self.method.name(), shown(&self.url, values)), details }
    }

    async fn run(&self, context: &StepContext) -> Result<StepResult, StepError> {
        let location = context.sources.location(self.url.text.span);
        let request = self.request(&context.values)?;
        let answer = tokio::select! {
            answer = exchange(request) => answer.map_err(|error| self.not_exchanged(&error)),
            () = context.cancel.cancelled() => Err(StepError::new(ErrorKind::Cancelled, "stopped while waiting for the answer").aftermath(self.if_sent())),
        };
        let answer = answer.map_err(|error| error.at(location.clone()))?;
        let body = String::from_utf8_lossy(&answer.body);
        let result = answer.result(&body);
        context.output.note(&format!("{} {}", self.method.name(), result.summary));
        match self.refusal(&answer, &body, &result, &context.values) {
            None => Ok(result),
            Some(error) => Err(error.with_result(result).at(location)),
        }
    }
}

impl Http {
    fn if_sent(&self) -> Aftermath {
        if self.method.only_looks() { Aftermath::Unchanged } else { Aftermath::Unknown }
    }

    fn request(&self, values: &Values) -> Result<reqwest::RequestBuilder, StepError> {
        let failed = |error: &reqwest::Error| StepError::new(ErrorKind::Http, reason(error));
        let client = client(self.redirects, self.timeout.unwrap_or(DEFAULT_TIMEOUT)).map_err(|error| failed(&error))?;
        let mut request = client.request(self.method.into(), values.text(&self.url)?).headers(self.header_map(values)?);
        if let Some(body) = &self.body {
            request = request.body(values.text(body)?);
        }
        if let Some(json) = &self.json {
            request = request.json(&json.value.value(values)?);
        }
        Ok(request)
    }

    fn header_map(&self, values: &Values) -> Result<HeaderMap, StepError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let invalid =
                || StepError::new(ErrorKind::Http, format!("the header `{}` has a name or value that HTTP does not allow", name.value));
            let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid())?;
            let mut value = HeaderValue::from_str(&values.text(value)?).map_err(|_| invalid())?;
            value.set_sensitive(true);
            headers.append(key, value);
        }
        Ok(headers)
    }

    /// Nothing is changed by a request that only looks, nor by one that never left.
    fn not_exchanged(&self, error: &reqwest::Error) -> StepError {
        let never_left = error.is_connect() || error.is_builder();
        let what = if error.is_timeout() {
            format!("no complete answer within {}", self.timeout.unwrap_or(DEFAULT_TIMEOUT))
        } else {
            reason(error)
        };
        let mut failed = StepError::new(ErrorKind::Http, what).aftermath(if never_left { Aftermath::Unchanged } else { self.if_sent() });
        failed.transient = !error.is_builder() && (never_left || self.method.only_looks()) && !is_certificate(error);
        failed
    }

    fn refusal(&self, answer: &Answer, body: &str, result: &StepResult, values: &Values) -> Option<StepError> {
        let aftermath = if self.method.only_looks() { Aftermath::Unchanged } else { Aftermath::Partial };
        let fine = self.expect.status.clone().unwrap_or_else(Codes::success);
        if !fine.contains(i64::from(answer.status)) {
            let mut error = expectation(format!("status {}, expected {fine}", answer.status)).aftermath(aftermath);
            error.transient = self.method.only_looks() && is_overload(answer.status);
            if let Some(location) = &answer.location {
                error = error.fact("redirects to", printable(location));
            }
            return Some(with_body(error, body));
        }
        let error = self.expect.unmet(answer, body, result, values)?;
        Some(error.aftermath(aftermath))
    }
}

impl HttpExpectation {
    fn describe(&self) -> Vec<String> {
        let status = self.status.iter().map(|codes| format!("expects status {codes}"));
        let json = self.json.iter().map(|condition| format!("expects of its JSON: {}", condition.text.value));
        let body = self.body_matches.iter().map(|pattern| format!("expects `{pattern}` in the body"));
        let within = self.within.iter().map(|limit| format!("expects it within {limit}"));
        status.chain(json).chain(body).chain(within).collect()
    }

    fn unmet(&self, answer: &Answer, body: &str, result: &StepResult, values: &Values) -> Option<StepError> {
        if let Some(condition) = &self.json {
            let Some(json) = &result.json else {
                let what = if answer.cut { "the body is longer than the MiB that is read" } else { "the body is not JSON" };
                return Some(with_body(expectation(what), body));
            };
            if let Some((reason, found)) = unmet(condition, json, values) {
                let error = found.into_iter().fold(expectation(reason), |error, (name, value)| error.fact(name, value));
                return Some(with_body(error, body));
            }
        }
        if let Some(pattern) = self.body_matches.as_ref().filter(|pattern| !pattern.occurs_in(body)) {
            return Some(with_body(expectation(format!("`{pattern}` does not occur in the body")), body));
        }
        let limit = self.within.filter(|limit| answer.time > limit.0)?;
        Some(expectation(format!("the answer took {}, allowed are {limit}", milliseconds(answer.time))))
    }
}

impl Answer {
    fn result(&self, body: &str) -> StepResult {
        StepResult {
            summary: format!("{} in {}", self.status, milliseconds(self.time)),
            http_status: Some(self.status),
            json: if self.cut { None } else { serde_json::from_str(body).ok() },
            ..StepResult::default()
        }
    }
}

impl Method {
    fn only_looks(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Options)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
        }
    }
}

impl From<Method> for reqwest::Method {
    fn from(method: Method) -> Self {
        match method {
            Method::Get => Self::GET,
            Method::Head => Self::HEAD,
            Method::Post => Self::POST,
            Method::Put => Self::PUT,
            Method::Patch => Self::PATCH,
            Method::Delete => Self::DELETE,
            Method::Options => Self::OPTIONS,
        }
    }
}

fn expectation(message: impl Into<String>) -> StepError {
    StepError::new(ErrorKind::Expectation, message)
}

fn with_body(error: StepError, body: &str) -> StepError {
    if body.trim().is_empty() { error } else { error.fact("body", short(&printable(body.trim()))) }
}
