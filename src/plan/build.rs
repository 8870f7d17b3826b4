//! From a checked document to a plan: flattens included playbooks, resolves
//! parameters, links dependencies, applies the selection.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use minijinja::value::{Serde, Value as TemplateValue};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::parameters::{self, Environment, Inputs};
use super::selection::select;
use super::{Need, Plan, PlannedStep, Scope};
use crate::action::notify::ResolvedChannel;
use crate::action::{Action, Inspection, Perform, Recovery};
use crate::diagnostic::{Diagnostic, Severity};
use crate::journal::Phase;
use crate::playbook::load::{Document, Loaded};
use crate::playbook::{IdentityExpectation, Ledger, Playbook, SecretSource, ServerRole, Step};
use crate::secret::{Redactor, Secret};
use crate::source::{SourceId, Sources, Span};
use crate::target::{ConnectionSpec, Expect, LedgerMode, Role};
use crate::template::{Expression, Setting, Values};
use crate::units::Duration;

const DEFAULT_MAX_PARALLEL: u32 = 4;
const DEFAULT_MAX_OUTPUT: u64 = 64 * 1024 * 1024;
/// Short enough that a queue behind us does not become an outage.
const DEFAULT_LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// Builds the plan, or says everything that is wrong with document and inputs.
pub fn build(file: &Path, loaded: Loaded, inputs: &Inputs) -> Result<Plan, (Sources, Vec<Diagnostic>)> {
    let Loaded { sources, document, diagnostics } = loaded;
    let Some(document) = document else {
        return Err((sources, diagnostics));
    };
    let mut builder = Builder {
        inputs,
        sources: &sources,
        diagnostics,
        steps: Vec::new(),
        scopes: Vec::new(),
        connections: Vec::new(),
        secrets: BTreeMap::new(),
        secret_variables: Vec::new(),
        environment: None,
    };
    let settings = &document.playbook.settings;
    let name = settings.name.value.clone();
    let description = settings.description.clone();
    let lock = settings.lock.clone().unwrap_or_else(|| name.clone());
    let max_parallel = settings.max_parallel.unwrap_or(DEFAULT_MAX_PARALLEL).max(1) as usize;
    let max_output = settings.max_output.map_or(DEFAULT_MAX_OUTPUT, |size| size.0);
    let params = builder.main(document);
    let secrets = builder.secrets.keys().cloned().collect();
    let passwords: Vec<Secret> = builder.connections.iter().flat_map(|spec| spec.passwords(&inputs.variables)).collect();
    let redactor = Redactor::new(builder.secrets.values().chain(&passwords));
    let secret_variables = std::mem::take(&mut builder.secret_variables);
    let Builder { mut diagnostics, mut steps, scopes, connections, environment, .. } = builder;
    select(&mut steps, &inputs.selection, &mut diagnostics);
    if diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error) {
        return Err((sources, diagnostics));
    }
    let digest = plan_digest(&name, &params, environment.as_deref(), &lock, &steps);
    Ok(Plan {
        name,
        description,
        file: file.to_path_buf(),
        digest,
        environment,
        params,
        steps,
        max_parallel,
        max_output,
        connections,
        lock,
        scopes,
        redactor,
        secrets,
        secret_variables,
        sources: Arc::new(sources),
        selection: inputs.selection.clone(),
    })
}

struct Builder<'a> {
    inputs: &'a Inputs,
    sources: &'a Sources,
    diagnostics: Vec<Diagnostic>,
    steps: Vec<PlannedStep>,
    scopes: Vec<Scope>,
    connections: Vec<ConnectionSpec>,
    secrets: BTreeMap<String, Secret>,
    secret_variables: Vec<String>,
    environment: Option<String>,
}

/// Where an included playbook hangs in its parent.
struct Parent {
    scope: usize,
    prefix: String,
    phase: Phase,
    needs: Vec<Need>,
    conditions: Vec<(usize, Expression)>,
    tags: Vec<String>,
}

impl Builder<'_> {
    fn main(&mut self, document: Document) -> Map<String, Value> {
        let at = Span { source: document.source, start: 0, end: 0 };
        let declared = &document.playbook.settings.params;
        let params = parameters::resolve(declared, &self.inputs.params, at, self.inputs, &mut self.diagnostics);
        let scope = self.scope(&document, String::new(), &params, None);
        let Document { playbook, mut included, files, .. } = document;
        let Playbook { steps, on_failure, on_success, always, .. } = playbook;
        for (phase, list) in
            [(Phase::Steps, steps), (Phase::OnFailure, on_failure), (Phase::OnSuccess, on_success), (Phase::Always, always)]
        {
            let parent = Parent { scope, prefix: String::new(), phase, needs: Vec::new(), conditions: Vec::new(), tags: Vec::new() };
            self.list(list, &parent, &mut included, &files);
        }
        params
    }

    /// Adds a list of steps; gives the ends of the list, for what comes after it.
    fn list(
        &mut self,
        steps: Vec<Step>,
        parent: &Parent,
        included: &mut HashMap<String, Document>,
        files: &HashMap<String, Vec<SourceId>>,
    ) -> Vec<usize> {
        let mut ends: HashMap<String, Vec<usize>> = HashMap::new();
        let mut previous: Option<String> = None;
        let mut paths_read: Vec<(usize, Vec<Vec<String>>)> = Vec::new();
        let mut needed: std::collections::HashSet<usize> = std::collections::HashSet::new();
        let mut all_ends = Vec::new();
        for mut step in ordered(steps) {
            let id = step.settings.id.value.clone();
            let needs = needs_of(&step, previous.as_deref(), &ends, &parent.needs);
            needed.extend(needs.iter().map(|need| need.step));
            previous = Some(id.clone());
            step.settings.tags.extend(parent.tags.iter().cloned());
            let own = match (included.remove(&id), &step.action.value) {
                (Some(document), Action::Playbook(_)) => self.included(step, document, parent, needs),
                _ => {
                    paths_read.push((self.steps.len(), step_reads(&step)));
                    vec![self.single(step, parent, needs, files.get(&id))]
                }
            };
            all_ends.extend(own.iter().copied());
            ends.insert(id, own);
        }
        for (index, paths) in paths_read {
            let mut reads: Vec<usize> = paths.iter().flat_map(|path| self.steps_at(path, &ends, &parent.prefix)).collect();
            reads.sort_unstable();
            reads.dedup();
            self.steps[index].reads = reads;
        }
        all_ends.retain(|index| !needed.contains(index));
        all_ends
    }

    /// The steps whose results a path leads to: the one it names, also in an included playbook.
    fn steps_at(&self, path: &[String], ends: &HashMap<String, Vec<usize>>, prefix: &str) -> Vec<usize> {
        let Some(ends) = path.first().and_then(|name| ends.get(name)) else { return Vec::new() };
        let inner = |index: usize| self.steps[index].id.strip_prefix(prefix).filter(|id| id.contains('/'));
        if !ends.iter().any(|end| inner(*end).is_some()) {
            return ends.clone();
        }
        let named = |id: &str| id.split('/').count() <= path.len() && id.split('/').zip(path).all(|(part, name)| part == name);
        (0..self.steps.len()).filter(|index| inner(*index).is_some_and(named)).collect()
    }

    fn single(&mut self, step: Step, parent: &Parent, needs: Vec<Need>, files: Option<&Vec<SourceId>>) -> usize {
        let digest = step_digest(self.sources, &step, files.map_or(&[], Vec::as_slice));
        let recovery = self.recovery(&step, parent.scope);
        self.steps.push(PlannedStep {
            recovery,
            id: format!("{}{}", parent.prefix, step.settings.id.value),
            scope: parent.scope,
            phase: parent.phase,
            needs,
            outer_conditions: parent.conditions.clone(),
            reads: Vec::new(),
            digest,
            excluded: None,
            step: Arc::new(step),
        });
        self.steps.len() - 1
    }

    /// The action's own word, unless the author says more or the connection keeps no ledger.
    fn recovery(&self, step: &Step, scope: usize) -> Recovery {
        let scope = &self.scopes[scope];
        let mut inspection = Inspection::default();
        step.action.value.inspect(&mut inspection);
        let without_ledger = inspection.connections.iter().any(|name| {
            let name = name.map(|name| name.value.as_str()).or(scope.default_connection.as_deref());
            let full = name.and_then(|name| scope.connections.get(name));
            self.connections.iter().any(|spec| Some(&spec.name) == full && spec.ledger == LedgerMode::None)
        });
        match step.action.value.recovery() {
            Recovery::Ledger if !without_ledger => Recovery::Ledger,
            Recovery::Repeat => Recovery::Repeat,
            _ if step.settings.idempotent => Recovery::Repeat,
            _ => Recovery::Unknown,
        }
    }

    fn included(&mut self, step: Step, document: Document, parent: &Parent, needs: Vec<Need>) -> Vec<usize> {
        let Action::Playbook(nested) = &step.action.value else { return Vec::new() };
        let outer = self.scopes[parent.scope].values.clone();
        let mut given = Map::new();
        for (name, value) in &nested.params {
            match outer.setting(value) {
                Ok(value) => {
                    given.insert(name.value.clone(), value);
                }
                Err(error) => self
                    .diagnostics
                    .push(Diagnostic::error("parameter", name.span, error.to_string()).help(
                        "an included playbook's parameters must be known before the run; they may read params, not results of steps",
                    )),
            }
        }
        let declared = &document.playbook.settings.params;
        let params = parameters::resolve(declared, &given, nested.file.span, self.inputs, &mut self.diagnostics);
        let prefix = format!("{}{}/", parent.prefix, step.settings.id.value);
        let scope = self.scope(&document, prefix.clone(), &params, Some(parent.scope));
        let mut conditions = parent.conditions.clone();
        conditions.extend(step.settings.when.clone().map(|when| (parent.scope, when)));
        let child = Parent { scope, prefix, phase: parent.phase, needs: needs.clone(), conditions, tags: step.settings.tags.clone() };
        let Document { playbook, mut included, files, .. } = document;
        let Playbook { steps, on_failure, on_success, always, .. } = playbook;
        for (part, list) in [("on_failure", &on_failure), ("on_success", &on_success), ("always", &always)] {
            if let Some(first) = list.first() {
                self.diagnostics.push(
                    Diagnostic::error("included-closing-steps", first.span, format!("`{part}` has no meaning in an included playbook"))
                        .help("only the main playbook's closing steps run; move them there"),
                );
            }
        }
        let ends = self.list(steps, &child, &mut included, &files);
        if ends.is_empty() { needs.iter().map(|need| need.step).collect() } else { ends }
    }

    fn scope(&mut self, document: &Document, prefix: String, params: &Map<String, Value>, parent: Option<usize>) -> usize {
        let settings = &document.playbook.settings;
        let secrets = parameters::secrets(&settings.secrets, self.inputs, &mut self.diagnostics);
        self.secret_variables.extend(settings.secrets.values().filter_map(|source| match source {
            SecretSource::Env(variable) => Some(variable.clone()),
            SecretSource::File(_) => None,
        }));
        let secret_values: BTreeMap<&str, &str> = secrets.iter().map(|(name, secret)| (name.as_str(), secret.expose())).collect();
        let values =
            Values::new().with("params", TemplateValue::from(Serde(params))).with("secrets", TemplateValue::from(Serde(&secret_values)));
        let with_env = values.with("env", TemplateValue::from_object(Environment(self.inputs.variables.clone())));
        if let Some(environment) = &settings.environment {
            match with_env.text(environment) {
                Ok(text) if parent.is_none() => self.environment = Some(text),
                Ok(_) => {}
                // What is wrong with a parameter has been said where it is declared.
                Err(_) if settings.params.keys().any(|name| !params.contains_key(&name.value)) => {}
                Err(error) => self.diagnostics.push(Diagnostic::error("environment", environment.text.span, error.to_string())),
            }
        }
        let (connections, default_connection) = self.connections(document, &prefix, &with_env, parent);
        let channels = self.channels(document, &with_env, parent);
        let databases = self.databases(&connections);
        self.secrets.extend(secrets);
        self.scopes.push(Scope {
            prefix,
            values: values.with("connections", TemplateValue::from(Serde(&databases))),
            connections: Arc::new(connections),
            default_connection,
            channels: Arc::new(channels),
            timeout: settings.defaults.timeout,
            lock_timeout: settings.defaults.lock_timeout.or(Some(DEFAULT_LOCK_TIMEOUT)),
            statement_timeout: settings.defaults.statement_timeout,
            retry: settings.defaults.retry.clone(),
        });
        self.scopes.len() - 1
    }

    /// The playbook's connections; an included playbook without its own uses its parent's.
    fn connections(
        &mut self,
        document: &Document,
        prefix: &str,
        values: &Values,
        parent: Option<usize>,
    ) -> (BTreeMap<String, String>, Option<String>) {
        let declared = &document.playbook.settings.connections;
        if let (true, Some(parent)) = (declared.is_empty(), parent) {
            let parent = &self.scopes[parent];
            return ((*parent.connections).clone(), parent.default_connection.clone());
        }
        let mut names = BTreeMap::new();
        for (name, connection) in declared {
            let url = match values.text(&connection.url) {
                Ok(url) => url,
                Err(error) => {
                    if self.inputs.resolve {
                        self.diagnostics.push(
                            Diagnostic::error(
                                "connection",
                                connection.url.text.span,
                                format!("connection `{}` has no address: {}", name.value, error.reason),
                            )
                            .help("set the environment variable, or give the parameter it reads"),
                        );
                    }
                    String::new()
                }
            };
            let full = format!("{prefix}{}", name.value);
            self.connections.push(ConnectionSpec {
                name: full.clone(),
                url: Secret::new(relative_to(&url, &self.inputs.directory)),
                expect: expectation(&connection.expect, values, &mut self.diagnostics),
                ledger: match connection.ledger {
                    Ledger::Target => LedgerMode::Target,
                    Ledger::None => LedgerMode::None,
                },
                environment: self.environment.clone(),
            });
            names.insert(name.value.clone(), full);
        }
        let default = match names.len() {
            1 => names.keys().next().cloned(),
            _ => names.contains_key("main").then(|| "main".to_owned()),
        };
        (names, default)
    }

    fn channels(&mut self, document: &Document, values: &Values, parent: Option<usize>) -> BTreeMap<String, ResolvedChannel> {
        let mut channels = parent.map_or_else(BTreeMap::new, |parent| (*self.scopes[parent].channels).clone());
        for (name, channel) in &document.playbook.settings.channels {
            match channel.resolve(values) {
                Ok(resolved) => {
                    channels.insert(name.value.clone(), resolved);
                }
                Err(error) if self.inputs.resolve => {
                    self.diagnostics.push(Diagnostic::error("channel", name.span, format!("channel `{}`: {error}", name.value)));
                }
                Err(_) => {}
            }
        }
        channels
    }

    /// What expressions see of the connections: the database's name where the playbook says it.
    fn databases(&self, names: &BTreeMap<String, String>) -> BTreeMap<String, BTreeMap<&'static str, String>> {
        names
            .iter()
            .filter_map(|(name, full)| {
                let spec = self.connections.iter().find(|spec| spec.name == *full)?;
                Some((name.clone(), BTreeMap::from([("database", spec.expect.database.clone()?)])))
            })
            .collect()
    }
}

/// `sqlite:` files are named from where the command is run, also after `resume` elsewhere.
fn relative_to(url: &str, directory: &Path) -> String {
    match url.strip_prefix("sqlite:") {
        Some(path) if !path.starts_with('/') && !path.is_empty() && !path.starts_with(':') => {
            format!("sqlite:{}", directory.join(path.trim_start_matches("//")).display())
        }
        _ => url.to_owned(),
    }
}

fn expectation(written: &IdentityExpectation, values: &Values, diagnostics: &mut Vec<Diagnostic>) -> Expect {
    let mut text = |setting: &Option<Setting<String>>| {
        let setting = setting.as_ref()?;
        values
            .setting(setting)
            .map_err(|error| {
                let span = setting.template().map_or(Span::default(), |template| template.text.span);
                diagnostics.push(Diagnostic::error("connection", span, error.to_string()));
            })
            .ok()
    };
    Expect {
        database: text(&written.database),
        user: text(&written.user),
        system_identifier: text(&written.system_identifier),
        role: match written.role {
            Some(ServerRole::Primary) => Role::Primary,
            Some(ServerRole::Standby) => Role::Standby,
            None => Role::Any,
        },
        min_version: written.min_version,
    }
}

/// Dependencies come before dependents; otherwise as written. `check` has refused circles.
fn ordered(steps: Vec<Step>) -> Vec<Step> {
    let in_order = |steps: &[Step]| {
        let mut seen = std::collections::HashSet::new();
        steps.iter().all(|step| {
            let ready = step.settings.needs.iter().flatten().all(|need| seen.contains(need.value.as_str()));
            seen.insert(step.settings.id.value.as_str());
            ready
        })
    };
    if in_order(&steps) {
        return steps;
    }
    let positions: HashMap<String, usize> = steps.iter().enumerate().map(|(index, step)| (step.settings.id.value.clone(), index)).collect();
    let mut graph = petgraph::graph::DiGraph::<usize, ()>::new();
    let nodes: Vec<_> = (0..steps.len()).map(|index| graph.add_node(index)).collect();
    for (index, step) in steps.iter().enumerate() {
        match &step.settings.needs {
            Some(needs) => {
                for position in needs.iter().filter_map(|need| positions.get(&need.value)) {
                    graph.add_edge(nodes[*position], nodes[index], ());
                }
            }
            None if index > 0 => {
                graph.add_edge(nodes[index - 1], nodes[index], ());
            }
            None => {}
        }
    }
    // The implicit need is of the step above as written, so it must be made explicit before moving.
    let mut steps: Vec<Option<Step>> = with_explicit_order(steps).into_iter().map(Some).collect();
    match petgraph::algo::toposort(&graph, None) {
        Ok(order) => order.into_iter().filter_map(|node| steps[graph[node]].take()).collect(),
        Err(_) => steps.into_iter().flatten().collect(),
    }
}

fn with_explicit_order(mut steps: Vec<Step>) -> Vec<Step> {
    let mut previous = None;
    for step in &mut steps {
        let id = step.settings.id.clone();
        if step.settings.needs.is_none() {
            step.settings.needs = Some(previous.into_iter().collect());
        }
        previous = Some(id);
    }
    steps
}

fn needs_of(step: &Step, previous: Option<&str>, ends: &HashMap<String, Vec<usize>>, outer: &[Need]) -> Vec<Need> {
    let mut needs: Vec<Need> = match &step.settings.needs {
        Some(named) => {
            named.iter().filter_map(|name| ends.get(&name.value)).flatten().map(|index| Need { step: *index, named: true }).collect()
        }
        None => previous.and_then(|id| ends.get(id)).into_iter().flatten().map(|index| Need { step: *index, named: false }).collect(),
    };
    if needs.is_empty() {
        needs.extend_from_slice(outer);
    }
    needs
}

/// Names of the steps whose results a step reads.
fn step_reads(step: &Step) -> Vec<Vec<String>> {
    let mut inspection = Inspection::default();
    step.inspect(&mut inspection);
    inspection
        .uses
        .iter()
        .filter(|used| used.reference.path.len() > 1 && used.reference.path[0] == "steps")
        .map(|used| used.reference.path[1..].to_vec())
        .filter(|path| path[0] != step.settings.id.value)
        .collect()
}

fn step_digest(sources: &Sources, step: &Step, files: &[SourceId]) -> String {
    let text = &sources.get(step.span.source).text;
    let mut digest = Sha256::new();
    digest.update(&text.as_bytes()[step.span.start as usize..(step.span.end as usize).min(text.len())]);
    for file in files {
        digest.update([0]);
        digest.update(&sources.get(*file).text);
    }
    hexadecimal(&digest.finalize())
}

fn plan_digest(name: &str, params: &Map<String, Value>, environment: Option<&str>, lock: &str, steps: &[PlannedStep]) -> String {
    let mut digest = Sha256::new();
    for part in [env!("CARGO_PKG_VERSION"), name, environment.unwrap_or_default(), lock] {
        digest.update(part);
        digest.update([0]);
    }
    digest.update(Value::Object(params.clone()).to_string());
    for step in steps {
        digest.update([0]);
        digest.update(&step.id);
        digest.update([0]);
        digest.update(&step.digest);
    }
    hexadecimal(&digest.finalize())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
