//! What the actions' tests need: an action from its YAML, and a world to run it in.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Channels, Inspection, Perform, Request, StepContext};
use crate::clock::Clock;
use crate::output::{Output, OutputOptions};
use crate::process::{Processes, guard};
use crate::secret::{Redactor, Secret};
use crate::source::{SourceFile, Sources};
use crate::target::{SessionSettings, Targets, Variables};
use crate::template::Values;

/// An action's fields, read as in a playbook; the diagnostic's message if that fails.
pub(super) fn try_action<T: DeserializeOwned>(yaml: &str) -> Result<T, String> {
    let mut sources = Sources::default();
    let source = sources.add(SourceFile::new("test.yaml", yaml));
    let node = crate::yaml::parse(&sources, source).map_err(|problems| problems[0].message.clone())?;
    crate::yaml::from_node(&node).map_err(|problem| problem.message)
}

pub(super) fn action<T: DeserializeOwned>(yaml: &str) -> T {
    try_action(yaml).unwrap_or_else(|problem| panic!("{problem}\n{yaml}"))
}

/// The messages of what `inspect` finds wrong.
pub(super) fn problems(action: &impl Perform) -> Vec<String> {
    let mut inspection = Inspection::default();
    action.inspect(&mut inspection);
    inspection.diagnostics.into_iter().map(|problem| problem.message).collect()
}

/// A run without databases, in a directory of its own.
pub(super) struct World {
    _directory: TempDir,
    pub(super) context: StepContext,
    pub(super) requests: mpsc::Receiver<Request>,
}

impl World {
    pub(super) fn new(params: &Value, secrets: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let declared: Vec<Secret> = secrets.iter().map(|(_, value)| Secret::new(*value)).collect();
        let redactor = Redactor::new(&declared);
        let secrets: BTreeMap<&str, &str> = secrets.iter().copied().collect();
        let values = Values::new().with_json("params", params).with_json("secrets", &serde_json::to_value(secrets).unwrap());
        let output = Output::new(OutputOptions {
            directory: directory.path().join("output"),
            step: "step".into(),
            attempt: 1,
            max_bytes: 1 << 20,
            redactor: redactor.clone(),
            live: None,
        });
        let (sender, requests) = mpsc::channel(100);
        let mut sources = Sources::default();
        sources.add(SourceFile::new("test.yaml", ""));
        let context = StepContext {
            run: "run".into(),
            step: "step".into(),
            ledger_key: "step".into(),
            attempt: 1,
            values,
            targets: Targets::new("run", Vec::new(), &Variables::default()),
            connections: Arc::default(),
            default_connection: None,
            session: SessionSettings::default(),
            directory: directory.path().to_owned(),
            processes: processes("/usr/bin:/bin"),
            environment: Arc::default(),
            output,
            finish_up: CancellationToken::new(),
            cancel: CancellationToken::new(),
            clock: Clock::real(),
            redactor,
            channels: Arc::new(Channels::default()),
            sources: Arc::new(sources),
            uncertain: false,
            requests: sender,
        };
        Self { _directory: directory, context, requests }
    }

    /// Where child processes find programs.
    pub(super) fn set_path(&mut self, path: &str) {
        self.context.processes = processes(path);
    }

    /// The step's log.
    pub(super) fn log(&self) -> String {
        let file = self.context.output.finish().file;
        file.map(|file| std::fs::read_to_string(file).unwrap()).unwrap_or_default()
    }
}

/// The guard waits like a real one but ends nobody: these runs end in order.
fn processes(path: &str) -> Processes {
    let guard = guard::Start { program: "/bin/sh".into(), arguments: ["-c", "read -r line"].map(Into::into).to_vec() };
    Processes::new("run", [("PATH".into(), path.into())], guard)
}

/// A web server on this machine; it gives each request's text to `answer` and sends what
/// comes back, which begins with the status line's code.
pub(super) async fn serve(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let request = read_request(&mut stream).await;
                let answer = answer(&request);
                let (head, body) = answer.split_once("\n\n").unwrap_or((&answer, ""));
                let head = head.replace('\n', "\r\n");
                let text = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
                stream.write_all(text.as_bytes()).await
            });
        }
    });
    url
}

async fn read_request(stream: &mut tokio::net::TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return text;
            }
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return text;
        }
    }
}
