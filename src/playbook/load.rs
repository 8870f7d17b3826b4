//! From a file name to a whole playbook: reads, parses, decodes and checks it with
//! everything it includes, and collects what is wrong in all of it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::check::{self, Written};
use super::{Playbook, Step, Undo, decode};
use crate::action::{Action, Loader, Perform};
use crate::diagnostic::{Diagnostic, Severity};
use crate::source::{SourceError, SourceFile, SourceId, Sources, Span};
use crate::yaml;

/// How deep playbooks may include one another.
const MAX_DEPTH: usize = 16;

/// A playbook with its files.
#[derive(Debug)]
pub struct Document {
    /// Its text.
    pub source: SourceId,
    /// Where its relative file names start.
    pub directory: PathBuf,
    /// What it says.
    pub playbook: Playbook,
    /// Whether every step could be read.
    pub complete: bool,
    /// Included playbooks by the id of the step that includes them.
    pub included: HashMap<String, Document>,
    /// Further files each step reads, by its id.
    pub files: HashMap<String, Vec<SourceId>>,
}

/// What reading a playbook gave: the document when nothing is wrong with it, and
/// findings (only warnings then).
#[derive(Debug)]
pub struct Loaded {
    /// All files read, for drawing the findings.
    pub sources: Sources,
    /// Absent when there are errors.
    pub document: Option<Document>,
    /// Errors and warnings.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads a playbook file and what it includes.
pub fn load(path: &Path) -> Result<Loaded, SourceError> {
    let mut reading = Reading { sources: Sources::default(), diagnostics: Vec::new(), open: Vec::new() };
    let file = SourceFile::read(path)?;
    let document = reading.document(file);
    let failed = reading.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error);
    Ok(Loaded { document: document.filter(|_| !failed), sources: reading.sources, diagnostics: reading.diagnostics })
}

struct Reading {
    sources: Sources,
    diagnostics: Vec<Diagnostic>,
    /// Files being read, outermost first, to notice circles.
    open: Vec<PathBuf>,
}

impl Reading {
    fn document(&mut self, file: SourceFile) -> Option<Document> {
        let path = file.path.clone();
        let directory = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let source = self.sources.add(file);
        let node = match yaml::parse(&self.sources, source) {
            Ok(node) => node,
            Err(problems) => {
                self.diagnostics.extend(problems);
                return None;
            }
        };
        let decoded = decode::decode(&node);
        self.diagnostics.extend(decoded.diagnostics);
        let mut playbook = decoded.playbook?;
        let files = self.load_files(&mut playbook, &directory);
        let written = Written { tree: &node, sources: &self.sources, complete: decoded.complete, included: !self.open.is_empty() };
        self.diagnostics.extend(check::check(&playbook, &written));
        self.open.push(path);
        let included = self.included(&playbook, &directory);
        self.open.pop();
        let written = Written { tree: &node, sources: &self.sources, complete: decoded.complete, included: !self.open.is_empty() };
        self.diagnostics.extend(check::included(&playbook, &written, &included));
        Some(Document { source, directory, playbook, complete: decoded.complete, included, files })
    }

    fn load_files(&mut self, playbook: &mut Playbook, directory: &Path) -> HashMap<String, Vec<SourceId>> {
        let mut files = HashMap::new();
        for step in playbook.all_steps_mut() {
            let first = self.sources.iter().count();
            let mut loader = Loader { directory, sources: &mut self.sources, diagnostics: &mut self.diagnostics };
            step.action.value.load(&mut loader);
            if let Some(Undo::Action(action)) = &mut step.settings.undo {
                action.load(&mut loader);
            }
            if let Some(check) = &mut step.settings.done_when {
                check.load(&mut loader);
            }
            let read: Vec<_> = (first..self.sources.iter().count()).map(|index| SourceId(index as u32)).collect();
            if !read.is_empty() {
                files.insert(step.settings.id.value.clone(), read);
            }
        }
        files
    }

    fn included(&mut self, playbook: &Playbook, directory: &Path) -> HashMap<String, Document> {
        let mut included = HashMap::new();
        for step in playbook.all_steps() {
            if let Action::Playbook(nested) = &step.action.value
                && let Some(document) = self.include(&directory.join(&nested.file.value), nested.file.span)
            {
                included.insert(step.settings.id.value.clone(), document);
            }
        }
        included
    }

    fn include(&mut self, path: &Path, span: Span) -> Option<Document> {
        if self.open.iter().any(|open| same_file(open, path)) {
            let circle: Vec<_> = self.open.iter().map(|open| open.display().to_string()).collect();
            self.diagnostics.push(Diagnostic::error("include-cycle", span, format!("{} includes itself", path.display())).help(format!(
                "the circle: {} → {}",
                circle.join(" → "),
                path.display()
            )));
            return None;
        }
        if self.open.len() >= MAX_DEPTH {
            self.diagnostics.push(Diagnostic::error("include-depth", span, format!("playbooks are nested deeper than {MAX_DEPTH}")));
            return None;
        }
        match SourceFile::read(path) {
            Ok(file) => self.document(file),
            Err(error) => {
                self.diagnostics.push(
                    Diagnostic::error("file-not-readable", span, error.to_string())
                        .help("file names are relative to the playbook that names them"),
                );
                None
            }
        }
    }
}

fn same_file(left: &Path, right: &Path) -> bool {
    match (left.canonicalize(), right.canonicalize()) {
        (Ok(left), Ok(right)) => left == right,
        _ => left == right,
    }
}

impl Playbook {
    /// The steps of all four parts.
    pub fn all_steps(&self) -> impl Iterator<Item = &Step> {
        [&self.steps, &self.on_failure, &self.on_success, &self.always].into_iter().flatten()
    }

    fn all_steps_mut(&mut self) -> impl Iterator<Item = &mut Step> {
        [&mut self.steps, &mut self.on_failure, &mut self.on_success, &mut self.always].into_iter().flatten()
    }
}
