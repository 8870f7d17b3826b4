//! `http`: one request and what must be true of its answer.

use indexmap::IndexMap;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;

use super::exchange::{Answer, Redirects, client, exchange, explained, is_overload, milliseconds};
use super::json_template::JsonTemplate;
use super::written::{Codes, Pattern, short, shown, unmet};
use super::{Class, Description, Inspection, Need, Perform, Prospect, StepContext};
use crate::diagnostic::Diagnostic;
use crate::outcome::{Aftermath, ErrorKind, StepError, StepResult};
use crate::output::printable;
use crate::secret::Secret;
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

    async fn needs(&self, prospect: &Prospect<'_>) -> Vec<Need> {
        let url = prospect.text("server", &self.url);
        vec![url.map_or_else(|unknown| unknown, |url| Need::Endpoint { what: "server".into(), url: Secret::new(url) })]
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
        let timeout = self.timeout.unwrap_or(DEFAULT_TIMEOUT);
        let client = client(self.redirects, timeout).map_err(|error| explained(&error, timeout))?;
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
        let failed = explained(error, self.timeout.unwrap_or(DEFAULT_TIMEOUT));
        let failed = if error.is_timeout() { failed.hint("an answer that takes long needs a longer `timeout`") } else { failed };
        let transient = failed.transient && (never_left || self.method.only_looks());
        StepError { transient, ..failed }.aftermath(if never_left { Aftermath::Unchanged } else { self.if_sent() })
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::json;

    use super::super::testing::{World, action, problems, serve};
    use super::*;

    async fn run(url: &str, yaml: &str) -> Result<StepResult, StepError> {
        let world = World::new(&json!({"app": url, "n": 3}), &[("key", "s3cret-key")]);
        action::<Http>(yaml).run(&world.context).await
    }

    async fn health() -> String {
        serve(|request| match request.split(' ').nth(1) {
            Some("/api/health") => "200 OK\n\n{\"database\": true, \"queue\": 12}".into(),
            Some("/old") => "301 Moved\nLocation: /api/health\n\n".into(),
            Some("/elsewhere") => "302 Found\nLocation: http://other.example/\n\n".into(),
            Some("/busy") => "503 Busy\n\nback soon".into(),
            _ => "404 Not Found\n\n<h1>no such page</h1>".into(),
        })
        .await
    }

    #[tokio::test]
    async fn a_healthy_answer_passes_and_can_be_read_by_later_steps() {
        let yaml = "{url: '{{ params.app }}/api/health', expect: {status: 200, json: 'database == true', body_matches: queue, within: 1m}}";
        let result = run(&health().await, yaml).await.unwrap();
        assert_eq!((result.http_status, result.json), (Some(200), Some(json!({"database": true, "queue": 12}))));
        assert!(result.summary.starts_with("200 in "), "{}", result.summary);
        assert!(run(&health().await, "url: '{{ params.app }}/old'").await.is_ok(), "redirects on the same host are followed");
    }

    #[tokio::test]
    async fn expectations_say_what_was_found() {
        let url = health().await;
        let fails = async |yaml: &str| {
            let error = run(&url, yaml).await.unwrap_err();
            assert_eq!((error.kind, error.aftermath), (ErrorKind::Expectation, Aftermath::Unchanged));
            let facts = error.facts.iter().map(|(label, text)| format!("{label}: {text}"));
            [error.message.clone()].into_iter().chain(facts).collect::<Vec<_>>().join("\n")
        };
        insta::assert_snapshot!(fails("url: '{{ params.app }}/nowhere'").await, @r"
        status 404, expected 2xx
        body: <h1>no such page</h1>
        ");
        insta::assert_snapshot!(fails("{url: '{{ params.app }}/api/health', expect: {json: queue < 10}}").await, @r#"
        `queue < 10` does not hold
        queue: 12
        body: {"database": true, "queue": 12}
        "#);
        insta::assert_snapshot!(fails("{url: '{{ params.app }}/api/health', expect: {json: auth == true}}").await, @r#"
        `auth == true` has no value: `auth` is undefined
        body: {"database": true, "queue": 12}
        "#);
        insta::assert_snapshot!(fails("{url: '{{ params.app }}/nowhere', expect: {status: 404, json: database}}").await, @r"
        the body is not JSON
        body: <h1>no such page</h1>
        ");
        insta::assert_snapshot!(fails("{url: '{{ params.app }}/api/health', expect: {body_matches: down}}").await, @r#"
        `down` does not occur in the body
        body: {"database": true, "queue": 12}
        "#);
        insta::assert_snapshot!(fails("url: '{{ params.app }}/elsewhere'").await, @r"
        status 302, expected 2xx
        redirects to: http://other.example/
        ");
        let slow = fails("{url: '{{ params.app }}/api/health', expect: {within: 1us}}").await;
        assert!(slow.ends_with("allowed are 1us"), "{slow}");
    }

    #[tokio::test]
    async fn only_requests_that_look_are_worth_another_attempt() {
        let url = health().await;
        let transient = async |yaml: &str| run(&url, yaml).await.unwrap_err().transient;
        assert!(transient("url: '{{ params.app }}/busy'").await);
        assert!(!transient("{url: '{{ params.app }}/busy', method: POST}").await);
        assert!(!transient("url: '{{ params.app }}/nowhere'").await);
        assert!(run("http://127.0.0.1:1", "url: '{{ params.app }}'").await.unwrap_err().transient, "nobody listens");
    }

    #[tokio::test]
    async fn a_change_that_got_no_answer_is_unknown() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let get = run(&url, "{url: '{{ params.app }}', timeout: 20ms}").await.unwrap_err();
        let message = format!("no complete answer from {} within 20ms", silent.local_addr().unwrap());
        assert_eq!((get.message, get.aftermath), (message, Aftermath::Unchanged));
        assert_eq!(get.hints.last().map(String::as_str), Some("an answer that takes long needs a longer `timeout`"));
        let post = run(&url, "{url: '{{ params.app }}', method: POST, timeout: 20ms}").await.unwrap_err();
        assert_eq!((post.kind, post.aftermath, post.transient), (ErrorKind::Http, Aftermath::Unknown, false));
    }

    #[tokio::test]
    async fn headers_and_bodies_arrive_and_errors_name_no_secret() {
        let seen = Arc::new(Mutex::new(String::new()));
        let url = serve({
            let seen = seen.clone();
            move |request| {
                request.clone_into(&mut seen.lock().unwrap());
                "201 Created\n\n".into()
            }
        })
        .await;
        let yaml = "{url: '{{ params.app }}/x?key={{ secrets.key }}', method: POST, headers: {X-Key: '{{ secrets.key }}'}, \
                    json: {count: '{{ params.n }}', list: [1, 'n={{ params.n }}', null]}}";
        assert_eq!(run(&url, yaml).await.unwrap().http_status, Some(201));
        let request = seen.lock().unwrap().clone();
        assert!(request.starts_with("POST /x?key=s3cret-key "), "{request}");
        assert!(request.contains("x-key: s3cret-key\r\n") && request.ends_with(r#"{"count":3,"list":[1,"n=3",null]}"#), "{request}");

        let error = run("http://127.0.0.1:1", yaml).await.unwrap_err();
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        assert!(error.message.ends_with("connection refused"), "{}", error.message);
    }

    #[tokio::test]
    async fn a_stopped_request_ends_at_once() {
        let world = World::new(&json!({}), &[]);
        world.context.cancel.cancel();
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http = action::<Http>(&format!("url: http://{}", silent.local_addr().unwrap()));
        assert_eq!(http.run(&world.context).await.unwrap_err().kind, ErrorKind::Cancelled);
    }

    #[test]
    fn the_plan_shows_the_request_and_no_secret() {
        let world = World::new(&json!({"n": 3}), &[("key", "s3cret-key")]);
        let http: Http = action(
            "{url: 'https://x/?k={{ secrets.key }}', method: PUT, headers: {X-N: '{{ params.n }}'}, json: {k: '{{ secrets.key }}'}, expect: {within: 2s}}",
        );
        let description = http.describe(&world.context.values);
        insta::assert_snapshot!([vec![description.summary], description.details].concat().join("\n"), @r#"
        PUT https://x/?k={{ secrets.key }}
        X-N: 3
        {"k":"{{ secrets.key }}"}
        expects it within 2s
        "#);
        assert_eq!(http.class(), Class::NotPreviewable);
        assert_eq!(action::<Http>("url: http://x").class(), Class::Read);
        assert_eq!(problems(&action::<Http>("{url: x, json: {}, body: x}")), ["`body` and `json` exclude each other"]);
    }
}
